"""Lists of names in sentences for people."""

from collections.abc import Sequence

MOST_NAMED = 5  # in a sentence; all are in the evidence


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
