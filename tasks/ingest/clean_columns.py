"""Raw columns as the suite of their table declares them: by the names they have here, in the types of clean data.

A value that is none of its kind (an infinite date, a NaN among exact numbers) is null there, and a fault of its row.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from adapters.column_types import CLEAN_TYPES, UTC_MICROSECONDS
from adapters.copying import is_unread, name_unread
from expectations.vocabulary import DeclaredColumn, Kind, Suite

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # of whatever clock
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
Faults = Mapping[int, Mapping[str, str]]  # position of a row -> column -> the text of a value that is none of its kind
_WORDS: Mapping[Kind, str] = {
    "text": "a text",
    "boolean": "true or false",
    "timestamp": "a moment from the year 1 to 9999",
    "date": "a day from the year 1 to 9999",
    "decimal": "a number of so many digits",
    "integer": "a whole number of 64 bits",
    "float": "a number",
}


_RAW_TYPES: Mapping[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (pa.types.is_string, pa.types.is_large_string),
    "integer": (pa.types.is_signed_integer,),
    "float": (pa.types.is_float32, pa.types.is_float64, pa.types.is_decimal),
    "boolean": (pa.types.is_boolean,),
    "date": (pa.types.is_date32,),
}


def clean_type(column: DeclaredColumn) -> pa.DataType:
    """The Arrow type of a declared column in clean data."""
    known = CLEAN_TYPES[column.kind]
    if known is not None:
        return known
    assert column.digits is not None, "a decimal has its digits"
    return pa.decimal128(*column.digits)


def can_be(raw: pa.DataType, column: DeclaredColumn) -> bool:
    """Whether a raw column of this Arrow type is what its suite declares."""
    types = pa.types
    if column.kind == "timestamp":
        return types.is_timestamp(raw) and raw.unit != "ns" and (raw.tz is None) == (column.zone is not None)
    if column.kind == "decimal":
        return types.is_decimal(raw) and _holds(clean_type(column), raw)
    return any(is_it(raw) for is_it in _RAW_TYPES[column.kind])


def _holds(kind: pa.DataType, other: pa.DataType) -> bool:
    """Whether a decimal type has every number of another."""
    whole = kind.precision - kind.scale
    return bool(kind.scale >= other.scale and whole >= other.precision - other.scale)


def describe_declared(column: DeclaredColumn) -> str:
    """A kind as messages name it: "decimal(10, 2)"."""
    digits = f"({column.digits[0]}, {column.digits[1]})" if column.digits else ""
    return f"{column.kind}{digits}" + (f" of the zone {column.zone}" if column.zone else "")


def describe_raw(kind: pa.DataType) -> str:
    """A raw type as messages name it."""
    is_clock = pa.types.is_timestamp(kind) and kind.tz is None
    return f"{kind}" + (", which has no time zone: declare that of its clock" if is_clock else "")


def name_columns(raw: pa.Table, suite: Suite) -> pa.Table:
    """Raw rows with declared columns under the names that they have here.

    An undeclared column of such a name is left out: it is not the one that is declared.
    """
    names = {source: name for source, name in suite.by_source.items() if source != name}
    if not names:
        return raw
    taken = {*suite.columns} - {*suite.by_source}  # names that no declared column has in the source
    names |= {name_unread(source): name_unread(name) for source, name in names.items()}
    taken |= {name_unread(name) for name in taken}
    kept = [name for name in raw.column_names if name not in taken]
    return raw.select(kept).rename_columns([names.get(name, name) for name in kept])


def list_undeclared(schema: pa.Schema, suite: Suite) -> list[str]:
    """The columns of raw rows, as the source names them, that the suite does not declare."""
    return [name for name in schema.names if name not in suite.by_source and not is_unread(name)]


def read_canonical(named: pa.Table, suite: Suite) -> tuple[pa.Table, Faults]:
    """Rows in the canonical schema, and those that have a value which is none of its kind, with the text of each.

    `named`: with the names that columns have here; their types have been checked.
    """
    columns, faults = dict[str, pa.ChunkedArray](), defaultdict[int, dict[str, str]](dict)
    for name, declared in suite.columns.items():
        columns[name] = _convert(named[name], declared)
        for position, text in _list_lost(named, name, columns[name]).items():
            faults[position][name] = text
    schema = pa.schema([(name, clean_type(declared)) for name, declared in suite.columns.items()])
    return pa.table(columns, schema), {place: faults[place] for place in sorted(faults)}


def explain_faults(faults: Faults, suite: Suite) -> dict[int, tuple[str, ...]]:
    """Why each of the rows is bad."""
    return {
        place: tuple(
            f"{name} must be {_WORDS[suite.columns[name].kind]}: {name} = {text}" for name, text in row.items()
        )
        for place, row in faults.items()
    }


def drop_rows(rows: pa.Table, places: Collection[int]) -> pa.Table:
    """The other rows."""
    if not places:
        return rows
    return rows.filter(pa.array([place not in places for place in range(rows.num_rows)], pa.bool_()))


def _list_lost(named: pa.Table, name: str, values: pa.ChunkedArray) -> dict[int, str]:
    """The values that were there, and are not any more: position -> text."""
    lost = dict[int, str]()
    if (unread := name_unread(name)) in named.column_names:
        lost = {place: text for place, text in enumerate(named[unread].to_pylist()) if text is not None}
    if values.null_count > named[name].null_count:
        gone = pc.and_(pc.is_null(values), pc.is_valid(named[name])).to_pylist()
        lost |= {place: str(named[name][place].cast(pa.string())) for place, is_gone in enumerate(gone) if is_gone}
    return lost


def _convert(column: pa.ChunkedArray, declared: DeclaredColumn) -> pa.ChunkedArray:
    kind = clean_type(declared)
    if pa.types.is_decimal(column.type) and declared.kind == "float":
        return column.cast(pa.string()).cast(kind)  # to the nearest number, whatever its digits
    if declared.zone is not None and column.type.tz is None:
        return _place_clock(column.cast(pa.timestamp("us")), ZoneInfo(declared.zone))
    return column.cast(kind)


def _place_clock(column: pa.ChunkedArray, zone: ZoneInfo) -> pa.ChunkedArray:
    """The moments of a clock, each distinct one worked out once; null where it has no year that Python knows."""
    coded = column.combine_chunks().cast(pa.int64()).dictionary_encode()
    moments = pa.array([_find_moment(clock, zone) for clock in coded.dictionary.to_pylist()], pa.int64())
    return pa.chunked_array([moments.take(coded.indices).cast(UTC_MICROSECONDS)])


def _find_moment(clock: int, zone: ZoneInfo) -> int | None:
    """When a clock shows this; of an hour that comes twice the later, of one that is left out an hour later.

    Both are what the lesser of the two offsets gives, and what PostgreSQL's `at time zone` says.
    """
    shown = (_EPOCH + clock * _MICROSECOND).replace(tzinfo=zone)
    offsets = [shown.replace(fold=fold).utcoffset() for fold in (0, 1)]
    ahead = min(offset for offset in offsets if offset is not None)
    moment = clock - ahead // _MICROSECOND
    return moment if _micros(_FIRST) <= moment <= _micros(_LAST) else None


def _micros(moment: datetime) -> int:
    return (moment.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
