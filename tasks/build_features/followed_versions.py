"""Every version of a row that the stream was told of, as long as answers may be compared with batch.

`followed_rows` has the last version of what no dataset holds yet. What an answer knew is of the versions of its time:
those of steps that its store held.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg2.extras
from psycopg2.extensions import cursor

from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow

_PARTITIONS_COMPARED = 8  # the latest: so long a partition that is built again is compared again
_PARTITIONS_BEFORE = 4  # are kept, too: answers of the first one rest on a dataset that ended so long before, at most
_PAGE_ROWS = 500
_KEEP = """
insert into followed_versions (use_case, table_name, identity, changes, available_at, row_data, reasons, is_followed,
    position, known_before, known_until) values %s"""
_TEMPLATE = "(%s, %s, %s, %s, %s, %s, %s::text[], %s, %s, %s::timestamptz, %s::timestamptz)"
_READ = """
select version, table_name, identity, changes, available_at, row_data, reasons, is_followed, position, known_before,
    known_until from followed_versions
where use_case = %s and (available_at is null or available_at >= %s) and table_name = any(%s) order by version"""
# What came between the landing and now is in no dataset: the partition is compared with the source once more.
_FORGET_ROWS = """
with forgotten as (delete from followed_rows where use_case = %(use_case)s and available_at < %(end)s returning 1)
update source_checks set checked_at = '-infinity'
where use_case = %(use_case)s and exists (select from forgotten)"""
_FORGET = """
delete from followed_versions where use_case = %s and coalesce(available_at, known_until, '-infinity') < %s"""


@dataclass(frozen=True, kw_only=True)
class ToldStep:
    """Where a step of the stream stands: its number, the log after it, and until when all was known around it."""

    changes: int
    position: int | None
    known_before: datetime | None
    known_until: datetime | None


@dataclass(frozen=True, kw_only=True)
class RowVersion:
    """One row as it was told in a step. `is_followed`: it came into the store; else its partition was taken before."""

    version: int
    table: str
    identity: str
    available_at: datetime | None
    row_data: str | None
    reasons: tuple[str, ...] | None
    is_followed: bool
    step: ToldStep

    @property
    def is_good(self) -> bool:
        """Whether features may see it."""
        return self.row_data is not None and self.reasons is None


def keep_versions(
    at: cursor,
    use_case: UseCase,
    step: ToldStep,
    *,
    followed: Iterable[FollowedRow],
    told: Iterable[FollowedRow] = (),
    gone: Iterable[tuple[str, str]] = (),
) -> None:
    """Keep what a step told, in its transaction: rows that are followed, and those of partitions that were taken.

    `gone` are rows (table, identity) of such partitions that were deleted.
    """
    where = (step.position, step.known_before, step.known_until)
    values: list[tuple[Any, ...]] = [
        (
            use_case.name,
            row.table,
            row.identity,
            step.changes,
            row.available_at,
            row.row_data,
            row.reasons_listed,
            kind,
            *where,
        )
        for kind, rows in ((True, followed), (False, told))
        for row in rows
    ]
    values += [(use_case.name, *place, step.changes, None, None, None, False, *where) for place in gone]
    psycopg2.extras.execute_values(at, _KEEP, values, template=_TEMPLATE, page_size=_PAGE_ROWS)


def read_versions(at: cursor, use_case: UseCase, since: datetime, tables: Sequence[str]) -> list[RowVersion]:
    """The versions of rows of some tables that became known from a moment on, in the order they were told."""
    at.execute(_READ, (use_case.name, since, list(tables)))
    return [
        RowVersion(
            version=row[0],
            table=row[1],
            identity=row[2],
            available_at=row[4],
            row_data=row[5],
            reasons=None if row[6] is None else tuple(row[6]),
            is_followed=row[7],
            step=ToldStep(changes=row[3], position=row[8], known_before=row[9], known_until=row[10]),
        )
        for row in at.fetchall()
    ]


def first_compared(use_case: UseCase, end: datetime) -> datetime:
    """The start of the first partition whose answers are compared, where a dataset ends at a moment."""
    return end - _PARTITIONS_COMPARED * timedelta(days=use_case.grid.days)


def forget_followed(at: cursor, use_case: UseCase, end: datetime) -> None:
    """Delete the rows that a dataset holds which ends at a moment, and versions that no comparison reads any more."""
    at.execute(_FORGET_ROWS, {"use_case": use_case.name, "end": end})
    before = _PARTITIONS_BEFORE * timedelta(days=use_case.grid.days)
    at.execute(_FORGET, (use_case.name, first_compared(use_case, end) - before))
