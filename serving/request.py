"""What comes in: a JSON body, read strictly into events, or refused with the path of what is wrong."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from features.request import RequestField

_TYPES = {
    "varchar": pa.string(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.timestamp("us"),
    "timestamp": pa.timestamp("us"),
}
MAX_EXPLAINED = 16  # events of one request: each takes milliseconds, and the other requests of its batch wait
_MAX_CHARACTERS = 10_000  # of a string that has no pattern of its own
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what PostgreSQL does not store, and half of a pair, which is no UTF-8
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_GREATEST = sys.float_info.max
_EARLIEST, _LATEST = (
    datetime(1900, 1, 1, tzinfo=UTC),
    datetime(2200, 1, 1, tzinfo=UTC),
)  # nothing overflows from here on
_EPOCH, _MICROSECOND = datetime(1970, 1, 1), timedelta(microseconds=1)  # noqa: DTZ001  # naive UTC, as moments are here
_JSON = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}

FieldCheck = Callable[[Any], Any]


class Refusal(ValueError):  # noqa: N818  # reads as the answer it is
    """A body that cannot be answered: where, and what was expected there."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"{path}: expected {expected}, got {got}")
        self.path, self.expected, self.got = path, expected, got

    def at_index(self, index: int) -> "Refusal":
        """The same, with the path of one event of a list."""
        where = f"events[{index}]"
        return Refusal(where if self.path == "body" else f"{where}.{self.path}", self.expected, self.got)

    def to_document(self) -> dict[str, str]:
        return {"error": str(self), "path": self.path, "expected": self.expected}


class _InvalidValue(Exception):  # noqa: N818  # never leaves this module
    """A value is not what its field wants."""


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """The events of a body that has no fault."""

    events: list[dict[str, Any]]  # as they came
    rows: list[tuple[Any, ...]]  # checked and converted, a column a field
    is_list: bool


@dataclass(frozen=True)
class _Field:
    name: str
    required: bool
    expected: str
    check: FieldCheck


