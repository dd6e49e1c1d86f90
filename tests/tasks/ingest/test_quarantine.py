"""A corrected row comes back exactly once, into what an undisturbed run would have written; a wrong one not."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from adapters.connect import Outside
from adapters.errors import FencedOut
from adapters.parquet import from_bytes
from pipeline.handoffs import Batch, TableBatch
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase
from tasks.common.errors import BadData
from tasks.ingest.land import land_partition
from tasks.ingest.quarantine import list_quarantined, main, validation_key
from tasks.ingest.replay import replay_rows
from tasks.ingest.validate import validate_batch
from tests.real_flights import fill
from tests.tasks import killed

WEEK = "2013-10-28"
AT = "origin = 'EWR' and observed_at = "
TRUE_WIND, TRUE_HUMIDITY = 11.5, 61.25


@pytest.fixture
def use_case(use_case: UseCase) -> UseCase:
    """With two tables, where the others would only take time."""
    tables = {name: use_case.source.tables[name] for name in ("weather", "airlines")}
    return use_case.model_copy(update={"source": use_case.source.model_copy(update={"tables": tables})})


@pytest.fixture
def partition(use_case: UseCase) -> Interval:
    return use_case.grid.partition(WEEK)


@pytest.fixture
def undisturbed(use_case: UseCase, partition: Interval, outside: Outside) -> TableBatch:
    """What the week's weather is when nothing is broken."""
    fill(outside.source, partition, "weather", "airlines")
    outside.source.execute(f"update weather set wind_speed_mph = {TRUE_WIND} where {AT} '2013-10-29 12:00+00'")
    outside.source.execute(f"update weather set humidity = {TRUE_HUMIDITY} where {AT} '2013-10-30 12:00+00'")
    return weather(validate_batch(use_case, land_partition(use_case, partition, outside), outside))


@pytest.fixture
def broken(undisturbed: TableBatch, use_case: UseCase, partition: Interval, outside: Outside) -> tuple[int, int]:
    """Two rows of it broken, and quarantined: the wind's and the humidity's row number."""
    outside.source.execute(f"update weather set wind_speed_mph = 1048 where {AT} '2013-10-29 12:00+00'")
    outside.source.execute(f"update weather set humidity = 'NaN' where {AT} '2013-10-30 12:00+00'")
    batch = weather(validate_batch(use_case, land_partition(use_case, partition, outside), outside))
    assert batch.quarantined_rows == 2
    wind, humidity = (row["row_number"] for row in list_quarantined(use_case, outside, partition=partition))
    return wind, humidity


_CHILD = """
from tasks.ingest import replay
dumps, rows = replay.json.dumps, []
class Json:
    def dumps(value):
        rows.append(value)
        return dumps(value) if len(rows) == 1 else die()
replay.json = Json
use_case = use_cases(settings().params)["flights"]
partition = use_case.grid.partition("2013-10-28")
replay.replay_rows(use_case, "weather", partition, {corrections!r}, "ada", outside)
"""


def weather(batch: Batch) -> TableBatch:
    return next(one for one in batch.tables if one.table == "weather")


def state(outside: Outside) -> list[Any]:
    """Everything a replay may change."""
    return [
        outside.warehouse.query("select *, xmin::text from batches order by table_name, version"),
        outside.warehouse.query("select *, xmin::text from quarantine order by row_number"),
    ]


def test_corrected_rows_give_the_very_object_of_an_undisturbed_run(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int], undisturbed: TableBatch
) -> None:
    corrections = [
        {"row_number": broken[0], "wind_speed_mph": TRUE_WIND},
        {"row_number": broken[1], "humidity": TRUE_HUMIDITY},
    ]
    batch = replay_rows(use_case, "weather", partition, corrections, "ada", outside)
    assert weather(batch).clean_sha256 == undisturbed.clean_sha256
    assert (weather(batch).quarantined_rows, weather(batch).clean_rows) == (0, undisturbed.clean_rows)
    assert len(batch.tables) == 2
    rows = list_quarantined(use_case, outside, partition=partition)
    assert [(row["status"], row["replayed_by"]) for row in rows] == [("replayed", "ada")] * 2
    assert rows[0]["corrected"] == {"wind_speed_mph": TRUE_WIND}
    assert rows[0]["row_data"]["wind_speed_mph"] == 1048  # what was wrong stays on record
    assert rows[0]["replayed_at"] is not None


