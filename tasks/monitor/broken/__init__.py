"""Signs that a feed is broken, and not that the world has changed.

Takes the features of earlier partitions that nobody blocked, and those of a partition. Hands on what no change of the
world does to a feature: values that were never there, one value instead of many, the values of the partition before, a
unit in place of another, a feature that no longer goes with the others while they go with each other.
"""
