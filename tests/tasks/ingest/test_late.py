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


def to_take(use_case: UseCase, outside: Outside) -> list[str]:
    return late.find_partitions_to_take(use_case, outside, NOW)


def test_a_source_that_did_not_change_has_nothing_taken_again(use_case: UseCase, outside: Outside) -> None:
    take(use_case, outside, 0, 1, 2)
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == []
    assert outside.warehouse.query("select 1 from late_rows") == []


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
    finally:
        other.close()
    assert to_take(use_case, outside) == []
    take(use_case, outside, 2)
    assert to_take(use_case, outside) == ["2013-01-07"]
    assert open_alerts(outside) == ["flights: rows came, changed or went after their partition was taken"]
    [alert] = outside.warehouse.query("select body from alerts")
    assert "weather of 2013-01-07: 7 rows taken, 8 there now" in alert["body"]

    take(use_case, outside, 1)
    assert versions(outside) == {"12-31": 1, "01-07": 2, "01-14": 1}
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == []
    [counted] = outside.warehouse.query("select rows_taken, rows_found, retaken_at is not null as taken from late_rows")
    assert counted == {"rows_taken": 7, "rows_found": 8, "taken": True}


@pytest.mark.parametrize(
    "statement",
    [
        "update weather set temp_f = 51 where known_at::date = '2013-01-08'",
        "delete from weather where known_at::date = '2013-01-08'",
        "update weather set known_at = known_at + interval '7 days' where known_at::date = '2013-01-08'",
    ],
    ids=["changed", "deleted", "moved"],
)
def test_what_changed_or_went_late_is_found_too(use_case: UseCase, outside: Outside, statement: str) -> None:
    take(use_case, outside, 0, 1)
    outside.source.execute(statement)
    take(use_case, outside, 2)
    assert to_take(use_case, outside) == ["2013-01-07"]


def test_what_is_older_than_the_partitions_rechecked_is_found_once_a_week(use_case: UseCase, outside: Outside) -> None:
    source = use_case.source.model_copy(update={"recheck_partitions": 1})
    use_case = use_case.model_copy(update={"source": source})
    take(use_case, outside, 0, 1, 2)
    insert(outside, "LGA", week(0).start + timedelta(hours=3))
    take(use_case, outside, 3)
    assert to_take(use_case, outside) == []
    outside.warehouse.execute("update source_checks set checked_at = now() - interval '8 days'")
    take(use_case, outside, 4)
    assert to_take(use_case, outside) == ["2012-12-31"]


def test_a_blocked_partition_waits_for_its_person(use_case: UseCase, outside: Outside) -> None:
    take(use_case, outside, 0, 1)
    outside.warehouse.execute("update batches set status = 'blocked' where partition_start = %s", (week(1).start,))
    insert(outside, "LGA", week(1).start + timedelta(hours=3))
    take(use_case, outside, 2)
    assert to_take(use_case, outside) == []


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
    assert to_take(use_case, outside) == []  # nothing was taken yet: nothing was missed
    take(use_case, outside, 1, 4)
    assert to_take(use_case, outside) == ["2013-01-14", "2013-01-21"]  # the source has ended: only between others
    assert open_alerts(outside) == ["flights: 2 partitions were never taken"]
    take(use_case, outside, 2, 3)
    assert to_take(use_case, outside) == []
    assert open_alerts(outside) == []


def test_of_a_source_that_lives_the_last_due_ones_are_found_too(use_case: UseCase, outside: Outside) -> None:
    source = use_case.source.model_copy(update={"last_partition": None})
    use_case = use_case.model_copy(update={"source": source})
    take(use_case, outside, 0)
    just_ended = week(2).end + timedelta(hours=23)
    assert late.find_missed_partitions(use_case, outside, just_ended) == ["2013-01-07"]
    assert late.find_missed_partitions(use_case, outside, just_ended + timedelta(hours=2)) == [
        "2013-01-07",
        "2013-01-14",
    ]
