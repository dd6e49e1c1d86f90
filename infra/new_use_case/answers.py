"""What only a person knows of a new use case: read from arguments and a file, asked on a terminal, or named as missing.

Words of columns are those that the source has.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    "zone": "the zone of timestamps that say none, such as Europe/Paris",
    "title": "what the use case is called",
    "owner": "who answers for it",
    "meaning": "what the target means, in words",
}
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

    @property
    def columns(self) -> Mapping[str, tuple[str, ...]]:
        """Question -> the columns that it was answered with."""
        known = (self.label_known_at,) if self.label_known_at else ()
        return {
            "event_time": (self.event_time,),
            "available_at": (self.available_at,),
            "key": self.key,
            "target": (self.target,),
            "label_known_at": known,
        }


def add_questions(parser: argparse.ArgumentParser) -> None:
    """An argument for each question, and one for a file of answers."""
    for name, text in {**QUESTIONS, **FURTHER}.items():
        parser.add_argument(_option(name), help=text)
    parser.add_argument("--answers", type=Path, help="a YAML file of these, such as `event_time: placed_at`")


def collect_answers(
    given: argparse.Namespace, ask: Callable[[str], str] | None, show: Callable[[str], str] | None = None
) -> Answers:
    """Arguments first, then the file, then what is asked.

    Args:
        given: parsed by a parser with these questions and `name`.
        ask: shows a question and returns the answer; None: there is nobody to ask.
        show: what a person wants to see of the table that was named, before the questions on its columns.

    Raises:
        ValueError: what is missing, all of it, or what no answer can be.
    """
    known = _read_file(given.answers) | {
        name: value for name in (*QUESTIONS, *FURTHER) if (value := getattr(given, name)) is not None
    }
    if ask is not None:
        for name in [name for name in QUESTIONS if name not in known]:
            known[name] = ask(f"{name}: {QUESTIONS[name]}")
            if name == "table" and show is not None:
                print(show(str(known["table"])))
    if missing := [name for name in QUESTIONS if known.get(name) in (None, "")]:
        told = "\n".join(f"  {_option(name)}: {QUESTIONS[name]}" for name in missing)
        raise ValueError(f"missing, as arguments or in a file that --answers names:\n{told}")
    if problems := list(_find_problems(known)):
        raise ValueError("\n".join(problems))
    return Answers(name=given.name, **{name: _read(name, value) for name, value in known.items()})


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        read = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(read, dict) or (unknown := read.keys() - QUESTIONS.keys() - FURTHER.keys()):
        unknown_names = ", ".join(map(str, unknown)) if isinstance(read, dict) else type(read).__name__
        raise ValueError(f"{path}: expected {', '.join([*QUESTIONS, *FURTHER])}; got {unknown_names}")
    return {name.replace("-", "_"): value for name, value in read.items() if value is not None}


def _find_problems(known: Mapping[str, Any]) -> Iterator[str]:
    for name in _NUMBERS:
        if not str(known[name]).isdigit():
            yield f"{_option(name)}: expected a whole number, 0 or more, got {known[name]!r}"
    try:
        refuse_classes(known["kind"])
    except ValueError as error:
        yield f"--kind: {error}; --positive names that class where the target is text; got {known['kind']!r}"
        return
    if known["kind"] not in _KINDS:
        yield f"--kind: expected {' or '.join(_KINDS)}, got {known['kind']!r}"


def _read(name: str, value: Any) -> Any:
    if name == "key":
        return tuple(part.strip() for part in (value if isinstance(value, list) else str(value).split(",")))
    return int(value) if name in _NUMBERS else str(value)