def test_one_by_one_they_give_the_same(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int], undisturbed: TableBatch
) -> None:
    first = replay_rows(
        use_case, "weather", partition, [{"row_number": broken[1], "humidity": TRUE_HUMIDITY}], "ada", outside
    )
    assert weather(first).quarantined_rows == 1
    second = replay_rows(
        use_case, "weather", partition, [{"row_number": broken[0], "wind_speed_mph": TRUE_WIND}], "bob", outside
    )
    assert weather(second).clean_sha256 == undisturbed.clean_sha256
    assert [row["replayed_by"] for row in list_quarantined(use_case, outside)] == ["bob", "ada"]


def test_replaying_or_validating_again_changes_nothing(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int]
) -> None:
    corrections = [{"row_number": broken[0], "wind_speed_mph": TRUE_WIND}]
    first = replay_rows(use_case, "weather", partition, corrections, "ada", outside)
    before = state(outside)
    assert replay_rows(use_case, "weather", partition, corrections, "bob", outside) == first
    assert weather(validate_batch(use_case, land_partition(use_case, partition, outside), outside)) == weather(first)
    assert state(outside) == before
    clean = from_bytes(outside.lake.read(str(weather(first).clean_uri)))
    moments = list(zip(clean["origin"].to_pylist(), clean["observed_at"].to_pylist(), strict=True))
    assert len(set(moments)) == len(moments) == weather(first).clean_rows


def test_a_row_that_is_still_bad_is_refused_with_its_reason_and_the_others_are_merged(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int]
) -> None:
    corrections = [
        {"row_number": broken[0], "wind_speed_mph": TRUE_WIND},
        {"row_number": broken[1], "humidity": 300},
    ]
    with pytest.raises(BadData, match=rf"1 of 2 (?s:.)*row {broken[1]}: .*humidity = 300\.0"):
        replay_rows(use_case, "weather", partition, corrections, "ada", outside)
    assert [row["status"] for row in list_quarantined(use_case, outside)] == ["replayed", "quarantined"]


def test_where_every_row_is_still_bad_nothing_changes(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int]
) -> None:
    before, objects = state(outside), outside.lake.list("clean/")
    with pytest.raises(BadData, match="0 of 1 corrected rows"):
        replay_rows(use_case, "weather", partition, [{"row_number": broken[0], "wind_speed_mph": 999}], "ada", outside)
    assert (state(outside), outside.lake.list("clean/")) == (before, objects)


def test_a_correction_may_not_take_the_key_of_a_clean_row(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int]
) -> None:
    before = state(outside)
    taken = {"row_number": broken[0], "wind_speed_mph": TRUE_WIND, "observed_at": "2013-10-29T11:00:00+00:00"}
    with pytest.raises(BadData, match="duplicated key"):
        replay_rows(use_case, "weather", partition, [taken], "ada", outside)
    assert state(outside) == before


@pytest.fixture
def versioned(use_case: UseCase) -> UseCase:
    """Several rows of a key are versions of one."""
    tables = use_case.source.tables
    kept = {**tables, "weather": tables["weather"].model_copy(update={"duplicates": "keep_latest"})}
    return use_case.model_copy(update={"source": use_case.source.model_copy(update={"tables": kept})})


def tell_again(outside: Outside, wind: float) -> None:
    """A second version of one row, told five minutes later."""
    with outside.source.transaction() as at:
        at.execute(f"create table again as select * from weather where {AT} '2013-10-29 12:00+00'")
        at.execute("update again set known_at = known_at + interval '5 minutes', wind_speed_mph = %s", (wind,))
        at.execute("insert into weather select * from again")
        at.execute("drop table again")


def ingest(use_case: UseCase, partition: Interval, outside: Outside) -> TableBatch:
    return weather(validate_batch(use_case, land_partition(use_case, partition, outside), outside))


def test_a_corrected_latest_version_takes_the_place_of_the_clean_one_before_it(
    versioned: UseCase, partition: Interval, outside: Outside, undisturbed: TableBatch
) -> None:
    tell_again(outside, 1048)
    before = ingest(versioned, partition, outside)
    assert (before.clean_sha256, before.quarantined_rows) == (undisturbed.clean_sha256, 1)
    [latest] = list_quarantined(versioned, outside, partition=partition)
    correction = [{"row_number": latest["row_number"], "wind_speed_mph": 9.5}]
    replayed = weather(replay_rows(versioned, "weather", partition, correction, "ada", outside))
    rows = {row["status"]: row for row in list_quarantined(versioned, outside, partition=partition)}
    assert rows["quarantined"]["row_data"]["wind_speed_mph"] == TRUE_WIND
    assert "the latest is kept" in rows["quarantined"]["reasons"][0]
    assert replay_rows(versioned, "weather", partition, correction, "bob", outside).tables[-1] == replayed

    outside.source.execute("update weather set wind_speed_mph = 9.5 where wind_speed_mph = 1048")
    right = ingest(versioned, partition, outside)
    assert (right.clean_sha256, right.quarantined_rows) == (replayed.clean_sha256, replayed.quarantined_rows)


