"""Takes a `Candidate`; hands on a `Verdict` with its evidence, and then a `Release`.

Guarantees: both models are judged on the same frozen rows, which neither has learned from. The winner is fitted anew on
all that is known, and promoted so only where it agrees with what was judged. The champion changes by compare-and-swap
under a database lock, at most once a verdict, and the ledger keeps refusals as well as promotions.
"""
