"""Every feature that was served otherwise than batch works it out has a cause, proved; what has none is a defect."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.connect import Outside
from features import definition
from features.online import Event
from pipeline.spec import UseCase
from serving.lookup import LookedUpFeatures
from tasks.build_features import dataset
from tasks.build_features.followed_rows import FollowedRow
from tasks.monitor.feature_ledger import prove
from tasks.monitor.feature_ledger.ledger import compare_partition
from tasks.monitor.feature_ledger.row_causes import ServedCause
from tests.clean_data import week
from tests.tasks.build_features.test_build import put, small
from tests.tasks.monitor.served_stand import HOUR, START, Stand, encode, followed_by_clock
from tests.tasks.stream.answering import Server

FLIGHTS = definition("flights")
PLANTED = ("before", "both")
MOMENTS = ("scheduled_departure", "occurred_at", "known_at")


@pytest.fixture
def lacking() -> FollowedRow | None:
    """A row of a week that was taken, which comes later."""
    return None


@pytest.fixture
def stand(use_case: UseCase, outside: Outside, tmp_path: Path, lacking: FollowedRow | None) -> Iterator[Stand]:
    made = Stand(followed_by_clock(use_case), outside, tmp_path, lacking=lacking)
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


def planted(stand: Stand, row: dict[str, Any]) -> str:
    """Under what a difference's answer was given."""
    return stand.answered[row["entity_key"], row["event_time"].astimezone(UTC)]


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


def set_aside(stand: Stand, row: FollowedRow, status: str, number: int) -> None:
    """A row as validation has it in quarantine, in what is current of the week."""
    values = json.loads(row.row_data or "")
    moments = {name: datetime.fromtimestamp(values[name] / 1e6, UTC).isoformat() for name in MOMENTS}
    stand.outside.warehouse.execute(
        "insert into quarantine (use_case, table_name, partition_start, raw_sha256, row_number, row_data, reasons,"
        " status) select use_case, table_name, partition_start, raw_sha256, %s, %s, '{planted}', %s from batches"
        " where table_name = 'movements' and partition_start = %s order by version desc limit 1",
        (number, json.dumps(values | moments), status, START),
    )


@contextmanager
def shifted(server: Server, feature: str, by: float) -> Iterator[None]:
    """A server that works one feature out wrongly."""
    lookup = server._answerer._lookup
    real = lookup.look_up

    def look_up(events: Sequence[Event]) -> LookedUpFeatures:
        told = real(events)
        place = told.rows.numeric.index(feature)
        wrong = [
            [value + by if at == place and value is not None else value for at, value in enumerate(row)]
            for row in told.rows.values
        ]
        return replace(told, rows=replace(told.rows, values=wrong))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lookup, "look_up", look_up)
        yield


def live_through(stand: Stand) -> None:
    """A day and a half, with each cause planted in hours of its own."""
    late, corrected, released, dropped = (arrival(stand, hour) for hour in (12, 14, 16, 18))
    go_on(stand, 8)
    go_on(stand, 12)
    go_on(stand, 13, "record_late", without=[late])
    go_on(stand, 14, beside=[late])
    go_on(stand, 15, "record_corrected", beside=[delayed(corrected, 40)])
    go_on(stand, 16, beside=[corrected])
    go_on(stand, 17, "quarantined_since", beside=[replace(released, reasons=("planted",))])
    go_on(stand, 18, beside=[released])
    go_on(stand, 19, "quarantined_since")
    go_on(stand, 20, gone=[dropped])
    stand.answer(START + 22 * HOUR, "stream_behind")
    stand.tell(START + 23 * HOUR)
    stand.answer(stand.now, "store_silent", stand.silent_server())
    with shifted(stand.server, "all_late_rate_7d", 0.25):
        go_on(stand, 24, "defect")
    go_on(stand, 37)
    live_by_another_clock(stand, 37, 41)
    stand.build(**stand.movements_without(2, dropped))
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

    stand.outside.warehouse.execute(
        "update online_answers o set features = jsonb_set(features, array[feature], batch) from served_differences d"
        " where (o.entity_key, o.event_time, d.cause) = (d.entity_key, d.event_time, 'defect')"
    )
    [again] = stand.compare()
    assert again.causes == {cause: count for cause, count in found.causes.items() if cause != "defect"}
    assert stand.list_differences() == [row for row in told if row["cause"] != "defect"]
    assert stand.list_alerts() == []


