"""What changes of sources, and of the streams that are made of them, as Arrow tables."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

_MOST_CHUNKS = 16  # each change leaves one or two, and each costs as much as its rows


@dataclass(frozen=True, kw_only=True)
class SourceKey:
    """The columns that tell a source's rows apart, and the one that says when a row became known."""

    identity: tuple[str, ...]
    available_at: str


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """Rows of one source, as they lie in clean files, in place of those of their identity; and identities that go."""

    rows: pa.Table
    gone: pa.Table


@dataclass(frozen=True)
class StreamChange:
    """Rows that came into a stream, and rows that went."""

    coming: pa.Table
    going: pa.Table

    @property
    def rows(self) -> pa.Table:
        """All of them."""
        return pa.concat_tables([self.coming, self.going])

    @classmethod
    def between(cls, old: pa.Table, new: pa.Table) -> "StreamChange":
        """What has to come and to go, so that one becomes the other."""
        return cls(_subtract(new, old), _subtract(old, new))

    def divide(self, moment: str, split: datetime) -> tuple["StreamChange", "StreamChange"]:
        """What changes of rows before a moment (naive UTC), and of later ones."""
        later = [is_later(rows[moment], split) for rows in (self.coming, self.going)]
        coming, going = (pc.invert(each) for each in later)
        earlier = StreamChange(self.coming.filter(coming), self.going.filter(going))
        return earlier, StreamChange(self.coming.filter(later[0]), self.going.filter(later[1]))

    def apply(self, rows: pa.Table, moment: str) -> pa.Table:
        """Rows of the stream as they are after it. Those that go are looked for among those of their moment.

        Raises:
            ValueError: one that goes is not there.
        """
        if self.going.num_rows:
            near = pc.is_in(rows[moment], value_set=self.going[moment].combine_chunks())
            left, held = _subtract(rows.filter(near), self.going), rows.num_rows
            rows = pa.concat_tables([rows.filter(pc.invert(near)), left])
            if rows.num_rows != held - self.going.num_rows:
                raise ValueError("what a change takes away is not all there: does each row have the grain declared?")
        rows = pa.concat_tables([rows, self.coming]) if self.coming.num_rows else rows
        return rows.combine_chunks() if rows[moment].num_chunks > _MOST_CHUNKS else rows

    def then(self, later: "StreamChange") -> "StreamChange":
        """This change and one after it."""
        return StreamChange(pa.concat_tables([self.coming, later.coming]), pa.concat_tables([self.going, later.going]))


def is_later(moments: pa.ChunkedArray, split: datetime) -> pa.ChunkedArray:
    """Which moments are a naive one in UTC, or later; nothing is not."""
    return pc.fill_null(pc.greater_equal(moments, pa.scalar(split, moments.type)), pa.scalar(value=False))


def _subtract(rows: pa.Table, others: pa.Table) -> pa.Table:
    """Rows beyond those that are among others, of equal ones as many as are left."""
    left = Counter(to_tuples(others))
    kept = []
    for place, row in enumerate(to_tuples(rows)):
        if left[row] > 0:
            left[row] -= 1
        else:
            kept.append(place)
    return rows.take(pa.array(kept, pa.int64()))


def to_tuples(rows: pa.Table) -> Iterable[tuple[object, ...]]:
    """The rows of a table; equal ones are the same row in SQL, too."""
    return zip(*(_to_values(column) for column in rows.columns), strict=True)


def _to_values(column: pa.ChunkedArray) -> list[object]:
    values: list[object] = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        return [math.nan if value != value else value for value in values]  # noqa: PLR0124  # one is itself
    return values
