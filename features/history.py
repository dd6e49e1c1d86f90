"""A stream's events for all the points of an interval: read once, and sorted for each of its series.

A key is a number (of each part's value, one after another as the digits of a mixed base), and so is a moment: both
together are one whole number, and where a span begins or ends is one search among sorted ones.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.engine import Span, moment_sql
from features.masked import Array, MaskedColumn
from features.series import Series
from features.sorted_events import Places, SortedEvents

_READ_ROWS = 1 << 17
_MOST = 1 << 31  # keys, or numbers of a clock: a product of two of them is a whole number of 64 bits


class Clock:
    """Numbers for moments, in their order: steps of the longest unit that all of some moments are whole steps of.

    Where that makes too many (moments of a year that differ by microseconds), the number is that among the moments.
    """

    def __init__(self, moments: Places) -> None:
        self._base = int(moments.min()) if len(moments) else 0
        self._unit = int(np.gcd.reduce(moments - self._base)) or 1
        self._table: Places | None = None
        self.size = int(moments.max(initial=self._base) - self._base) // self._unit + 1
        if self.size > _MOST:
            self._table = np.unique(moments)
            self.size = len(self._table)

    def before(self, moments: Places) -> Places:
        """How many numbers lie before each moment: the number of one that was given at first."""
        if self._table is not None:
            return self._table.searchsorted(moments)
        numbers = moments - (self._base - self._unit + 1)
        numbers //= self._unit
        return np.clip(numbers, 0, self.size, out=numbers)


class Stream:
    """The events of one stream, in any order: what its series need of them, and what some point can see.

    Each column is an array; that of a key or text holds numbers, which stand for the values in `words`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, series: Sequence[Series], interval: Span) -> None:
        events = read_coded(
            connection.sql(_events_sql(series, interval)), {name for item in series for name in item.key}
        )
        self.rows = events.num_rows
        self.words = {
            f.name: events[f.name].chunk(0).dictionary for f in events.schema if pa.types.is_dictionary(f.type)
        }
        self.columns = {}
        for name in events.column_names:
            self.columns[name] = _column(events[name])
            events = events.drop_columns([name])

    def column(self, name: str, kind: str) -> MaskedColumn:
        """Values by row; of a text their numbers."""
        values, valid = self.columns[name]
        if kind == "varchar" or name not in self.words:
            return MaskedColumn(values, valid)
        return MaskedColumn(_whole(self.words[name])[values] if len(self.words[name]) else values, valid)

    def in_order(self, rows: Places, fields: Sequence[str]) -> Places:
        """Which of some rows comes first, second and so on in the order of their records."""
        records = {"place": pa.array(np.arange(len(rows)))}
        for name in fields:
            column = MaskedColumn(*(each[rows] for each in self.columns[name]))
            records[name] = to_dictionary(column, self.words[name]) if name in self.words else to_arrow(column)
        with duckdb.connect() as connection:
            connection.register("records", pa.table(records))
            query = f"select place from records order by {', '.join(dict.fromkeys(fields))}"
            return np.asarray(connection.sql(query).fetchnumpy()["place"])


class KeyNumbers:
    """Numbers for the keys that events have. A key that none has may share its number with others of that kind."""

    def __init__(self, stream: Stream, key: Sequence[str]) -> None:
        self._values = [stream.words[name] for name in key]
        self._distinct: dict[int, Places] = {}  # where numbers became too many: those that events have
        rows, digits, size = stream.rows, [stream.columns[name].values for name in key], 1
        for place, values in enumerate(self._values):
            size *= len(values) + 1
            if size > _MOST:
                self._distinct[place] = np.unique(self._number(digits[: place + 1], rows))
                size = len(self._distinct[place]) + 1
        self.of_events = self._number(digits, rows)
        for name in key:
            self.of_events[~stream.columns[name].valid] = -1

    def number(self, columns: Sequence[pa.Array], rows: int) -> Places:
        """The number of each row's key; below 0 where a part of it is missing."""
        numbers = self._number([_digits(c, values) for c, values in zip(columns, self._values, strict=True)], rows)
        for column in columns:
            if column.null_count:
                numbers[column.is_null().to_numpy(zero_copy_only=False)] = -1
        return numbers

    def _number(self, digits: Sequence[Places], rows: int) -> Places:
        number = np.zeros(rows, np.int64)
        for place, digit in enumerate(digits):
            number = number * (len(self._values[place]) + 1) + digit
            if (distinct := self._distinct.get(place)) is not None:
                nearest = np.minimum(distinct.searchsorted(number), len(distinct) - 1)
                number = np.where(distinct[nearest] == number, nearest, len(distinct))
        return number