class RequestReader:
    """Reads bodies of one use case: one event, or a list of at most `max_events`."""

    def __init__(self, fields: Sequence[RequestField], *, max_events: int) -> None:
        self._fields = tuple(_Field(f.name, f.required, describe_expected(f), _MAKERS[f.kind](f)) for f in fields)
        self._names = frozenset(field.name for field in self._fields)
        self._schema = pa.schema([(f.name, _TYPES[f.kind]) for f in fields])
        self._max_events = max_events

    def read(self, body: bytes | bytearray, *, explain: bool = False) -> ParsedRequest:
        """The events of one body, of which fewer may be explained than answered.

        Raises:
            Refusal: naming the first thing that is wrong.
        """
        document = _parse_json(body)
        if isinstance(document, list):
            most = min(self._max_events, MAX_EXPLAINED) if explain else self._max_events
            if not 1 <= len(document) <= most:
                raise Refusal("body", f"1 to {most} events{' to explain' if explain else ''}", f"{len(document)}")
            return ParsedRequest(
                events=document, rows=[self._row(event, index) for index, event in enumerate(document)], is_list=True
            )
        return ParsedRequest(events=[document], rows=[self._row(document, None)], is_list=False)

    def table(self, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
        """Rows of any number of bodies as one table of events; moments are naive UTC."""
        columns = zip(*rows, strict=True) if rows else ([] for _ in self._schema)
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)], self._schema
        )

    def list_events(self, rows: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
        """Rows of any number of bodies as events; moments are microseconds since 1970."""
        return [
            {
                field.name: (value - _EPOCH) // _MICROSECOND if isinstance(value, datetime) else value
                for field, value in zip(self._fields, row, strict=True)
            }
            for row in rows
        ]

    def _row(self, event: Any, index: int | None) -> tuple[Any, ...]:
        try:
            return self._check_event(event)
        except Refusal as refusal:
            raise (refusal if index is None else refusal.at_index(index)) from None

    def _check_event(self, event: Any) -> tuple[Any, ...]:
        if type(event) is not dict:
            raise Refusal("body", "an object with the fields of one event", _show_value(event))
        row = []
        for field in self._fields:
            value = event.get(field.name)
            if value is None:
                if field.required:
                    raise Refusal(field.name, field.expected, "null" if field.name in event else "nothing")
            else:
                try:
                    value = field.check(value)
                except _InvalidValue:
                    raise Refusal(field.name, field.expected, _show_value(value)) from None
            row.append(value)
        if not event.keys() <= self._names:
            unknown = min(event.keys() - self._names)
            raise Refusal(_shorten(unknown), f"only {', '.join(f.name for f in self._fields)}", "an unknown field")
        return tuple(row)


def describe_expected(field: RequestField) -> str:
    """What a field may be, for people."""
    match field.kind:
        case "bigint":
            return "a whole number from {} to {}".format(*_bounds(field))
        case "double":
            return f"a number{_describe_bounds(field)}"
        case "boolean":
            return "true or false"
        case "date":
            return f"a day, like {json.dumps(field.example)}"
        case "timestamp":
            return f"a moment with its time zone, like {json.dumps(field.example)}"
    pattern = f" ({field.pattern})" if field.pattern else f" of up to {_MAX_CHARACTERS} characters"
    return f"a string like {json.dumps(field.example)}{pattern}"


def _describe_bounds(field: RequestField) -> str:
    both = (("from", field.minimum), ("to", field.maximum))
    return "".join(f" {word} {bound:g}" for word, bound in both if bound is not None)


def _parse_json(body: bytes | bytearray) -> Any:
    if not body:
        raise Refusal("body", "JSON of an event or a list of events, as application/json", "nothing")
    try:
        return json.loads(body.decode("utf-8"))
    except RecursionError:
        raise Refusal("body", "JSON of an event or a list of events", "JSON that is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise Refusal("body", "JSON of an event or a list of events", _shorten(str(error))) from None


def _make_string_check(field: RequestField) -> FieldCheck:
    matches = re.compile(field.pattern or rf"(?s:.{{0,{_MAX_CHARACTERS}}})", re.ASCII).fullmatch

    def check(value: Any) -> str:
        if type(value) is not str or not matches(value) or _NO_TEXT.search(value):
            raise _InvalidValue
        return value

    return check


def _bounds(field: RequestField) -> tuple[float, float]:
    """The least and the greatest whole number a field may be."""
    return -(2**63) if field.minimum is None else field.minimum, 2**63 - 1 if field.maximum is None else field.maximum


def _make_integer_check(field: RequestField) -> FieldCheck:
    least, most = _bounds(field)

    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:  # True is an int to Python, and none here
            raise _InvalidValue
        return value

    return check


def _make_number_check(field: RequestField) -> FieldCheck:
    least = -math.inf if field.minimum is None else field.minimum
    most = math.inf if field.maximum is None else field.maximum

    def check(value: Any) -> float:
        if type(value) not in {int, float} or abs(value) > _GREATEST or not least <= value <= most:  # NaN is not within
            raise _InvalidValue
        return float(value)

    return check


def _check_boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _InvalidValue
    return value


def _parse_day(value: Any) -> datetime:
    """The midnight it begins with."""
    if type(value) is not str or not _DAY.fullmatch(value):
        raise _InvalidValue
    return _parse_moment(f"{value}T00:00:00Z")


def _parse_moment(value: Any) -> datetime:
    if type(value) is not str or not _MOMENT.fullmatch(value):
        raise _InvalidValue
    try:
        moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # a 30 February, a zone of 99 hours
        raise _InvalidValue from None
    if not _EARLIEST <= moment < _LATEST:
        raise _InvalidValue
    return moment.replace(tzinfo=None)


_MAKERS: Mapping[str, Callable[[RequestField], FieldCheck]] = {
    "varchar": _make_string_check,
    "bigint": _make_integer_check,
    "double": _make_number_check,
    "boolean": lambda _: _check_boolean,
    "date": lambda _: _parse_day,
    "timestamp": lambda _: _parse_moment,
}


def _show_value(value: Any) -> str:
    """A value as an error message may show it: short, and never more than it was."""
    return _JSON[type(value)] if isinstance(value, dict | list | bool | None) else _shorten(json.dumps(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
