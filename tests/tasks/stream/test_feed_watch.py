"""A feed that comes empty, or does not come, is paged within hours; what feeds do at times is not."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import build, online_features
from tasks.build_features.followed_rows import FollowedRow, encode_rows
from tasks.stream.feed_past import EmptyRuns, FeedPast, learn_feed, learn_feeds
from tasks.stream.feed_watch import FeedWatch
from tests.clean_data import clean_rows, week
from tests.tasks.build_features.test_build import put
from tests.tasks.stream.live import LiveSource, await_alerts, await_known, following, list_alerts

HOUR = timedelta(hours=1)
IDENTITY = ("origin", "observed_at", "known_at")
MEASURED = ("temp_f", "dewpoint_f", "humidity", "wind_speed_mph", "precip_in", "pressure_mb", "visibility_miles")
START = week(4).start
BROKEN = ("critical", "flights: the feed of weather is broken")


def emptied(rows: pa.Table, *names: str, where: pa.ChunkedArray | None = None) -> pa.Table:
    """Rows whose values of some columns are not there."""
    for name in names:
        column = rows[name]
        gone = pa.nulls(rows.num_rows, column.type)
        blank = gone if where is None else pc.if_else(where, gone, column)
        rows = rows.set_column(rows.column_names.index(name), name, blank)
    return rows


def between(start: datetime, hours: float, *names: str, table: str = "weather") -> pa.Table:
    """What became known in so many hours of the fifth week, with columns emptied."""
    rows = clean_rows(table, week(4))
    kind = rows.schema.field("known_at").type
    known = rows["known_at"]
    first, last = pa.scalar(start, kind), pa.scalar(start + timedelta(hours=hours), kind)
    return emptied(rows.filter(pc.and_(pc.greater_equal(known, first), pc.less(known, last))), *names)


def encode(use_case: UseCase, rows: pa.Table) -> list[FollowedRow]:
    return encode_rows(use_case, "weather", rows, IDENTITY)


def text(outside: Outside) -> str:
    rows = outside.warehouse.query("select body from alerts where resolved_at is null")
    return " ".join(row["body"] for row in rows)


@pytest.fixture(scope="module")
def past() -> Mapping[str, FeedPast]:
    learnt = learn_feed([clean_rows("weather", week(n)).select(["known_at", *MEASURED]) for n in range(4)], "known_at")
    assert learnt is not None
    return {"weather": learnt}


@pytest.fixture
def watch(use_case: UseCase, outside: Outside, past: Mapping[str, FeedPast]) -> FeedWatch:
    return FeedWatch(use_case, outside, past, START)


def test_what_comes_empty_is_paged_once_by_name_and_resolved_when_it_is_whole(
    use_case: UseCase, outside: Outside, watch: FeedWatch
) -> None:
    watch.follow(encode(use_case, between(START, 1, *MEASURED)), START + HOUR)
    assert list_alerts(outside) == []  # three records are no proof
    for hours in (1, 2, 3):
        watch.follow(encode(use_case, between(START + hours * HOUR, 1, *MEASURED)), START + (hours + 1) * HOUR)
    assert list_alerts(outside) == [BROKEN]
    assert "temp_f, dewpoint_f, humidity" in text(outside)
    assert "since 28 Jan 2013 00:10 UTC" in text(outside)
    watch.follow(encode(use_case, between(START + 4 * HOUR, 6)), START + 10 * HOUR)
    assert list_alerts(outside) == []


def test_a_week_as_it_was_pages_nobody(use_case: UseCase, outside: Outside, watch: FeedWatch) -> None:
    """The twin."""
    for hours in range(168):
        watch.follow(encode(use_case, between(START + hours * HOUR, 1)), START + (hours + 1) * HOUR)
    assert outside.warehouse.query("select * from alerts") == []


def test_one_column_is_told_of_alone_and_one_station_of_three_is_no_feed(
    use_case: UseCase, outside: Outside, watch: FeedWatch
) -> None:
    rows = between(START, 48)
    watch.follow(encode(use_case, emptied(rows, "temp_f", where=pc.equal(rows["origin"], "EWR"))), START + 48 * HOUR)
    assert list_alerts(outside) == []
    watch.follow(encode(use_case, between(START + 48 * HOUR, 3, "humidity")), START + 51 * HOUR)
    assert list_alerts(outside) == [BROKEN]
    assert "humidity come empty" in text(outside)
    assert "temp_f" not in text(outside)


def test_rows_that_break_an_expectation_bring_no_value(use_case: UseCase, outside: Outside, watch: FeedWatch) -> None:
    rows = [replace(row, reasons=("no such wind",)) for row in encode(use_case, between(START, 3))]
    watch.follow(rows, START + 3 * HOUR)
    assert list_alerts(outside) == [BROKEN]


def test_a_feed_that_does_not_come_is_paged_and_resolved_when_it_does(
    use_case: UseCase, outside: Outside, watch: FeedWatch
) -> None:
    watch.follow(encode(use_case, between(START, 4)), START + 4 * HOUR)
    watch.follow([], START + 6 * HOUR)
    assert list_alerts(outside) == []
    watch.follow([], START + 12 * HOUR)
    assert list_alerts(outside) == [BROKEN]
    assert "no row has come since 28 Jan 2013 03:10 UTC" in text(outside)
    watch.follow(encode(use_case, between(START + 11 * HOUR, 1)), START + 12 * HOUR)
    assert list_alerts(outside) == []


def test_who_begins_anew_knows_what_came_and_resolves_what_was_mended_meanwhile(
    use_case: UseCase, outside: Outside, past: Mapping[str, FeedPast]
) -> None:
    held = encode(use_case, between(START, 5, *MEASURED))
    FeedWatch(use_case, outside, past, START, held).follow([], START + 5 * HOUR)
    assert list_alerts(outside) == [BROKEN]
    mended = encode(use_case, between(START, 5))
    FeedWatch(use_case, outside, past, START, mended).follow([], START + 5 * HOUR)
    assert list_alerts(outside) == []


def test_a_partition_of_the_past_that_was_broken_blinds_nobody(
    use_case: UseCase, outside: Outside, past: Mapping[str, FeedPast]
) -> None:
    weeks = [clean_rows("weather", week(n)).select(["known_at", *MEASURED]) for n in range(4)]
    learnt = learn_feed([*weeks, emptied(weeks[0].slice(0, 200), *MEASURED)], "known_at")
    assert learnt is not None
    assert learnt.columns["temp_f"].limit == past["weather"].columns["temp_f"].limit
    watch = FeedWatch(use_case, outside, {"weather": learnt}, START)
    watch.follow(encode(use_case, between(START, 6, *MEASURED)), START + 6 * HOUR)
    assert list_alerts(outside) == [BROKEN]


def test_of_little_past_and_of_what_mostly_is_empty_nothing_is_said() -> None:
    weeks = [clean_rows("weather", week(n)).select(["known_at", "wind_gust_mph", "temp_f"]) for n in range(4)]
    assert learn_feed(weeks[:3], "known_at") is None
    learnt = learn_feed(weeks, "known_at")
    assert learnt is not None
    assert learnt.columns.keys() == {"temp_f"}


def test_the_highest_score_of_rows_at_once_is_that_of_one_after_another() -> None:
    runs = EmptyRuns(share=0.2, limit=1e9)
    empty = pc.is_null(clean_rows("weather", week(1)).sort_by("known_at")["wind_gust_mph"]).to_numpy()
    score = highest = 0.0
    for each in empty:
        score = runs.advance(score, is_empty=bool(each))
        highest = max(highest, score)
    assert runs.highest(empty) == pytest.approx(highest)
    assert highest > 10


@pytest.fixture
def four_weeks(followed: UseCase, outside: Outside) -> Snapshot:
    put(outside, followed, *range(4))
    built = build.build_snapshot(followed, outside)
    assert built is not None
    online_features.refresh_store(followed, built, outside)
    return built


def test_the_stream_pages_while_the_partition_goes_on(
    followed: UseCase, outside: Outside, four_weeks: Snapshot, source: LiveSource
) -> None:
    """`source` of this room has its tables; here its clock stands two weeks later."""
    assert "weather" in learn_feeds(followed, four_weeks, outside)
    source.insert({}, START)
    names = [name for name in clean_rows("weather", week(4)).column_names if name not in IDENTITY]

    def tell(start: datetime, hours: int, *empty: str) -> None:
        movements = between(start, hours, table="movements")
        source.insert({"weather": between(start, hours, *empty), "movements": movements}, start + hours * HOUR)

    with following(followed, outside):
        tell(START, 5, *names)
        await_alerts(outside, [BROKEN])
        tell(START + 5 * HOUR, 5)
        await_alerts(outside, [])
        await_known(outside, START + 10 * HOUR)
