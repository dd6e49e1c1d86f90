"""docs/features.md: the words of a feature definition, from the docstrings of the classes and functions themselves."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Any

from features.engine import FeatureSet
from features.request import RequestField
from features.vocabulary import (
    AsOf,
    Preceding,
    SourceTable,
    Window,
    declare_source,
    known_at_sql,
    local_time_sql,
    snapshots_sql,
    unique_or_repeated_sql,
    versions_sql,
)

_WORDS: tuple[type[Any], ...] = (FeatureSet, SourceTable, RequestField, Window, AsOf, Preceding)
_PIECES: tuple[Callable[..., Any], ...] = (
    declare_source, versions_sql, known_at_sql, local_time_sql, snapshots_sql, unique_or_repeated_sql
)  # fmt: skip
_HEAD = """# Words of a feature definition

Generated from `features/engine.py`, `features/request.py` and `features/vocabulary.py` by `make docs`; do not edit.
[bring-your-own-table.md](bring-your-own-table.md) shows how they belong together, [windows.md](windows.md) has an
example of each window, [expressions.md](expressions.md) says what an expression may be. A field with a value in the
second column may be left out, and then has it.
"""


def render_features() -> str:
    """The whole page."""
    words = [line for word in _WORDS for line in _describe_word(word)]
    pieces = [line for piece in _PIECES for line in _describe_piece(piece)]
    return "\n".join([_HEAD, *words, "## SQL that is the same in many definitions", "", *pieces]).rstrip() + "\n"


def _describe_word(word: type[Any]) -> Iterator[str]:
    yield from (f"## {word.__name__}", "", inspect.getdoc(word) or "", "", "| field | if left out | type |")
    yield "| --- | --- | --- |"
    for each in fields(word):
        default = each.default if each.default is not MISSING else None if each.default_factory is MISSING else "empty"
        optional = each.default is not MISSING or each.default_factory is not MISSING
        yield f"| {each.name} | {default if optional else ''} | {_write_type(each.type)} |".replace("|  |", "| |")
    yield ""


def _describe_piece(piece: Callable[..., Any]) -> Iterator[str]:
    taken = ", ".join(str(name) for name in inspect.signature(piece).parameters)
    yield from (f"**{piece.__name__}**({taken}): {inspect.getdoc(piece)}", "")


def _write_type(kind: object) -> str:
    text = inspect.formatannotation(kind).replace("collections.abc.", "").replace("datetime.", "")
    return text.replace("features.request.", "").replace("features.vocabulary.", "").replace("|", "or")
