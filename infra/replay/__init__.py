"""The replay of a real year through the real DAGs, and the page that reports it."""
