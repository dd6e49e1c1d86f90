"""Two versions answer a declared share of the entities each; the costs of their decisions say which is better.

Guarantees: it may be looked at any time (confidence sequences); it never promotes; ending it gives the stable version
everyone back.
"""
