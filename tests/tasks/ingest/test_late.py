"""No row is lost because it came late to its partition, and no partition because nobody took it."""

from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from adapters.connect import Outside
from infra.replay.flights_source import create_source_tables
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.ingest import late
from tasks.ingest.land import land_partition

FIRST = datetime(2012, 12, 31, tzinfo=UTC)
NOW = datetime(2013, 3, 1, tzinfo=UTC)
LATE = "flights: rows came, changed or went after their partition was taken"
GIVEN_UP = "flights: 1 partitions could not be taken again"


def week(number: int) -> Interval:
    return Interval(FIRST + timedelta(days=7 * number), FIRST + timedelta(days=7 * number + 7))


def insert(outside: Outside, origin: str, known_at: datetime, temperature: float = 50.0) -> None:
    outside.source.execute(
        "insert into weather (origin, observed_at, temp_f, known_at) values (%s, %s, %s, %s)",
        (origin, known_at - timedelta(minutes=10), temperature, known_at),
    )


@pytest.fixture(autouse=True)
def source(outside: Outside) -> None:
    """Weather of six weeks, a row a day."""
    create_source_tables(outside.source)
    for day in range(42):
        insert(outside, "JFK", FIRST + timedelta(days=day, hours=1))


def take(use_case: UseCase, outside: Outside, *numbers: int) -> None:
    for number in numbers:
        land_partition(use_case, week(number), outside)


def versions(outside: Outside) -> dict[str, int]:
    """Of the weather, by partition."""
    rows = outside.warehouse.query(
        "select partition_start, max(version) as version from batches where table_name = 'weather' group by 1"
    )
    return {f"{row['partition_start']:%m-%d}": row["version"] for row in rows}


def open_alerts(outside: Outside) -> list[str]:
    return [row["title"] for row in outside.warehouse.query("select title from alerts where resolved_at is null")]


def judge(outside: Outside, *numbers: int) -> None:
    """As validation does with what is good."""
    outside.warehouse.execute(
        "update batches set status = 'clean', clean_uri = '-', clean_sha256 = '-', clean_rows = 0"
        " where partition_start = any(%s)",
        ([week(number).start for number in numbers],),
    )


def changed(use_case: UseCase, **source: object) -> UseCase:
    return use_case.model_copy(update={"source": use_case.source.model_copy(update=source)})


def to_take(use_case: UseCase, outside: Outside) -> list[str]:
    return late.find_partitions_to_take(use_case, outside, NOW)


def test_a_source_that_did_not_change_has_nothing_taken_again(use_case: UseCase, outside: Outside) -> None:
    assert to_take(use_case, outside) == []  # nothing was taken yet
    take(use_case, outside, 0, 1, 2)
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == []
    assert outside.warehouse.query("select 1 from retakes") == []


def test_a_row_of_a_long_transaction_is_found_counted_and_taken(use_case: UseCase, outside: Outside) -> None:
    """`known_at` is the transaction's beginning, in a week that is taken before the transaction ends."""
    other = psycopg2.connect(outside.settings.source_dsn)
    try:
        with other, other.cursor() as at:
            at.execute(
                "insert into weather (origin, observed_at, temp_f, known_at) values ('EWR', %s, 1, %s)",
                (week(1).start, week(1).start + timedelta(hours=2)),
            )
            take(use_case, outside, 0, 1)
            assert to_take(use_case, outside) == []
    finally:
        other.close()
    take(use_case, outside, 2)
    assert to_take(use_case, outside) == ["2013-01-07"]
    assert open_alerts(outside) == [LATE]
    [alert] = outside.warehouse.query("select body from alerts")
    assert "weather of 2013-01-07: 7 rows taken, 8 there now" in alert["body"]

    take(use_case, outside, 1)
    assert versions(outside) == {"12-31": 1, "01-07": 2, "01-14": 1}
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == [LATE], "it has landed, and nobody has judged it yet"
    judge(outside, 1)
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == []
    [counted] = outside.warehouse.query("select reason, tables, attempts, closed_at is not null as closed from retakes")
    assert counted == {"reason": "late", "tables": {"weather": [7, 8]}, "attempts": 1, "closed": True}


@pytest.mark.parametrize(
    "statement",
    [
        "update weather set temp_f = 51 where known_at::date = '2013-01-08'",
        "delete from weather where known_at::date = '2013-01-08'",
        "update weather set known_at = known_at + interval '7 days' where known_at::date = '2013-01-08'",
        "delete from weather where known_at >= '2013-01-07' and known_at < '2013-01-14'",
    ],
    ids=["changed", "deleted", "moved", "emptied"],
)
def test_what_changed_or_went_late_is_found_too(use_case: UseCase, outside: Outside, statement: str) -> None:
    take(use_case, outside, 0, 1)
    outside.source.execute(statement)
    take(use_case, outside, 2)
    assert to_take(use_case, outside) == ["2013-01-07"]


def test_what_is_older_than_the_partitions_rechecked_is_found_once_a_week(use_case: UseCase, outside: Outside) -> None:
    use_case = changed(use_case, recheck_partitions=1)
    take(use_case, outside, 0, 1, 2)
    assert to_take(use_case, outside) == []
    insert(outside, "LGA", week(0).start + timedelta(hours=3))
    take(use_case, outside, 3)
    assert to_take(use_case, outside) == []
    outside.warehouse.execute("update source_checks set all_checked_at = now() - interval '7 days'")
    assert to_take(use_case, outside) == ["2012-12-31"], "though nothing landed since"
    [checked] = outside.warehouse.query(
        "select now() - all_checked_at < interval '1 hour' as just_now from source_checks"
    )
    assert checked["just_now"]


