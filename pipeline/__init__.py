"""The vocabulary every other package speaks: use cases, settings, partitions and hand-offs."""
