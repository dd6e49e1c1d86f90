"""Every feature that was served otherwise than batch works it out has a cause, proved; what has none is a defect."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from adapters.connect import Outside
from features import definition
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow
from tasks.monitor.served.row_causes import ServedCause
from tests.clean_data import week
from tests.tasks.build_features.test_build import small
from tests.tasks.monitor.served_stand import HOUR, START, Stand, encode, followed_by_clock

FLIGHTS = definition("flights")
MOMENTS = ("scheduled_departure", "occurred_at", "known_at")


@pytest.fixture
def stand(use_case: UseCase, outside: Outside, tmp_path: Path) -> Iterator[Stand]:
    made = Stand(followed_by_clock(use_case), outside, tmp_path)
    yield made
    made.close()


def arrival(stand: Stand, hour: int, number: int = 0) -> FollowedRow:
    """A plane that arrived in an hour of the week."""
    rows = stand.rows(START + hour * HOUR, START + (hour + 1) * HOUR).values()
    arrived = [row for row in rows if row.table == "movements" and '"kind":"arrived"' in (row.row_data or "")]
    return sorted(arrived, key=lambda row: (row.available_at, row.identity))[number]


def delayed(row: FollowedRow, minutes: int) -> FollowedRow:
    """The same arrival, told with another delay."""
    values = json.loads(row.row_data or "")
    values["delay_minutes"] += minutes
    return replace(row, row_data=json.dumps(values, separators=(",", ":"), ensure_ascii=False))


def go_on(stand: Stand, hours: int, what: str = "", **changes: list[FollowedRow]) -> None:
    """One step until an hour of the week, and answers to what is due by then."""
    stand.tell(START + hours * HOUR, **changes)
    stand.answer(stand.now, what)


def test_answers_that_knew_all_are_equal_to_the_bit_and_nothing_is_told(stand: Stand) -> None:
    for hours in (8, 11, 12, 13):
        go_on(stand, hours)
    stand.build()
    [found] = stand.compare()
    assert found.answers == len(stand.answered) > 20
    assert found.compared == found.answers * len([*FLIGHTS.numeric, *FLIGHTS.categorical])
    assert (found.unlogged, found.causes, stand.list_differences(), stand.list_alerts()) == (0, {}, [], [])
    assert stand.compare() == []


def without(stand: Stand, row: FollowedRow) -> pa.Table:
    """The week's movements without one."""
    rows = small(week(2))["movements"]
    kept = [each.identity != row.identity for each in encode(stand.use_case, "movements", rows)]
    return rows.filter(pa.array(kept))


def set_aside(stand: Stand, row: FollowedRow, status: str, number: int) -> None:
    """A row as validation has it in quarantine, in what is current of the week."""
    values = json.loads(row.row_data or "")
    moments = {name: datetime.fromtimestamp(values[name] / 1e6, UTC).isoformat() for name in MOMENTS}
    stand.outside.warehouse.execute(
        "insert into quarantine (use_case, table_name, partition_start, raw_sha256, row_number, row_data, reasons, status)"
        " select use_case, table_name, partition_start, raw_sha256, %s, %s, '{planted}', %s from batches"
        " where table_name = 'movements' and partition_start = %s order by version desc limit 1",
        (number, json.dumps(values | moments), status, START),
    )


def shift(stand: Stand, feature: str, what: str, by: float) -> None:
    """Features that some answers used, as a server with a mistake in it would have logged them."""
    keys = [key for key, planted in stand.answered.items() if planted == what]
    for key in keys:
        stand.outside.warehouse.execute(
            "update online_answers set features = jsonb_set(features, %s,"
            " to_jsonb(((features->>%s)::float8 + %s)::float8)) where (entity_key, event_time) = (%s, %s)",
            ([feature], feature, by, *key),
        )


def live_through(stand: Stand) -> None:
    """A day and a half, with each cause planted in hours of its own."""
    late, corrected, released, dropped = (arrival(stand, hour) for hour in (12, 15, 18, 21))
    go_on(stand, 8)
    go_on(stand, 12)
    go_on(stand, 13, "record_late", without=[late])
    go_on(stand, 14, "record_late")
    go_on(stand, 15, beside=[late])
    go_on(stand, 16, "record_corrected", beside=[delayed(corrected, 40)])
    go_on(stand, 17, "record_corrected")
    go_on(stand, 18, beside=[corrected])
    go_on(stand, 19, "quarantined_since", beside=[replace(released, reasons=("planted",))])
    go_on(stand, 20, "quarantined_since")
    go_on(stand, 21, beside=[released])
    go_on(stand, 22, "quarantined_since")
    go_on(stand, 23, "quarantined_since")
    go_on(stand, 24, gone=[dropped])
    go_on(stand, 34)
    stand.answer(START + 36 * HOUR, "stream_behind")
    go_on(stand, 36)
    stand.tell(START + 37 * HOUR)
    stand.answer(stand.now, "store_silent", stand.silent_server())
    live_by_another_clock(stand, 37, 41)
    go_on(stand, 43)
    go_on(stand, 44, "defect")
    stand.build(movements=without(stand, dropped))
    set_aside(stand, released, "replayed", 1)
    set_aside(stand, dropped, "quarantined", 2)


def live_by_another_clock(stand: Stand, first: int, last: int) -> None:
    """Weather of some hours comes an hour after its time: so does all of it."""
    held = list[FollowedRow]()
    for hour in range(first, last):
        rows = stand.rows(stand.now, START + (hour + 1) * HOUR).values()
        weather = [row for row in rows if row.table == "weather"]
        go_on(stand, hour + 1, "clock_apart", without=weather, beside=held)
        held = weather
    go_on(stand, last + 1, beside=held)


def test_every_planted_cause_is_named_and_a_defect_is_told_until_there_is_none(stand: Stand) -> None:
    live_through(stand)
    shift(stand, "all_late_rate_7d", "defect", 0.25)
    [found] = stand.compare()
    told = stand.list_differences()
    matrix = Counter(
        (stand.answered[row["entity_key"], row["event_time"].astimezone(UTC)], row["cause"]) for row in told
    )
    assert {planted for planted, _ in matrix} == {cause.value for cause in ServedCause}
    assert [cell for cell in matrix if cell[0] != cell[1]] == [], matrix
    assert found.causes == {named: count for (_, named), count in sorted(matrix.items())}
    assert (
        found.compared - len(told) == stand.outside.warehouse.query("select equal from served_partitions")[0]["equal"]
    )
    defects = [row for row in told if row["cause"] == "defect"]
    assert {row["feature"] for row in defects} == {"all_late_rate_7d"}
    assert len(defects) == list(stand.answered.values()).count("defect")
    [alert] = stand.list_alerts()
    assert (alert["tier"], alert["fingerprint"]) == ("critical", "flights.served.2013-01-14")
    assert f"all_late_rate_7d: {len(defects)} events" in alert["body"]

    shift(stand, "all_late_rate_7d", "defect", -0.25)
    [again] = stand.compare()
    assert again.causes == {cause: count for cause, count in found.causes.items() if cause != "defect"}
    assert stand.list_differences() == [row for row in told if row["cause"] != "defect"]
    assert stand.list_alerts() == []
