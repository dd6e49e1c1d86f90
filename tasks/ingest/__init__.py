"""Takes one partition of the source's tables; hands on a `Batch` of clean objects.

Guarantees: raw rows land immutably, named by the hash of their content, so that landing again changes nothing. All
tables of a partition become clean together, or it is blocked and an alert is raised. A row that breaks an expectation
goes to the quarantine with its reason, and comes back by a correction, nowhere else.
"""
