"""Takes the changes of the source's tables as they are committed; hands on series in the online store, seconds old.

Guarantees: a change and how far the source was read are one transaction, so that nothing is lost or taken twice,
wherever it is killed. After every step the series are those that a rebuild from the same rows gives, to the byte. A row
that breaks an expectation is in no feature. What belongs to a partition that was taken already is left to `ingest`,
which is told to take it again.
"""
