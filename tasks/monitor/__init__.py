"""Takes `Scores` and the outcomes known by now; hands on a `Drift`: one decision per use case and data time.

Guarantees: thresholds come from the champion's own training data; what is missing is unknown, never healthy; a broken
feed pages and does not retrain; cooldown, budget and the one retrain in flight are kept in the database.
"""
