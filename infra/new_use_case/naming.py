"""Names that a table and its columns have here, where theirs in the source are none that a definition can write."""

import re
from collections.abc import Iterable

from features.vocabulary import RESERVED_WORDS

STEPS = ("told", "entries", "asked", "tellings", "counted", "outcomes", "labels")  # of the definition that is written
# What the definition that is written, points and scores have for themselves.
_TAKEN = {
    *("entity_key", "prediction_time", "label", "label_time", "known_at", "known_until", "is_first", "told_at"),
    *("before", "seen", "positives", "total", "score", "decision", "model_version", "point_id", "moment", "event_time"),
}


def name_table(relation: str) -> str:
    """What a table is called here, by the last part of its name."""
    name = _as_identifier(relation)
    return f"{name}_rows" if name in RESERVED_WORDS or name in STEPS else name


def name_all(sources: Iterable[str], free: Iterable[str]) -> dict[str, str]:
    """Name in the source -> name here, each once. `free`: columns that may have a name that is taken otherwise."""
    names, allowed = dict[str, str](), {*free}
    for source in sources:
        name = _as_identifier(source)
        if name in RESERVED_WORDS or (name in _TAKEN and source not in allowed):
            name = f"{name}_"
        while name in names.values():
            name = f"{name}_2"
        names[source] = name
    return names


def _as_identifier(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if name[:1].isalpha() else f"c_{name}"
