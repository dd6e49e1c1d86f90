"""What can be known of a declared use case before anything is loaded: each mistake with its place and its remedy.

It takes a use case, its expectations, its features and the source as they are, and writes nothing. It hands on a list
of findings; where there is none, a backfill, a training and a server will not stop at what stands there.
"""
