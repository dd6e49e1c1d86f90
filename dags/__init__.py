"""Wiring: one file a verb, one DAG a use case."""
