"""Writes what a new use case needs, from a table of the source, a profile of its rows, and a person's answers."""