def test_a_corrected_version_of_which_a_later_one_is_clean_is_refused_with_what_to_do(
    versioned: UseCase, partition: Interval, outside: Outside, undisturbed: TableBatch
) -> None:
    outside.source.execute(f"update weather set wind_speed_mph = 1048 where {AT} '2013-10-29 12:00+00'")
    tell_again(outside, TRUE_WIND)
    ingest(versioned, partition, outside)
    [older] = list_quarantined(versioned, outside, partition=partition)
    before, number = state(outside), older["row_number"]
    correction = {"row_number": number, "wind_speed_mph": 9.5}
    with pytest.raises(BadData, match=rf"row {number}: .*the latest is kept.*; a later version is clean already: "):
        replay_rows(versioned, "weather", partition, [correction], "ada", outside)
    assert state(outside) == before
    moved = {"row_number": number, "wind_speed_mph": 9.5, "observed_at": "2013-10-29T11:50:00+00:00"}
    assert weather(replay_rows(versioned, "weather", partition, [moved], "ada", outside)).quarantined_rows == 0


def test_a_correction_may_not_leave_its_partition(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int]
) -> None:
    before = state(outside)
    moved = {"row_number": broken[0], "wind_speed_mph": TRUE_WIND, "known_at": "2013-12-01T00:00:00+00:00"}
    with pytest.raises(BadData, match="became known after its partition"):
        replay_rows(use_case, "weather", partition, [moved], "ada", outside)
    assert state(outside) == before


@pytest.mark.parametrize(
    "case",
    [
        ({"row_number": 0, "humidity": 50}, "not in quarantine: rows \\[0\\]"),
        ({"row_number": "7", "humidity": 50}, "row_number: expected a whole number"),
        ({"humidity": 50}, "row_number: expected a whole number"),
        ({"wind_speed": 5}, "no column wind_speed"),
        ({"wind_speed_mph": "5"}, "wind_speed_mph: expected float, got '5'"),
        ({"wind_speed_mph": True}, "expected float, got True"),
        ({"observed_at": "2013-10-29T12:00:00"}, "names no time zone"),
        ({"observed_at": "yesterday"}, "expected a moment such as"),
        ({}, "nothing to change"),
    ],
)
def test_a_correction_that_makes_no_sense_is_told_so(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int], case: tuple[dict[str, Any], str]
) -> None:
    change, complaint = case
    correction = change if complaint.startswith(("not in", "row_number")) else {"row_number": broken[0], **change}
    before = state(outside)
    with pytest.raises(ValueError, match=complaint):
        replay_rows(use_case, "weather", partition, [correction], "ada", outside)
    assert state(outside) == before


def test_a_replayed_row_cannot_be_corrected_otherwise_later(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int]
) -> None:
    replay_rows(
        use_case, "weather", partition, [{"row_number": broken[0], "wind_speed_mph": TRUE_WIND}], "ada", outside
    )
    with pytest.raises(ValueError, match="was replayed already, by ada"):
        replay_rows(use_case, "weather", partition, [{"row_number": broken[0], "wind_speed_mph": 3.0}], "bob", outside)


def test_a_table_or_partition_without_clean_data_says_so(
    use_case: UseCase, partition: Interval, outside: Outside
) -> None:
    with pytest.raises(ValueError, match="no table 'weathr'"):
        replay_rows(use_case, "weathr", partition, [], "ada", outside)
    with pytest.raises(ValueError, match="is not landed"):
        replay_rows(use_case, "weather", partition, [{"row_number": 1, "humidity": 5.0}], "ada", outside)


def test_a_replay_killed_within_its_commit_and_run_again_happens_once(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int], undisturbed: TableBatch
) -> None:
    before = state(outside)
    corrections = [
        {"row_number": broken[0], "wind_speed_mph": TRUE_WIND},
        {"row_number": broken[1], "humidity": TRUE_HUMIDITY},
    ]
    killed.run(outside.settings, _CHILD.format(corrections=corrections), killed=True)
    assert state(outside) == before
    batch = replay_rows(use_case, "weather", partition, corrections, "ada", outside)
    assert weather(batch).clean_sha256 == undisturbed.clean_sha256
    assert {row["status"] for row in list_quarantined(use_case, outside)} == {"replayed"}


