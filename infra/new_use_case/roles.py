"""What each column of a table is to its features: of the event itself, a category, the key of windows, or none."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from infra.new_use_case.answers import Answers
from infra.new_use_case.column_profile import MOST_CATEGORIES, ColumnProfile
from infra.new_use_case.profile import TableProfile

_FEW = 12  # values of a text that makes slices
_EVENTS_A_KEY = 5  # rows that a key has to have, so that it has a history
_WINDOWED = 3
_ID = re.compile(r"(^|_)(id|no|nr|number|code|key)_?$")
_NUMBERS = ("integer", "float", "decimal")


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Columns by what is made of them. `entity` are those that tell the events of one moment apart.

    `told` is what a client tells of an event; `filled_later` is not among them: it lies after its row became known, or
    is there where the target is.
    """

    known: ColumnProfile
    event: ColumnProfile
    target: ColumnProfile
    label_known: ColumnProfile | None
    key: tuple[ColumnProfile, ...]
    entity: tuple[ColumnProfile, ...]
    told: tuple[ColumnProfile, ...]
    numbers: tuple[ColumnProfile, ...]
    flags: tuple[ColumnProfile, ...]
    moments: tuple[ColumnProfile, ...]
    categories: tuple[ColumnProfile, ...]
    windowed: tuple[ColumnProfile, ...]
    filled_later: tuple[ColumnProfile, ...]

    @property
    def slices(self) -> tuple[str, ...]:
        """Categories of few values."""
        return tuple(c.name for c in self.categories if 1 < c.distinct <= _FEW)[:2]

    @property
    def structural(self) -> tuple[str, ...]:
        """Features that every row has."""
        return tuple(c.name for c in (*self.categories, *self.numbers) if not c.nulls)[:4]


def assign_roles(profile: TableProfile, answers: Answers) -> Roles:
    """What becomes of each column."""
    special = {answers.available_at, answers.event_time, answers.target, answers.label_known_at}
    known, event, target = (profile.find(name) for name in (answers.available_at, answers.event_time, answers.target))
    key = tuple(profile.find(name) for name in answers.key)
    there = [c for c in profile.columns if c.kind and c.distinct and c.source not in special]
    late = tuple(c for c in there if c.filled_later or c.with_target)
    plain = [c for c in there if c not in late and not _is_name_of_row(c, key, profile)]
    return Roles(
        known=known,
        event=event,
        target=target,
        label_known=profile.find(answers.label_known_at) if answers.label_known_at else None,
        key=key,
        entity=tuple(c for c in key if c not in (event, known)) or key,
        told=tuple(c for c in there if c not in late and (c in key or c in _used(plain, profile))),
        numbers=tuple(c for c in plain if c.kind in _NUMBERS and not _is_id(c)),
        flags=tuple(c for c in plain if c.kind == "boolean"),
        moments=tuple(c for c in plain if c.kind in ("date", "timestamp")),
        categories=tuple(c for c in plain if c.kind == "text" and c.distinct <= MOST_CATEGORIES),
        windowed=_windowed(plain, profile),
        filled_later=late,
    )


def kinds_of_features(columns: tuple[ColumnProfile, ...]) -> Mapping[str, list[str]]:
    """Argument of `declare_source` -> columns, in order."""
    words = {"text": "varchar", "integer": "bigint", "float": "double"}
    kinds = dict[str, list[str]]()
    for column in columns:
        kinds.setdefault(words.get(str(column.kind), str(column.kind)), []).append(column.name)
    return kinds


def _used(plain: list[ColumnProfile], profile: TableProfile) -> list[ColumnProfile]:
    windowed = _windowed(plain, profile)
    return [
        c for c in plain
        if c in windowed or (c.kind == "text" and c.distinct <= MOST_CATEGORIES)
        or c.kind in ("boolean", "date", "timestamp") or (c.kind in _NUMBERS and not _is_id(c))
    ]  # fmt: skip


def _windowed(plain: list[ColumnProfile], profile: TableProfile) -> tuple[ColumnProfile, ...]:
    """Texts and numbers of things that come again."""
    return tuple(
        c for c in plain
        if (c.kind == "text" or (c.kind == "integer" and _is_id(c)))
        and 1 < c.distinct <= (profile.rows - c.nulls) / _EVENTS_A_KEY
    )[:_WINDOWED]  # fmt: skip


def _is_id(column: ColumnProfile) -> bool:
    return column.kind == "integer" and _ID.search(column.name) is not None


def _is_name_of_row(column: ColumnProfile, key: tuple[ColumnProfile, ...], profile: TableProfile) -> bool:
    """A key by itself, or a text that is another in nearly every row: nothing can be learnt of it."""
    return (column in key and len(key) == 1) or (column.kind == "text" and column.distinct > profile.rows / 2)
