"""Who is paged about a feed while its partition goes on: once an outage, and no longer than it lasts."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import build, online_features
from tasks.build_features.followed_rows import FollowedRow, encode_rows
from tasks.stream import lag
from tasks.stream.feed_past import FeedLearner, read_past
from tasks.stream.feed_watch import FeedWatch
from tests.clean_data import clean_rows, week
from tests.tasks.build_features.test_build import put
from tests.tasks.stream.live import LiveSource, await_alerts, await_known, following, list_alerts, live

HOUR = timedelta(hours=1)
IDENTITY = ("origin", "observed_at", "known_at")
MEASURED = [name for name in clean_rows("weather", week(4)).column_names if name not in IDENTITY]
START = week(4).start
BROKEN = ("critical", "flights: the feed of weather is broken")


def between(start: datetime, hours: float, *empty: str, table: str = "weather") -> pa.Table:
    """What became known in so many hours of the fifth week, with columns emptied."""
    rows = clean_rows(table, week(4))
    kind, known = rows.schema.field("known_at").type, rows["known_at"]
    first, last = pa.scalar(start, kind), pa.scalar(start + timedelta(hours=hours), kind)
    rows = rows.filter(pc.and_(pc.greater_equal(known, first), pc.less(known, last)))
    for name in empty:
        rows = rows.set_column(rows.column_names.index(name), name, pa.nulls(rows.num_rows, rows[name].type))
    return rows


def encode(use_case: UseCase, rows: pa.Table) -> list[FollowedRow]:
    return encode_rows(use_case, "weather", rows, IDENTITY)


def follow_weather(watch: FeedWatch, use_case: UseCase, hours: int, *empty: str, since: int = 0) -> None:
    """So many hours of weather, hour by hour, as the stream does; the other tables are not read."""
    for hour in range(since, since + hours):
        watch.take(encode(use_case, between(START + hour * HOUR, 1, *empty)), START + (hour + 1) * HOUR)
        watch.tell(START + (hour + 1) * HOUR, missed=("flights", "movements"))


def build_four_weeks(use_case: UseCase, outside: Outside) -> Snapshot:
    put(outside, use_case, *range(4))
    built = build.build_snapshot(use_case, outside)
    assert built is not None
    return built


@pytest.fixture
def snapshot(use_case: UseCase, outside: Outside) -> Snapshot:
    return build_four_weeks(use_case, outside)


def begin(use_case: UseCase, outside: Outside, snapshot: Snapshot, held: Sequence[FollowedRow] = ()) -> FeedWatch:
    watch = FeedWatch(use_case, outside, outside.warehouse.begin(f"stream/{use_case.name}"), snapshot)
    watch.take(held, START)
    return watch


def read_alerts(outside: Outside) -> list[dict[str, object]]:
    return outside.warehouse.query("select occurrences, body, resolved_at is null as is_open from alerts order by 1")


def test_an_outage_is_one_page_though_more_columns_come_to_it(
    use_case: UseCase, outside: Outside, snapshot: Snapshot
) -> None:
    watch = begin(use_case, outside, snapshot)
    follow_weather(watch, use_case, 1, "temp_f")
    assert list_alerts(outside) == [], "three records are no proof"
    follow_weather(watch, use_case, 3, "temp_f", since=1)
    [alert] = read_alerts(outside)
    assert "temp_f come empty since 28 Jan 2013 00:10 UTC" in str(alert["body"])
    follow_weather(watch, use_case, 6, "temp_f", "humidity", since=4)
    assert read_alerts(outside) == [alert]
    follow_weather(watch, use_case, 12, since=10)
    assert [(each["occurrences"], each["is_open"]) for each in read_alerts(outside)] == [(1, False)]


def test_who_begins_anew_in_an_outage_pages_nobody_again_and_ends_it_when_it_is_over(
    use_case: UseCase, outside: Outside, snapshot: Snapshot
) -> None:
    follow_weather(begin(use_case, outside, snapshot), use_case, 4, *MEASURED)
    [alert] = read_alerts(outside)
    watch = begin(use_case, outside, snapshot)  # the dataset has moved on: no row of the outage is kept
    watch.tell(START + 4 * HOUR, missed=("flights", "movements"))
    follow_weather(watch, use_case, 2, *MEASURED, since=4)
    assert read_alerts(outside) == [alert]
    follow_weather(watch, use_case, 24, since=6)
    assert list_alerts(outside) == []


def test_of_a_table_that_is_not_read_nothing_is_said(use_case: UseCase, outside: Outside, snapshot: Snapshot) -> None:
    watch = begin(use_case, outside, snapshot)
    watch.tell(START + 100 * HOUR, missed=("weather", "flights", "movements"))
    assert list_alerts(outside) == []
    watch.tell(START + 100 * HOUR, missed=("flights", "movements"))
    assert list_alerts(outside) == [BROKEN]


def test_what_nobody_watches_any_more_is_told_of_no_longer(
    use_case: UseCase, outside: Outside, snapshot: Snapshot
) -> None:
    follow_weather(begin(use_case, outside, snapshot), use_case, 4, *MEASURED)
    assert list_alerts(outside) == [BROKEN]
    weather = use_case.source.tables["weather"].model_copy(update={"watched": False})
    tables = {**use_case.source.tables, "weather": weather}
    quiet = use_case.model_copy(update={"source": use_case.source.model_copy(update={"tables": tables})})
    follow_weather(begin(quiet, outside, snapshot), quiet, 4, *MEASURED)
    assert list_alerts(outside) == []


def test_a_source_that_is_no_longer_followed_leaves_no_alert(
    use_case: UseCase, outside: Outside, snapshot: Snapshot
) -> None:
    follow_weather(begin(use_case, outside, snapshot), use_case, 4, *MEASURED)
    outside.warehouse.execute(
        "insert into stream_state (use_case, identities, changes) values (%s, '{}', 0) on conflict do nothing",
        (use_case.name,),
    )
    lag.judge_stream(live(use_case, None), outside)
    assert list_alerts(outside) == []


def test_where_nothing_has_to_come_silence_is_none(use_case: UseCase, outside: Outside, snapshot: Snapshot) -> None:
    weather = use_case.source.tables["weather"].model_copy(update={"exempt": (START.date(),)})
    tables = {**use_case.source.tables, "weather": weather}
    resting = use_case.model_copy(update={"source": use_case.source.model_copy(update={"tables": tables})})
    watch = begin(resting, outside, snapshot)
    watch.tell(START + 100 * HOUR, missed=("flights", "movements"))
    assert list_alerts(outside) == []
    watch.tell(week(5).start + HOUR, missed=("flights", "movements"))
    assert list_alerts(outside) == [BROKEN]


def test_a_clean_file_of_before_a_column_was_declared_tells_of_the_others(use_case: UseCase, tmp_path: Path) -> None:
    pq.write_table(clean_rows("weather", week(0)).drop_columns(["humidity"]), tmp_path / "old.parquet")
    told = read_past(use_case, "weather", tmp_path / "old.parquet")
    assert told is not None
    assert told.columns.keys() == {*MEASURED} - {"humidity"}


def test_an_object_that_is_gone_stops_nobody_and_the_log_says_which(
    use_case: UseCase, outside: Outside, snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    assert "weather" in FeedLearner(use_case, outside).learn(snapshot)
    [row] = outside.warehouse.query(
        "select clean_uri as uri from batches where table_name = 'weather' and partition_start = %s", (week(1).start,)
    )
    outside.lake.local(row["uri"]).unlink()
    key = row["uri"].removeprefix(outside.lake.uri(""))
    outside.lake.client.delete_object(Bucket=outside.lake.bucket, Key=key)
    learnt = FeedLearner(use_case, outside).learn(snapshot)
    assert "weather" not in learnt, "three partitions are too few"
    assert "movements" in learnt
    assert "weather of 2013-01-07 tells nothing" in caplog.text


def test_the_stream_pages_while_the_partition_goes_on(followed: UseCase, outside: Outside, source: LiveSource) -> None:
    """`source` of this room has its tables; here its clock stands two weeks later."""
    online_features.refresh_store(followed, build_four_weeks(followed, outside), outside)
    source.insert({}, START)

    def tell(hour: int, hours: int, *empty: str) -> None:
        start = START + hour * HOUR
        movements = between(start, hours, table="movements")
        source.insert({"weather": between(start, hours, *empty), "movements": movements}, start + hours * HOUR)

    with following(followed, outside):
        tell(0, 5, *MEASURED)
        await_alerts(outside, [BROKEN])
        tell(5, 12)
        await_alerts(outside, [])
        source.run("update weather set temp_f = null")  # each row was told before: none comes empty
        tell(17, 1)
        await_known(outside, START + 18 * HOUR)
        assert list_alerts(outside) == []