def test_a_take_of_an_old_partition_is_no_comparison_of_all(use_case: UseCase, outside: Outside) -> None:
    take(use_case, outside, 0, 1, 2)
    assert to_take(use_case, outside) == []
    outside.warehouse.execute("update source_checks set all_checked_at = all_checked_at - interval '3 days'")
    before = outside.warehouse.query("select all_checked_at from source_checks")
    insert(outside, "LGA", week(0).start + timedelta(hours=3))
    take(use_case, outside, 0)
    assert to_take(use_case, outside) == []
    assert outside.warehouse.query("select all_checked_at from source_checks") == before


def test_a_blocked_partition_waits_for_its_person_and_its_rows_are_told_of(use_case: UseCase, outside: Outside) -> None:
    """One of its tables is blocked, as validation leaves it; the late row is another table's."""
    take(use_case, outside, 0, 1)
    outside.warehouse.execute(
        "update batches set status = 'blocked' where partition_start = %s and table_name = 'flights'", (week(1).start,)
    )
    insert(outside, "LGA", week(1).start + timedelta(hours=3))
    take(use_case, outside, 2)
    assert to_take(use_case, outside) == []
    [alert] = outside.warehouse.query("select title, body from alerts")
    assert alert["title"] == LATE
    assert "8 there now. They are taken again, but for blocked ones: 2013-01-07" in alert["body"]
    outside.warehouse.execute("update batches set status = 'landed'")
    assert to_take(use_case, outside) == ["2013-01-07"]


def test_what_cannot_be_taken_is_tried_less_and_less_often_and_then_a_person_is_told(
    use_case: UseCase, outside: Outside
) -> None:
    take(use_case, outside, 0, 1)
    insert(outside, "LGA", week(0).start + timedelta(hours=3))
    take(use_case, outside, 2)
    for attempt in range(1, 7):
        assert to_take(use_case, outside) == ["2012-12-31"]
        assert to_take(use_case, outside) == [], "just tried"
        pause = timedelta(minutes=5 * 2**attempt)
        outside.warehouse.execute("update retakes set tried_at = now() - %s", (pause - timedelta(minutes=1),))
        assert to_take(use_case, outside) == [], "tried not long ago"
        outside.warehouse.execute("update retakes set tried_at = now() - %s", (pause + timedelta(minutes=1),))
    assert to_take(use_case, outside) == []
    assert sorted(open_alerts(outside)) == [GIVEN_UP, LATE]


def test_what_was_taken_before_fingerprints_is_compared_by_its_rows(use_case: UseCase, outside: Outside) -> None:
    take(use_case, outside, 0, 1)
    outside.warehouse.execute("update batches set source_rows = null, source_hash = null")
    insert(outside, "LGA", week(0).start + timedelta(hours=3))
    take(use_case, outside, 2)
    assert to_take(use_case, outside) == ["2012-12-31"]
    [known] = outside.warehouse.query(
        "select source_rows from batches where table_name = 'weather' and partition_start = %s", (week(1).start,)
    )
    assert known["source_rows"] == 7


def test_a_partition_that_nobody_took_is_found_between_others(use_case: UseCase, outside: Outside) -> None:
    take(use_case, outside, 1, 4)
    assert to_take(use_case, outside) == ["2013-01-14", "2013-01-21"]  # the source has ended: only between others
    assert open_alerts(outside) == ["flights: 2 partitions were never taken"]
    take(use_case, outside, 2, 3)
    judge(outside, 2, 3)
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == []


def test_of_a_source_that_lives_the_last_due_ones_are_found_too(use_case: UseCase, outside: Outside) -> None:
    use_case = changed(use_case, last_partition=None)
    take(use_case, outside, 0)
    just_ended = week(2).end + timedelta(hours=23)
    assert late.find_partitions_to_take(use_case, outside, just_ended) == ["2013-01-07"]
    outside.warehouse.execute("update retakes set tried_at = null")
    assert late.find_partitions_to_take(use_case, outside, just_ended + timedelta(hours=2)) == [
        "2013-01-07",
        "2013-01-14",
    ]


def test_a_source_that_cannot_be_compared_is_told_of_and_stops_nothing(use_case: UseCase, outside: Outside) -> None:
    take(use_case, outside, 0, 1)
    outside.source.execute("alter table weather rename to weather_of_old")
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == ["flights: the source cannot be compared with what was taken"]
    outside.source.execute("alter table weather_of_old rename to weather")
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == []


def test_a_retake_asked_for_while_the_source_is_compared_stays_open(
    use_case: UseCase, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(use_case, outside, 0, 1)
    judge(outside, 0, 1)
    assert to_take(use_case, outside) == []
    real = late._read_all_fingerprints

    def read_and_ask(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        with outside.warehouse.transaction() as at:  # the stream has seen a row that this reading has not
            late.open_retake(at, use_case, week(1).start)
        return found

    with outside.warehouse.transaction() as at:
        late.open_retake(at, use_case, week(0).start)
    monkeypatch.setattr(late, "_read_all_fingerprints", read_and_ask)
    to_take(use_case, outside)
    opened = outside.warehouse.query("select partition_start from retakes where closed_at is null")
    assert [row["partition_start"] for row in opened] == [week(1).start]
    monkeypatch.undo()
    assert to_take(use_case, outside) == []
    assert outside.warehouse.query("select from retakes where closed_at is null") == []
