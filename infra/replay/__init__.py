"""The replay of a real year through the real DAGs."""
