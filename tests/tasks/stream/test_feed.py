"""When a feed is said to be broken, and when not; no alert and no stack is needed for that."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tasks.stream.feed import Feed, Row
from tasks.stream.feed_past import EmptyRuns, FeedPast, PartitionPast, learn_feed, watch_rejected
from tests.clean_data import clean_rows, week

HOUR = timedelta(hours=1)
MEASURED = ("temp_f", "dewpoint_f", "humidity", "wind_speed_mph", "precip_in", "pressure_mb", "visibility_miles")
START = week(4).start


def read_weather(number: int, *names: str) -> pa.Table:
    return clean_rows("weather", week(number)).select(["known_at", *(names or MEASURED)])


def learn(*partitions: pa.Table) -> FeedPast:
    learnt = learn_feed([PartitionPast.read(rows, "known_at") for rows in partitions], watch_rejected(0.02))
    assert learnt is not None
    return learnt


@pytest.fixture(scope="module")
def past() -> FeedPast:
    return learn(*(read_weather(number) for number in range(4)))


@pytest.fixture
def feed(past: FeedPast) -> Feed:
    return Feed(past, START)


def moments(start: datetime, hours: float) -> Iterator[tuple[datetime, list[dict[str, Any]]]]:
    """The weather that became known in so many hours of the fifth week."""
    rows = clean_rows("weather", week(4)).sort_by("known_at").to_pylist()
    inside = [row for row in rows if start <= row["known_at"].replace(tzinfo=UTC) < start + timedelta(hours=hours)]
    for moment, those in groupby(inside, key=lambda row: row["known_at"].replace(tzinfo=UTC)):
        yield moment, list(those)


def give(feed: Feed, start: datetime, hours: float, *empty: str) -> list[str]:
    """What is said after each moment, where some columns come empty."""
    said = []
    for moment, rows in moments(start, hours):
        feed.take(moment, [{**row, **dict.fromkeys(empty)} for row in rows], moment)
        said.append(feed.describe(moment))
    return said


def test_what_comes_empty_is_said_by_name_and_since_when_until_it_is_whole_for_a_while(feed: Feed) -> None:
    said = give(feed, START, 5, *MEASURED)
    assert said[0] == "", "three records are no proof"
    assert said[2].startswith("temp_f, dewpoint_f, humidity, wind_speed_mph, precip_in and ")
    assert "come empty since 28 Jan 2013 00:10 UTC" in said[2]
    said = give(feed, START + 5 * HOUR, 12)
    assert said[0] != "", "one good record is no proof either"
    assert said[-1] == ""


def test_of_a_week_as_it_was_nothing_is_said(feed: Feed) -> None:
    """The twin."""
    assert set(give(feed, START, 168)) == {""}


def test_one_column_is_told_of_alone(feed: Feed) -> None:
    assert give(feed, START, 4, "humidity")[-1] == "humidity come empty since 28 Jan 2013 00:10 UTC"


def test_one_station_of_three_is_no_feed(feed: Feed) -> None:
    for moment, rows in moments(START, 48):
        feed.take(moment, [row | ({"temp_f": None} if row["origin"] == "EWR" else {}) for row in rows], moment)
        assert feed.describe(moment) == ""


@pytest.mark.parametrize("share", [0.35, 0.5, 0.65])
def test_a_feed_that_is_half_broken_is_said_to_be_once_or_twice(past: FeedPast, share: float) -> None:
    """Else each swing of chance would be a page, and its end another message."""
    feed, draw = Feed(past, START), np.random.default_rng(0)
    said = []
    for number in range(5000):
        moment = START + number * timedelta(minutes=20)
        value = None if draw.random() < share else 1.0
        feed.take(moment, [dict.fromkeys(MEASURED, 1.0) | {"temp_f": value}], moment)
        said.append(bool(feed.describe(moment)))
    assert 1 <= sum(later and not earlier for earlier, later in pairwise(said)) <= 2


def test_in_whatever_order_rows_of_one_moment_are_told_it_is_the_same(past: FeedPast) -> None:
    rows: list[Row] = [dict.fromkeys(MEASURED, 1.0) for _ in range(53)]
    rows += [dict.fromkeys(MEASURED) for _ in range(7)]
    for order in (rows, rows[::-1]):
        feed = Feed(past, START)
        feed.take(START + HOUR, order, START + HOUR)
        assert feed.describe(START + HOUR) == ""


def test_a_number_that_is_none_is_empty(feed: Feed) -> None:
    for hours in range(3):
        moment = START + hours * HOUR
        feed.take(moment, [dict.fromkeys(MEASURED, 1.0) | {"temp_f": float("nan")}] * 3, moment)
    assert "temp_f come empty" in feed.describe(START + 3 * HOUR)


def test_rows_that_break_an_expectation_are_told_in_their_own_words(feed: Feed) -> None:
    feed.take(START, [None, *[dict.fromkeys(MEASURED, 1.0)] * 5], START)
    assert feed.describe(START) == ""
    feed.take(START + HOUR, [None] * 12, START + HOUR)
    assert feed.describe(START + HOUR) == (
        "rows break an expectation since 28 Jan 2013 01:00 UTC, and are in no feature"
    )


def test_where_so_many_rows_may_break_one_that_is_not_watched() -> None:
    assert watch_rejected(0.6) is None
    feed = Feed(FeedPast(columns={}, rejected=None, patience=HOUR), START)
    feed.take(START, [None] * 1000, START)
    assert feed.describe(START) == ""


def test_a_feed_that_does_not_come_is_told_and_well_when_it_does(feed: Feed) -> None:
    give(feed, START, 4)
    assert feed.describe(START + 6 * HOUR) == ""
    assert "no row has come since 28 Jan 2013 03:10 UTC" in feed.describe(START + 12 * HOUR)
    assert give(feed, START + 12 * HOUR, 1) == [""]


def test_where_nothing_has_to_come_nothing_is_said(feed: Feed) -> None:
    assert feed.describe(START + 48 * HOUR, may_be_silent=True) == ""


def test_a_row_of_the_future_is_none_that_came(feed: Feed) -> None:
    feed.take(START + 9000 * HOUR, [dict.fromkeys(MEASURED, 1.0)], START + HOUR)
    assert "no row has come" in feed.describe(START + 24 * HOUR)


@pytest.mark.parametrize("days", [1, 7])
@pytest.mark.parametrize("weekdays", [range(7), range(5)])
def test_a_source_that_rests_at_night_or_at_weekends_is_not_silent(days: int, weekdays: Sequence[int]) -> None:
    first = datetime(2013, 1, 7, tzinfo=UTC)
    hours = [first + n * HOUR for n in range(24 * 7 * 18)]
    open_hours = [at for at in hours if 8 <= at.hour < 18 and at.weekday() in weekdays]
    count, end = max(12, 28 // days), first + timedelta(days=84)
    starts = [end - timedelta(days=days * (count - n)) for n in range(count)]
    parts = [[at for at in open_hours if start <= at < start + timedelta(days=days)] for start in starts]
    feed = Feed(learn(*(pa.table({"known_at": pa.array(p, pa.timestamp("us", "UTC"))}) for p in parts if p)), end)
    said = set()
    for at in hours:
        if at >= end:
            if at in open_hours:
                feed.take(at, [{}], at)
            said.add(feed.describe(at))
    assert said == {""}
    last = max(open_hours)
    assert feed.describe(last + timedelta(days=12)) != "", "and yet it is watched"


def test_of_whom_somebody_was_told_it_stays_broken_until_it_is_seen_whole(past: FeedPast) -> None:
    feed = Feed(past, START, is_open=True)
    assert feed.describe(START) != ""
    said = give(feed, START, 12)
    assert (said[0] != "", said[-1]) == (True, "")
    assert give(Feed(past, START, is_open=True), START, 12, "temp_f")[-1].startswith("temp_f come empty")


def test_what_went_on_goes_on_beside_another_past(past: FeedPast) -> None:
    feed = Feed(past, START)
    give(feed, START, 3, "temp_f")
    feed.learn(learn(*(read_weather(number, "temp_f") for number in range(4))))
    assert feed.describe(START + 3 * HOUR).startswith("temp_f come empty")
    feed.learn(learn(*(read_weather(number, "humidity") for number in range(4))))
    assert feed.describe(START + 3 * HOUR) == ""


def emptied(rows: pa.Table, name: str) -> pa.Table:
    gone = pa.nulls(rows.num_rows, rows[name].type)
    return rows.set_column(rows.column_names.index(name), name, gone)


def test_two_broken_partitions_of_twelve_blind_nobody() -> None:
    weeks = [read_weather(number) for number in range(12)]
    told = learn(emptied(weeks[0], "temp_f"), *weeks[1:11], emptied(weeks[11], "temp_f"))
    assert told.columns["temp_f"] == learn(*weeks).columns["temp_f"]


def test_those_that_were_blocked_say_nothing_of_what_is_usual() -> None:
    weeks = [PartitionPast.read(read_weather(number), "known_at") for number in range(4)]
    broken = [PartitionPast.read(emptied(read_weather(number), "temp_f"), "known_at") for number in range(4, 10)]
    blind = learn_feed([*weeks, *broken], None)
    assert blind is not None
    assert "temp_f" not in blind.columns
    learnt = learn_feed([*weeks, *broken], None, sound=weeks)
    assert learnt is not None
    assert learnt.columns["temp_f"].limit < 20
    none = learn_feed(weeks, None, sound=[])
    assert none is not None
    assert none.columns == {}


def test_of_little_past_and_of_what_mostly_is_empty_nothing_is_said() -> None:
    weeks = [PartitionPast.read(read_weather(n, "wind_gust_mph", "temp_f"), "known_at") for n in range(4)]
    assert learn_feed(weeks[:3], None) is None
    learnt = learn_feed(weeks, None)
    assert learnt is not None
    assert learnt.columns.keys() == {"temp_f"}


def test_a_column_that_older_partitions_do_not_have_is_not_watched_yet() -> None:
    older = [PartitionPast.read(read_weather(n, "temp_f"), "known_at") for n in range(4)]
    newer = [PartitionPast.read(read_weather(n, "temp_f", "humidity"), "known_at") for n in range(4, 6)]
    learnt = learn_feed([*older, *newer], None)
    assert learnt is not None
    assert learnt.columns.keys() == {"temp_f"}


def test_the_highest_score_of_moments_at_once_is_that_of_one_after_another() -> None:
    runs, score, highest = EmptyRuns(share=0.2, limit=1e9), 0.0, 0.0
    empty = pc.is_null(clean_rows("weather", week(1)).sort_by("known_at")["wind_gust_mph"]).to_numpy().astype(np.int64)
    for each in empty:
        score = runs.advance(score, empty=int(each), present=1 - int(each))
        highest = max(highest, score)
    assert runs.highest(empty, np.ones(len(empty), np.int64)) == pytest.approx(highest)
    assert highest > 10
