"""Takes the clean objects of all partitions; hands on a `Snapshot`, a version of the feature dataset named by its hash.

Guarantees: a feature of a row knows nothing that was not available at its prediction time. Exactly the partitions whose
inputs changed are made again; any version can be read, and rebuilt to the same hash. The online store and the outcomes
follow it, each in one transaction.
"""
