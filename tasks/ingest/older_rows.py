"""Which rows are earlier versions of others, by their key."""

import functools
from collections.abc import Container
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.source import Table
from tasks.ingest.arrow_checks import settle_zeros


def find_older_rows(typed: pa.Table, table: Table, bad_rows: Container[int] = ()) -> list[int]:
    """Positions of the good rows whose key another good row has that became known later, or lies behind it.

    Nulls are equal; rows whose key is nothing else do not count.
    """
    keys = [f"key{number}" for number in range(len(table.key))]
    rows = pa.table([settle_zeros(typed[name]) for name in table.key], keys)
    good = pa.array([place not in bad_rows for place in range(typed.num_rows)], pa.bool_())
    named = functools.reduce(pc.or_, [pc.is_valid(rows[key]) for key in keys])
    rows = rows.append_column("known", typed[table.available_at])
    rows = rows.append_column("place", pa.array(range(typed.num_rows), pa.int64())).filter(pc.and_(named, good))
    rows = rows.sort_by([(name, "ascending") for name in (*keys, "known", "place")])
    before, after = rows.slice(0, max(rows.num_rows - 1, 0)), rows.slice(1)
    same = functools.reduce(pc.and_, [_equal(before[key], after[key]) for key in keys])
    return sorted(before.filter(same)["place"].to_pylist())


def _equal(one: Any, other: Any) -> Any:
    """Where two columns have the same value, null included."""
    both = pc.and_(pc.is_null(one), pc.is_null(other))
    return pc.or_(pc.fill_null(pc.equal(one, other), False), both)  # noqa: FBT003
