"""A source that lives by a clock of its own: rows of real weeks come into it when they became known."""

import io
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from adapters.connect import Outside
from adapters.retrying import wait_until
from expectations import suites
from features import FeatureSet
from features.engine import FixedSpan
from features.followed import FollowedSeries
from features.stream_change import SourceKey
from infra.replay.flights_source import IDENTITIES, create_source_tables
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features.followed_series import kept_interval
from tasks.build_features.manifest import clean_files
from tasks.ingest.check import to_canonical
from tasks.stream.follow import follow_use_case
from tests.clean_data import TABLES, clean_rows, week
from tests.tasks.build_features.test_build import small

PATIENCE_SECONDS = 120
Rows = Mapping[str, pa.Table]
Content = list[tuple[str, bytes | None, bytes | None]]


def live(use_case: UseCase, follow: str | None) -> UseCase:
    """The use case with a followed source, whose clock is the table `clock`; None: one that is not followed."""
    settings = use_case.source.model_dump() | {
        "follow": follow,
        "horizon_seconds": 0.0,
        "watermark": {"table": "clock", "column": "told_until"},
    }
    return use_case.model_copy(update={"source": type(use_case.source).model_validate(settings)})


def rows_between(start: datetime, end: datetime) -> dict[str, pa.Table]:
    """What became known in the third week (small, as the clean weeks are) in an interval."""
    found = {}
    for name in TABLES:
        table = small(week(2)).get(name, clean_rows(name, week(2)))
        known, kind = table["known_at"], table.schema.field("known_at").type
        inside = pc.and_(pc.greater_equal(known, pa.scalar(start, kind)), pc.less(known, pa.scalar(end, kind)))
        found[name] = table.filter(inside)
    return found


@dataclass
class LiveSource:
    """The operator's database, which begins at a moment without a row."""

    outside: Outside
    use_case: UseCase
    told_until: datetime

    def create(self) -> None:
        """Tables without a row, each with its key, and a clock."""
        create_source_tables(self.outside.source)
        for name, columns in IDENTITIES.items():
            self.run(f"alter table {name} add primary key ({', '.join(columns)})")
        self.run("create table clock (id int primary key, told_until timestamptz not null)")
        self.run(f"insert into clock values (1, '{self.told_until}')")

    def remove(self, table: str, condition: str) -> int:
        """Delete rows; how many there were."""
        with self.outside.source.transaction() as at:
            at.execute(f"delete from {table} where {condition}")  # a test's own
            return int(at.rowcount)

    def hide(self, *tables: str) -> None:
        """As if these were not there: whoever looks for them by their names does not find them."""
        self.run("; ".join(f"alter table {name} rename to hidden_{name}" for name in tables))

    def show(self, *tables: str) -> None:
        """They are there, as they were."""
        self.run("; ".join(f"alter table hidden_{name} rename to {name}" for name in tables))

    def read_rows(self) -> dict[str, pa.Table]:
        """Every row that the source has."""
        found = {}
        with self.outside.source.transaction(snapshot=True) as at:
            for name in IDENTITIES:
                raw = self.outside.source.copy_out(f"select * from {name}", at=at)  # a test's own
                found[name] = to_canonical(raw, suites("flights")[name])
        return found

    def run(self, statements: str) -> None:
        """As the operator's program does: one string is one transaction."""
        self.outside.source.execute(statements)

    def tell(self, until: datetime) -> None:
        """Insert what became known by then, and move the clock, in one transaction."""
        self.insert(rows_between(self.told_until, until), until)

    def insert(self, rows: Rows, until: datetime) -> None:
        """Insert rows, and move the clock, in one transaction."""
        with self.outside.source.transaction() as at:
            for name, table in rows.items():
                sink = io.BytesIO()
                pa.csv.write_csv(table, sink, pa.csv.WriteOptions(include_header=False))
                sink.seek(0)
                at.copy_expert(f"copy {name} ({', '.join(table.column_names)}) from stdin (format csv)", sink)
            at.execute("update clock set told_until = %s", (until,))
        self.told_until = until


@contextmanager
def running(
    work: Callable[[UseCase, Outside, threading.Event], None], use_case: UseCase, outside: Outside
) -> Iterator[None]:
    """What goes on until it is stopped, in a thread of this process, until the block ends."""
    stopped, failed = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            work(use_case, outside, stopped)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(PATIENCE_SECONDS)
    assert not failed, failed


following = partial(running, follow_use_case)


def await_known(outside: Outside, until: datetime) -> None:
    """Wait until the store knows all that became known before a moment."""

    def is_known() -> bool:
        rows = outside.warehouse.query("select known_until from online_state")
        return bool(rows) and all(row["known_until"] is not None and row["known_until"] >= until for row in rows)

    assert wait_until(is_known, within_seconds=PATIENCE_SECONDS), outside.warehouse.query("select * from stream_state")


def await_content(outside: Outside, content: Content) -> None:
    """Wait until the store holds this; the stream is a thread of this process, so it is not asked all the time."""
    assert wait_until(lambda: read_content(outside) == content, within_seconds=PATIENCE_SECONDS, every_seconds=2.0)


def list_alerts(outside: Outside) -> list[tuple[str, str]]:
    rows = outside.warehouse.query("select tier, title from alerts where resolved_at is null order by tier, title")
    return [(row["tier"], row["title"]) for row in rows]


def await_alerts(outside: Outside, alerts: list[tuple[str, str]]) -> None:
    assert wait_until(lambda: list_alerts(outside) == alerts, within_seconds=PATIENCE_SECONDS), list_alerts(outside)


def read_content(outside: Outside) -> Content:
    """Every series that the store has, in its parts."""
    rows = outside.warehouse.query(
        "select key, payload, recent from online_series where payload is not null or recent is not null order by key"
    )
    return [(row["key"], _bytes(row["payload"]), _bytes(row["recent"])) for row in rows]


def _bytes(payload: memoryview | None) -> bytes | None:
    return None if payload is None else bytes(payload)


def rebuild(
    use_case: UseCase,
    outside: Outside,
    snapshot: Snapshot,
    definition: FeatureSet,
    rows: Rows,
    *,
    first: Snapshot | None = None,
) -> Content:
    """What the store should have: made at once from a dataset's files and the rows that became known since.

    `first` is the dataset with which the stream began: what it holds since then it does not forget.
    """
    kept = kept_interval(use_case, snapshot)
    with tempfile.TemporaryDirectory() as folder:
        files = clean_files(snapshot, kept, outside, definition)
        for name in files:
            pq.write_table(rows[name], Path(folder) / f"{name}.parquet")
            files[name].append(Path(folder) / f"{name}.parquet")
        series = FollowedSeries(
            definition,
            files,
            {name: SourceKey(identity=tuple(IDENTITIES[name]), available_at="known_at") for name in definition.sources},
            since=kept_interval(use_case, first or snapshot).start,
            split=snapshot.end,
            lead=use_case.time.lead,
        )
        if first is not None:
            all_time = FixedSpan(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
            none = {name: rows[name].slice(0, 0).select(list(IDENTITIES[name])) for name in files}
            series.move(files, dict.fromkeys(files, all_time), none, since=kept.start, split=snapshot.end)
    packed = series.pack_all()
    series.close()
    keys = sorted({*packed.settled, *packed.recent})
    return [(key, packed.settled.get(key), packed.recent.get(key)) for key in keys]
