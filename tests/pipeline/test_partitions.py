"""Half-open intervals on a grid: every moment lies in exactly one partition, and every partition has one key."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from pipeline.partitions import Grid, Interval, utc

WEEKS = Grid(first=date(2012, 12, 31), days=7)


def week(number: int) -> Interval:
    start = utc(WEEKS.first) + timedelta(days=7 * number)
    return Interval(start, start + timedelta(days=7))


def test_a_key_names_its_partition_and_the_partition_its_key():
    for number in (0, 1, 52):
        assert WEEKS.partition(WEEKS.key(week(number))) == week(number)
    assert WEEKS.partition("2013-01-07T00:00:00+00:00") == week(1)


@pytest.mark.parametrize("key", ["2013-01-08", "2012-12-24"])
def test_a_day_off_the_grid_is_refused_with_the_partition_that_holds_it(key):
    holding = WEEKS.containing(utc(date.fromisoformat(key)))
    with pytest.raises(ValueError, match=f"partitions start every 7 days from 2012-12-31; .* {WEEKS.key(holding)}"):
        WEEKS.partition(key)


def test_a_key_that_is_no_day_is_refused_with_an_example():
    with pytest.raises(ValueError, match="'newest': expected the day it starts, such as 2012-12-31"):
        WEEKS.partition("newest")


def test_a_partition_holds_its_start_and_not_its_end():
    assert WEEKS.containing(week(1).start) == week(1)
    assert WEEKS.containing(week(1).end - timedelta(microseconds=1)) == week(1)
    assert WEEKS.containing(week(1).end) == week(2)
    assert WEEKS.containing(week(0).start - timedelta(microseconds=1)) == week(-1)


def test_a_moment_of_another_time_zone_is_taken_in_utc():
    new_york = timezone(timedelta(hours=-5))
    assert WEEKS.containing(datetime(2013, 1, 6, 19, tzinfo=new_york)) == week(1)
    assert WEEKS.containing(datetime(2013, 1, 6, 18, 59, tzinfo=new_york)) == week(0)


def test_covering_gives_each_partition_that_shares_a_moment_and_no_other():
    assert WEEKS.covering(week(1)) == [week(1)]
    hour = timedelta(hours=1)
    assert WEEKS.covering(Interval(week(1).start - hour, week(1).end + hour)) == [week(0), week(1), week(2)]


def test_intervals_that_only_touch_do_not_overlap():
    assert not week(0).overlaps(week(1))
    assert week(0).overlaps(Interval(week(0).start, week(1).end))


def test_an_interval_is_in_utc_and_not_empty():
    start = datetime(2013, 1, 7, tzinfo=UTC)
    assert Interval(start, start + timedelta(days=1)).end.day == 8
    with pytest.raises(ValueError, match="must not be empty"):
        Interval(start, start)
    with pytest.raises(ValueError, match="is in UTC"):
        Interval(start.astimezone(timezone(timedelta(hours=1))), start + timedelta(days=1))
    with pytest.raises(ValueError, match="is in UTC"):
        Interval(start.replace(tzinfo=None), start.replace(tzinfo=None) + timedelta(days=1))
