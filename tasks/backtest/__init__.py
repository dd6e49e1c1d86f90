"""Try a change before it is merged: the code of two commits, each trained and asked on the same past, and the gate.

Takes a branch and the data that a stack has kept. Guarantees that production is told of to nobody: the code of a commit
runs in a checkout of its own, reads files, and gets no address and no secret. Hands on a verdict, interval and cost.
"""