class History(SortedEvents):
    """The events of one series, of every key. `words` are what the numbers in a column of text stand for."""

    def __init__(self, series: Series, stream: Stream) -> None:
        self._keys = KeyNumbers(stream, series.key)
        moments, there = stream.column(series.moment, "timestamp")
        rows = np.flatnonzero((self._keys.of_events >= 0) & there)
        self._clock = Clock(moments[rows])
        at, order = _sorted(self._keys.of_events[rows] * (self._clock.size + 1) + self._clock.before(moments[rows]))
        rows = rows[order]
        if follows := [fields for fields in series.orders[:1] if fields[0] == series.moment]:
            _settle(at, rows, stream, follows[0])
        columns = {
            name: MaskedColumn(*(each[rows] for each in stream.column(name, kind)))
            for name, kind in series.columns.items()
        }
        for number, fields in enumerate(series.orders[len(follows) :], len(follows)):
            ranks = np.empty(len(rows), np.int64)
            ranks[stream.in_order(rows, fields)] = np.arange(len(rows))
            columns[f"rank{number}"] = MaskedColumn(ranks, np.ones(len(rows), np.bool_))
        sums = _running([stream.column(name, "bigint").values[rows] for name in series.sums], len(rows))
        super().__init__(series, at, sums, columns)
        self.sum_kind = np.int32 if sums.dtype == np.int32 else np.float64  # what holds each exactly
        self.words = {name: stream.words[name] for name, kind in series.columns.items() if kind == "varchar"}
        self.kinds = {name: "bigint" if name in self.words else kind for name, kind in self.kinds.items()}

    def slots(self, points: pa.Table) -> Places:
        """The number of each point's key; below 0 where a part of it is missing."""
        return self._keys.number([points[name].combine_chunks() for name in self.series.on], points.num_rows)

    def bounds(self, slots: Places, *moments: Places) -> NDArray[np.int64]:
        keys = slots * (self._clock.size + 1)
        wanted = np.stack([keys + self._clock.before(moment) for moment in moments])
        # Searched in order, each number lies near the one before, which is still in the processor's cache.
        _, order = _sorted(wanted[0])
        places = np.empty(wanted.shape, np.int64)
        places[:, order] = self._at.searchsorted(wanted[:, order])
        return places


def read_coded(rows: duckdb.DuckDBPyRelation, names: Collection[str]) -> pa.Table:
    """The rows as a table; a number stands for each text, and for each value of these columns."""
    reader = rows.to_arrow_reader(_READ_ROWS)
    schema = pa.schema(
        f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in names or f.type == pa.string() else f
        for f in reader.schema
    )
    none = pa.RecordBatch.from_pylist([], reader.schema)
    return pa.Table.from_batches([_encoded(batch, schema) for batch in (none, *reader)], schema).unify_dictionaries()


def _events_sql(series: Sequence[Series], interval: Span) -> str:
    names, conditions = dict.fromkeys(item.moment for item in series), []
    for item in series:
        names |= dict.fromkeys([*item.key, *item.sums, *item.columns, *(f for order in item.orders for f in order)])
        conditions.append(f"{item.moment} >= {moment_sql(interval.start - (item.reach or timedelta(0)))}")
    return f"select {', '.join(names)} from {series[0].stream} where {' or '.join(dict.fromkeys(conditions))}"


def _sorted(numbers: Places) -> tuple[Places, Places]:
    """Numbers from 0 on in order, and where each was; below 0 anywhere.

    With its place below it a number is sorted several times as fast as places are by their numbers.
    """
    bits = len(numbers).bit_length()
    if not len(numbers) or int(numbers.max()) >> (63 - bits):
        order = np.argsort(numbers)
        return numbers[order], order
    both = np.sort(numbers << bits | np.arange(len(numbers)))
    return both >> bits, both & ((1 << bits) - 1)


def _settle(at: Places, rows: Places, stream: Stream, fields: Sequence[str]) -> None:
    """Put the events of one key and moment in the order of their records."""
    same = np.append(at[1:] == at[:-1], False)
    tied = np.flatnonzero(same | np.roll(same, 1))
    if len(tied):
        ranks = np.empty(len(tied), np.int64)
        ranks[stream.in_order(rows[tied], fields)] = np.arange(len(tied))
        rows[tied] = rows[tied][np.lexsort((ranks, at[tied]))]


def _running(values: Sequence[Places], rows: int) -> Array:
    """Totals up to each event, with a row of zeros before the first; as narrow as they go."""
    fits = all(np.abs(each, dtype=np.float64).sum() < _MOST for each in values)  # 64 bits would not hold every sum
    totals = np.zeros((rows + 1, len(values)), np.int32 if fits else np.int64)
    for number, each in enumerate(values):
        np.cumsum(each, dtype=totals.dtype, out=totals[1:, number])
    return totals


def _digits(column: pa.DictionaryArray, values: pa.Array) -> Places:
    """Where each of a column's values is among others; as many as there are, where it is not."""
    places = _whole(pc.index_in(column.dictionary.cast(values.type), values), missing=len(values))
    return np.append(places, len(values))[_whole(column.indices)]


def _column(column: pa.ChunkedArray) -> MaskedColumn:
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.indices for chunk in column.chunks])
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if not column.null_count:
        return MaskedColumn(column.to_numpy(), np.broadcast_to(np.True_, len(column)))
    return MaskedColumn(
        column.fill_null(False if pa.types.is_boolean(column.type) else 0).to_numpy(), column.is_valid().to_numpy()
    )


def to_arrow(column: MaskedColumn, kind: pa.DataType | None = None) -> pa.Array:
    """A column as Arrow has it, of a type or of its own."""
    return pa.array(column.values, kind, mask=None if column.valid.all() else ~column.valid)


def to_dictionary(column: MaskedColumn, words: pa.Array) -> pa.Array:
    """A column of numbers as what they stand for."""
    return pa.DictionaryArray.from_arrays(to_arrow(column).cast(pa.int32()), words)


def _encoded(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    both = zip(batch.columns, schema.types, strict=True)
    columns = [column.dictionary_encode() if pa.types.is_dictionary(kind) else column for column, kind in both]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _whole(array: pa.Array, missing: int = 0) -> Places:
    """Whole numbers, or moments in microseconds since 1970."""
    whole = array.cast(pa.int64())
    return np.asarray((whole.fill_null(missing) if whole.null_count else whole).to_numpy(zero_copy_only=False))