def test_a_row_that_the_stream_lost_is_a_defect(stand: Stand) -> None:
    lost = arrival(stand, 12)
    for hours in (8, 12):
        go_on(stand, hours)
    go_on(stand, 13, without=[lost])
    stand.build()
    [found] = stand.compare()
    assert found.causes.keys() == {"defect"}
    proofs = [row["proof"] for row in stand.list_differences()]
    assert {proof["rows"][0]["identity"] for proof in proofs} == {lost.identity}
    assert {proof["rows"][0]["missing"] for proof in proofs} == {"nothing that is kept says why"}
    assert len(stand.list_alerts()) == 1


def break_weather(stand: Stand, first: int, last: int) -> list[FollowedRow]:
    """Hours in which the feed sends nothing but its times; of each hour there is an answer that is behind."""
    real = list[FollowedRow]()
    for hour in range(first, last):
        rows = stand.rows(stand.now, START + (hour + 1) * HOUR).values()
        weather = [row for row in rows if row.table == "weather"]
        stand.tell(START + (hour + 1) * HOUR, without=weather, beside=[emptied(row) for row in weather])
        stand.answer(stand.now + HOUR, "broken")
        real += weather
    return real


def emptied(row: FollowedRow) -> FollowedRow:
    """A record with no measurement in it."""
    values = json.loads(row.row_data or "")
    kept = values | {name: None for name in values if name in ("temp_f", "dewpoint_f", "humidity", "wind_speed_mph")}
    return replace(row, row_data=json.dumps(kept, separators=(",", ":"), ensure_ascii=False))


def test_a_feed_that_was_broken_for_many_states_of_a_store_that_was_behind_is_proved_at_once(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(stand, 10)
    real = break_weather(stand, 10, 20)
    go_on(stand, 21, beside=real)
    stand.build()
    monkeypatch.setattr(prove, "_MOST_SCENES", 2)
    [found] = stand.compare()
    broken = [row for row in stand.list_differences() if row["feature"] == "temp_f"]
    assert len({row["proof"]["step"] for row in broken}) == 10
    assert {row["cause"] for row in broken} == {"record_corrected"}
    assert "defect" not in found.causes
    for proof in (row["proof"] for row in broken):
        knew = datetime.fromisoformat(proof["known_until"])
        assert proof["rows_in_all"] == sum(row.available_at <= knew for row in real), proof


class TestOfTakenPartition:
    """A row of a partition that was taken comes late; what it and another row together change has both causes."""

    @pytest.fixture
    def lacking(self, use_case: UseCase) -> FollowedRow:
        rows = encode(use_case, "movements", small(week(1))["movements"])
        arrived = [row for row in rows if '"kind":"arrived"' in (row.row_data or "")]
        return max(arrived, key=lambda row: (row.available_at, row.identity))

    def test_it_is_late_by_its_position_in_the_log_or_by_what_was_taken(
        self, stand: Stand, lacking: FollowedRow
    ) -> None:
        deleted = arrival(stand, 12)
        go_on(stand, 8)
        go_on(stand, 12, "before", beside=[lacking])
        go_on(stand, 13, "both")
        go_on(stand, 14, "before", gone=[deleted])
        put(stand.outside, stand.use_case, 1)
        stand.build(**stand.movements_without(2, deleted))
        [found] = stand.compare()
        told = stand.list_differences()
        assert found.causes.keys() == {"record_late", "record_corrected"}
        causes = {name: [row["proof"]["causes"] for row in told if planted(stand, row) == name] for name in PLANTED}
        assert {tuple(each) for each in causes["before"]} == {("record_late",)}
        assert ["record_late", "record_corrected"] in causes["both"]
        [of_log] = {row["proof"]["rows"][0]["position"] for row in told if row["proof"]["causes"] == ["record_late"]}
        assert of_log == 12 * 3600

        stand.outside.warehouse.execute("delete from followed_versions where not is_followed")
        snapshot = dataset.latest_snapshot(stand.use_case, stand.outside)
        assert snapshot is not None
        again = compare_partition(stand.use_case, snapshot, found.partition, found.seen, stand.outside)
        assert again.causes == found.causes
        [of_objects] = {
            row["partition"] for each in again.differing for row in each.proof["rows"] if "partition" in row
        }
        assert of_objects == "2013-01-07"
