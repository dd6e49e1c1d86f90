"""What only a person knows of a new use case: read from arguments and a file, asked on a terminal, or named as missing.

Words of columns are those that the source has.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import yaml

from pipeline.fields import refuse_classes

QUESTIONS: Mapping[str, str] = {  # those that nothing can be done without, in the order in which they are asked
    "table": "the table or view of the source, as SQL writes its name",
    "event_time": "the column that says when the event happens that is predicted",
    "available_at": "the column that says when a row became known to the source",
    "key": "the columns that name one row, separated by commas",
    "target": "the column that is to be predicted",
    "kind": "binary or regression",
    "lead_minutes": "how many minutes before the event it is predicted",
    "label_delay_hours": "after how many hours from the event practically every target is known",
}
FURTHER: Mapping[str, str] = {
    "label_known_at": "the column that says when the target became known, if there is one",
    "positive": "the value of the target that counts as 1, where it is text",
    "zone": "the zone of timestamps that say none, and of hours and weekdays, such as Europe/Paris",
    "title": "what the use case is called",
    "owner": "who answers for it",
    "meaning": "what the target means, in words",
}
_COLUMNS = ("event_time", "available_at", "key", "target", "label_known_at")
_NUMBERS = ("lead_minutes", "label_delay_hours")
_KINDS = ("binary", "regression")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was answered. `key` has at least one column; both numbers are 0 or more."""

    name: str
    table: str
    event_time: str
    available_at: str
    key: tuple[str, ...]
    target: str
    kind: str
    lead_minutes: int
    label_delay_hours: int
    label_known_at: str | None = None
    positive: str | None = None
    zone: str | None = None
    title: str | None = None
    owner: str | None = None
    meaning: str | None = None


def add_questions(parser: argparse.ArgumentParser) -> None:
    """An argument for each question, and one for a file of answers."""
    for name, text in {**QUESTIONS, **FURTHER}.items():
        parser.add_argument(to_option(name), help=text)
    parser.add_argument("--answers", type=Path, help="a YAML file of these, such as `event_time: placed_at`")


def collect_answers(
    given: argparse.Namespace,
    ask: Callable[[str], str] | None,
    show: Callable[[str], str] | None = None,
    look: Callable[[Mapping[str, Any]], Iterable[str]] | None = None,
) -> Answers:
    """Arguments first, then the file, then what is asked.

    Args:
        given: parsed by a parser with these questions and `name`.
        ask: shows a question and returns the answer; None: there is nobody to ask.
        show: what a person wants to see of the table that was named, before the questions on its columns.
        look: finds what else stands against what is known, question by question; some of it may be missing.

    Raises:
        ValueError: what is missing, and what no answer can be: all of it.
    """
    known = _read_file(given.answers) | {
        name: value for name in (*QUESTIONS, *FURTHER) if (value := getattr(given, name)) is not None
    }
    if ask is not None:
        for name in [name for name in QUESTIONS if name not in known]:
            known[name] = ask(f"{name}: {QUESTIONS[name]}")
            if name == "table" and show is not None:
                print(show(str(known["table"])))
    if mistakes := [*_find_mistakes(known), *(look(known) if look else ())]:
        raise ValueError("\n".join(mistakes))
    return Answers(name=given.name, **{name: _read(name, value) for name, value in known.items()})


def to_option(name: str) -> str:
    """The argument that answers a question."""
    return f"--{name.replace('_', '-')}"


def list_answered_columns(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(question, column): the columns that questions were answered with, as far as they were."""
    for name in _COLUMNS:
        if is_answered(known, name):
            read = _read(name, known[name])
            yield from ((name, column) for column in (read if isinstance(read, tuple) else (read,)))


def is_answered(known: Mapping[str, Any], name: str) -> bool:
    """Whether there is an answer, right or wrong."""
    return known.get(name) not in (None, "")


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        read = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(  # noqa: TRY004  # what a person wrote, not what a caller handed over
            f"{path}: expected {', '.join([*QUESTIONS, *FURTHER])}; got {type(read).__name__}"
        )
    return {str(name).replace("-", "_"): value for name, value in read.items() if value is not None}


def _find_mistakes(known: Mapping[str, Any]) -> Iterator[str]:
    if unknown := sorted(known.keys() - QUESTIONS.keys() - FURTHER.keys()):
        yield f"--answers: expected {', '.join([*QUESTIONS, *FURTHER])}; got {', '.join(unknown)}"
    if missing := [name for name in QUESTIONS if not is_answered(known, name)]:
        told = "\n".join(f"  {to_option(name)}: {QUESTIONS[name]}" for name in missing)
        yield f"missing, as arguments or in a file that --answers names:\n{told}"
    for name in _NUMBERS:
        if is_answered(known, name) and not str(known[name]).isdecimal():
            yield f"{to_option(name)}: expected a whole number, 0 or more, got {known[name]!r}"
    if all(str(known.get(name)) == "0" for name in _NUMBERS):
        yield "--label-delay-hours: 0, and so is --lead-minutes: targets would be known when they are asked"
    if is_answered(known, "zone") and str(known["zone"]) not in available_timezones():
        yield f"--zone: expected one such as Europe/Paris, got {known['zone']!r}"
    if is_answered(known, "kind"):
        yield from _find_in_kind(known["kind"])


def _find_in_kind(kind: Any) -> Iterator[str]:
    try:
        refuse_classes(kind)
    except ValueError as error:
        yield f"--kind: {error}; --positive names that class where the target is text; got {kind!r}"
        return
    if kind not in _KINDS:
        yield f"--kind: expected {' or '.join(_KINDS)}, got {kind!r}"


def _read(name: str, value: Any) -> Any:
    if name == "key":
        return tuple(str(part).strip() for part in (value if isinstance(value, list) else str(value).split(",")))
    return int(value) if name in _NUMBERS else str(value)
