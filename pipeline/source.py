"""Where a use case's rows come from: its tables, and the grid by which they are taken."""

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Literal

from pydantic import Field

from pipeline.fields import Block, Cron, Identifier, Share


class Table(Block):
    """One source table. Rows belong to the partition in which they became known (`available_at`)."""

    key: tuple[Identifier, ...] = Field(min_length=1)
    available_at: Identifier
    min_rows: int = Field(ge=0)
    max_rows: int = Field(gt=0)
    max_quarantined_share: Share

    def _contradictions(self) -> Iterator[str]:
        if self.min_rows > self.max_rows:
            yield f"min_rows: expected at most max_rows ({self.max_rows}), got {self.min_rows}"


class Watermark(Block):
    """A column whose greatest value says: whatever became known before this has been committed."""

    table: Identifier
    column: Identifier


class Source(Block):
    """Where rows come from and by which grid they are taken. Row limits of a table are per partition.

    `recheck_partitions` says how many partitions before the latest are compared with the source after each landing: a
    row that is committed later than that is found by the comparison of all of them, once a week.

    `follow` says how changes reach the online store between two partitions: `cdc` reads the source's log (logical
    decoding), `poll` asks its tables; null: not at all. A row may be committed `horizon_seconds` after it became known;
    what is committed later still is found by the comparison above. The source's clock, less the horizon, says until
    when all is known; where its data live by another clock a `watermark` does.

    `last_partition` is for a source that has ended: nothing is scheduled after it. None: rows still arrive.
    """

    first_partition: date
    last_partition: date | None
    partition_days: int = Field(gt=0)
    recheck_partitions: int = Field(ge=0)
    follow: Literal["cdc", "poll"] | None
    horizon_seconds: float = Field(ge=0)
    watermark: Watermark | None
    cron: Cron
    tables: Mapping[Identifier, Table] = Field(min_length=1)

    @property
    def horizon(self) -> timedelta:
        """How far behind the source's clock all is known; a watermark says itself what is."""
        return timedelta(seconds=0 if self.watermark else self.horizon_seconds)

    @property
    def followed_tables(self) -> set[str]:
        """What whoever follows it reads: its tables, and that of the watermark."""
        return {*self.tables, *([self.watermark.table] if self.watermark else [])}

    def _contradictions(self) -> Iterator[str]:
        after_days = (self.last_partition - self.first_partition).days if self.last_partition else 0
        if after_days < 0 or after_days % self.partition_days:
            yield (
                f"last_partition: expected a day that is a multiple of {self.partition_days} days after"
                f" first_partition ({self.first_partition}), got {self.last_partition}"
            )
