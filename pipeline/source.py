"""Where a use case's rows come from: its tables, and the grid by which they are taken."""

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.fields import Block, Cron, Identifier, RelationName, Share, split_relation


class Table(Block):
    """One source table. Rows belong to the partition in which they became known (`available_at`).

    `duplicates` says what several rows of one key in a partition are: `stop`, a fault that blocks it; `keep_latest`,
    versions of one row, of which the one that became known last is kept and the others are quarantined. These are no
    faults, and do not count towards `max_quarantined_share`.

    `exempt` names partitions, by the day each starts, in which nothing has to come: neither `min_rows` nor how fresh
    the newest row is counts there.

    `watched`: somebody is paged where a followed table comes empty, or not at all.

    `relation` is its name in the source, as SQL writes it, where that is another than the one it has here:
    `sales."Order Lines"`. Columns have other names there where the table's suite says so.
    """

    relation: RelationName | None = None
    key: tuple[Identifier, ...] = Field(min_length=1)
    available_at: Identifier
    min_rows: int = Field(ge=0)
    max_rows: int = Field(gt=0)
    max_quarantined_share: Share
    duplicates: Literal["stop", "keep_latest"] = "stop"
    exempt: tuple[date, ...] = ()
    watched: bool = True

    def on(self, first_day: date) -> "Table":
        """These limits for the partition that starts on a day."""
        return self.model_copy(update={"min_rows": 0}) if first_day in self.exempt else self

    def _contradictions(self) -> Iterator[str]:
        if self.min_rows > self.max_rows:
            yield f"min_rows: expected at most max_rows ({self.max_rows}), got {self.min_rows}"

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not said: parameters of before are written as they were."""
        unsaid = {"relation": None, "duplicates": "stop", "exempt": (), "watched": True}
        return {n: value for n, value in write(self).items() if n not in unsaid or getattr(self, n) != unsaid[n]}


class Watermark(Block):
    """A column whose greatest value says: whatever became known before this has been committed.

    `table` is one of the use case's, or any other of the source, as SQL writes its name; `column` is of that table.
    """

    table: RelationName
    column: str = Field(min_length=1)


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

    def find_relation(self, name: str) -> tuple[str, ...]:
        """The name that one of the followed tables has in the source: the table, or its schema and the table."""
        table = self.tables.get(name)
        return split_relation(name if table is None else table.relation or name)

    def find_table(self, schema: str, relation: str) -> str:
        """Which of the followed tables a table of the source is; a name that none has, where it is none of them."""
        for written in ((schema, relation), (relation,)):
            for name in sorted(self.followed_tables):
                if self.find_relation(name) == written:
                    return name
        return f"{schema}.{relation}"

    def _contradictions(self) -> Iterator[str]:
        relations: dict[tuple[str, ...], str] = {}
        for name in self.tables:
            if (other := relations.setdefault(self.find_relation(name), name)) != name:
                yield f"tables.{name}.relation: expected another table than that of {other}"
        after_days = (self.last_partition - self.first_partition).days if self.last_partition else 0
        if after_days < 0 or after_days % self.partition_days:
            yield (
                f"last_partition: expected a day that is a multiple of {self.partition_days} days after"
                f" first_partition ({self.first_partition}), got {self.last_partition}"
            )
        yield from self._contradictions_of_tables()

    def _contradictions_of_tables(self) -> Iterator[str]:
        for name, table in self.tables.items():
            for day in table.exempt:
                after_days = (day - self.first_partition).days
                if after_days < 0 or after_days % self.partition_days or day > (self.last_partition or day):
                    yield (
                        f"tables.{name}.exempt: expected days on which a partition starts (a multiple of"
                        f" {self.partition_days} days after {self.first_partition}, to the last), got {day}"
                    )
            if self.follow and table.duplicates != "stop":
                yield (
                    f"tables.{name}.duplicates: expected stop where source.follow is {self.follow}: who follows takes"
                    f" each row as it comes, and cannot tell which will be the latest; got {table.duplicates}"
                )
