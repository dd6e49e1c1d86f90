"""Takes a `Snapshot` and a data time; hands on a `Candidate`, registered with everything it was made of.

Guarantees: the search sees validation rows only and keeps its exact budget however often it is killed; the same data,
code, parameters and seed give the same model, bit for bit; a retry registers no second version.
"""