def test_a_replay_that_was_overtaken_changes_nothing(
    use_case: UseCase,
    partition: Interval,
    outside: Outside,
    broken: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks.ingest import replay

    store_clean, before = replay.store_clean, state(outside)

    def overtaken(*work: Any) -> Any:
        outside.warehouse.begin(validation_key(use_case, partition))
        return store_clean(*work)

    monkeypatch.setattr(replay, "store_clean", overtaken)
    with pytest.raises(FencedOut):
        replay_rows(use_case, "weather", partition, [{"row_number": broken[0], "wind_speed_mph": 5.0}], "ada", outside)
    assert state(outside) == before


@pytest.mark.parametrize("replays", [1, 0])
def test_a_validation_that_slept_through_a_replay_does_not_undo_it(  # noqa: PLR0917  # fixtures
    use_case: UseCase,
    partition: Interval,
    outside: Outside,
    undisturbed: TableBatch,
    monkeypatch: pytest.MonkeyPatch,
    replays: int,
) -> None:
    """Its twin: without a replay the same sleep changes nothing either."""
    from tasks.ingest import validate as step

    outside.source.execute(f"update weather set wind_speed_mph = 1048 where {AT} '2013-10-29 12:00+00'")
    batch, known = land_partition(use_case, partition, outside), step._clean_already
    states: list[Any] = []

    def sleeps(work: Any) -> Any:
        found = known(work)
        if not states:
            states.append(None)
            validate_batch(use_case, batch, outside)
            [row] = list_quarantined(use_case, outside, partition=partition)
            correction = {"row_number": row["row_number"], "wind_speed_mph": TRUE_WIND}
            replay_rows(use_case, "weather", partition, [correction] * replays, "ada", outside)
            states[0] = state(outside)
        return found

    monkeypatch.setattr(step, "_clean_already", sleeps)
    resumed = weather(validate_batch(use_case, batch, outside))
    assert [state(outside)] == states
    assert (resumed.clean_sha256 == undisturbed.clean_sha256) == bool(replays)


@pytest.mark.parametrize("replays", [1, 0])
def test_corrections_that_new_content_does_without_are_told_of(
    use_case: UseCase, partition: Interval, outside: Outside, broken: tuple[int, int], replays: int
) -> None:
    """Its twin: rows that nobody corrected are no news."""
    corrections: list[dict[str, Any]] = [
        {"row_number": broken[0], "wind_speed_mph": TRUE_WIND},
        {"row_number": broken[1], "humidity": TRUE_HUMIDITY},
    ]
    replay_rows(use_case, "weather", partition, corrections * replays, "ada", outside)
    outside.source.execute(f"update weather set humidity = 60 where {AT} '2013-10-30 12:00+00'")
    validate_batch(use_case, land_partition(use_case, partition, outside), outside)
    warnings = outside.warehouse.query("select title, body from alerts where tier = 'warning' and resolved_at is null")
    assert [one["title"] for one in warnings] == ["flights: 2 corrections of weather no longer apply"] * replays
    for one in warnings:
        assert re.search(rf"row {broken[0]}, corrected by ada: .*11\.5.*as bad as before, now row \d+", one["body"])
        assert re.search(rf"row {broken[1]}, corrected by ada: .*61\.25.*mended, changed or dropped", one["body"])
    validate_batch(use_case, land_partition(use_case, partition, outside), outside)
    assert outside.warehouse.query("select * from alerts where tier = 'warning' and resolved_at is null") == []


def command(outside: Outside, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "tasks.ingest.quarantine", *arguments]
    environment = killed.environment(outside.settings)
    return subprocess.run(line, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_command_prints_each_row_with_its_reasons_and_the_number_that_a_correction_names(
    outside: Outside, broken: tuple[int, int]
) -> None:
    done = command(outside, "flights", "--table=weather", f"--partition={WEEK}")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["row_number"], row["table_name"], row["status"]) for row in rows] == [
        (number, "weather", "quarantined") for number in broken
    ]
    assert "wind_speed_mph = 1048" in rows[0]["reasons"][0]
    assert rows[1]["row_data"]["humidity"] == "nan"
    wrong = command(outside, "flights", "--table=weathr")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no table 'weathr': flights has flights, movements" in wrong.stderr


def test_the_command_prints_only_the_table_and_partition_that_it_names(
    outside: Outside, broken: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adapters.connect.outside", lambda: outside)
    for arguments, rows in (([], 2), (["--table=airlines"], 0), (["--partition=2013-10-21"], 0)):
        assert main(["flights", *arguments]) == 0
        assert len(capsys.readouterr().out.splitlines()) == rows
    assert main(["nonsense"]) == 2
    assert "no use case 'nonsense'" in capsys.readouterr().err
