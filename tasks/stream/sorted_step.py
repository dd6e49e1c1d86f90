"""What is to be done with a step of the source: rows to follow, and those of partitions that were taken."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

import psycopg2.extras
from psycopg2.extensions import cursor

from pipeline.partitions import Grid
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow
from tasks.stream.read_tables import Held
from tasks.stream.source_step import SourceStep

_PAGE_ROWS = 500
_MICROSECOND = timedelta(microseconds=1)
_KEEP = """
insert into followed_rows (use_case, table_name, identity, available_at, row_data, reasons, changes) values %s
on conflict (use_case, table_name, identity) do update set available_at = excluded.available_at,
    row_data = excluded.row_data, reasons = excluded.reasons, changes = excluded.changes"""


class SortedStep(NamedTuple):
    """Rows to keep; those of partitions that were taken, which stay out; and the starts of partitions to take again."""

    fresh: list[FollowedRow]
    late: list[FollowedRow]
    gone: list[tuple[str, str]]
    retakes: set[datetime]


def sort_step(step: SourceStep, held: Held, since: datetime, grid: Grid) -> SortedStep:
    """What became known from `since` on is followed; a partition before is taken again where it is not as it was taken.

    `held` are the rows that were kept, by table and identity.
    """
    fresh, late, gone, retakes = sorted_step = SortedStep([], [], [], set())
    # Of a row that is gone, when it became known is not told: comparing one partition compares the latest ones.
    last_partition = grid.containing(since - _MICROSECOND).start
    for place, row in step.rows.items():
        if row == held.get(place):
            continue
        if row.available_at >= since:
            fresh.append(row)
        else:
            late.append(row)
            retakes.add(grid.containing(row.available_at).start)
            fresh += _bury(held.get(place))  # it was moved back
    emptied = (place for place in held if place[0] in step.truncated and place not in step.rows)
    for place in sorted({*step.gone, *emptied}):
        fresh += _bury(held.get(place))
        if place not in held:
            gone.append(place)
            retakes.add(last_partition)
    if step.truncated:
        retakes.add(last_partition)
    return sorted_step


def _bury(held: FollowedRow | None) -> list[FollowedRow]:
    return [replace(held, row_data=None, reasons=None)] if held is not None and held.row_data is not None else []


def keep_rows(at: cursor, use_case: UseCase, rows: Sequence[FollowedRow], number: int) -> None:
    """Keep the rows that a step tells, in its transaction."""
    values = [
        (use_case.name, row.table, row.identity, row.available_at, row.row_data, row.reasons_listed, number)
        for row in rows
    ]
    psycopg2.extras.execute_values(
        at, _KEEP, values, template="(%s, %s, %s, %s, %s, %s::text[], %s)", page_size=_PAGE_ROWS
    )
