"""What the source lacks of what is declared is named; the shipped use case passes on its own source, rows and all."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pyarrow.compute as pc
import pytest

import features
from adapters.connect import Outside
from expectations import suites
from infra.replay.flights_source import FLIGHTS_SOURCE
from infra.replay.live_source import LiveSource
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase
from tasks.check_use_case.__main__ import check_use_case
from tasks.check_use_case.sample import find_partitions, read_sample_rows, take_sample
from tasks.check_use_case.sample_check import check_volumes
from tasks.check_use_case.source_check import check_source
from tests.clean_data import FIRST, week
from tests.tasks.check_use_case.test_declared import assert_named
from tests.tasks.check_use_case.test_params import change
from tests.tasks.killed import environment

EXPECTATIONS = "expectations/flights.py"

# What is done to the source -> the file, the key that is named, what it says, and what to set.
MISTAKES: list[tuple[str, str, str, str, str]] = [
    ("drop table planes", "params.yaml", "source.tables.planes", "'planes' is no table", "one of airlines"),
    (
        "alter table planes rename column seats to places",
        EXPECTATIONS,
        "seats",
        "planes of the source has no such column",
        "places",
    ),
    (
        "alter table planes alter column seats type text",
        EXPECTATIONS,
        "seats",
        "expected integer, got string",
        "a view that casts it",
    ),
    (
        "alter table planes alter column seats type bigint[] using array[seats]",
        EXPECTATIONS,
        "seats",
        "declare it as text",
        "text, or leave it out",
    ),
    ("drop table data_clock", "params.yaml", "source.watermark.table", "'data_clock' is no table", "one of airlines"),
    (
        "alter table data_clock rename column told_until to told",
        "params.yaml",
        "source.watermark.column",
        "'told_until' is no column of data_clock",
        "told",
    ),
    (
        "truncate weather",
        "params.yaml",
        "source.first_partition",
        "table weather has no row",
        "the first day of its rows",
    ),
    (
        (
            "alter table airlines drop constraint airlines_pkey; alter table airlines alter known_at drop not null;"
            " update airlines set known_at = null where carrier = 'UA'"
        ),
        "params.yaml",
        "source.tables.airlines.available_at",
        "known_at is null in 1 rows",
        "a column without nulls",
    ),
    (
        "update airlines set known_at = now() + interval '9 days' where carrier = 'UA'",
        "params.yaml",
        "source.tables.airlines.available_at",
        "which is yet to come",
        "when it became known",
    ),
    (
        "alter table weather drop constraint weather_pkey",
        "params.yaml",
        "source.follow",
        "weather has no primary key",
        "poll, or a primary key",
    ),
]


@pytest.fixture
def source(outside: Outside) -> LiveSource:
    """Seven weeks of it."""
    made = LiveSource(outside.source, FLIGHTS_SOURCE)
    made.open(FIRST + timedelta(days=49))
    return made


@pytest.mark.usefixtures("source")
def test_the_shipped_use_case_passes_on_its_source_and_one_mistake_is_told_by_the_command(
    use_case: UseCase, outside: Outside
) -> None:
    few_weeks = {"monitor.max_new_rows_share": 9.0, "train.min_rows": 1100, "source.last_partition": None}
    fits = change(use_case, few_weeks | {"monitor.min_coverage": 0.85})  # and a blizzard
    assert list(check_use_case(fits, outside)) == []
    outside.source.execute("truncate weather")
    command = [sys.executable, "-m", "tasks.check_use_case", "flights"]
    done = subprocess.run(command, env=environment(outside.settings), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, last = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert first.startswith("params.yaml:")
    assert "flights.source.first_partition: 2012-12-31: table weather has no row" in first
    assert last.startswith("flights: 1 to be changed")


@pytest.mark.usefixtures("source")
def test_the_shipped_source_is_as_declared(use_case: UseCase, outside: Outside) -> None:
    assert list(check_source(use_case, suites("flights"), outside)) == []


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("mistake", MISTAKES, ids=[each[0][:40] for each in MISTAKES])
def test_what_a_source_lacks_is_named(
    use_case: UseCase, outside: Outside, mistake: tuple[str, str, str, str, str]
) -> None:
    done, *told = mistake
    outside.source.execute(done)
    assert_named(list(check_source(use_case, suites("flights"), outside)), *told)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(
    ("changes", "done", "found"),
    [
        ({"source.tables.flights.min_rows": 9000}, "", "volume: far fewer"),
        ({"source.tables.weather.max_rows": 410}, "", "volume: far fewer or far more"),
        (
            {},
            "insert into airlines select carrier, name, known_at + interval '29 days' from airlines",
            "duplicated key",
        ),
        ({}, "update weather set temp_f = 900 where known_at >= '2013-01-28'", "would be quarantined"),
    ],
)
def test_a_partition_that_validation_would_stop_is_named(
    use_case: UseCase, outside: Outside, changes: Mapping[str, Any], done: str, found: str
) -> None:
    if done:
        outside.source.execute(done)
        outside.source.execute("insert into airlines select carrier, name, known_at + interval '30 days' from airlines")
    partitions = week(4), week(5)
    raw = read_sample_rows(use_case, features.definition("flights"), partitions, outside)
    findings = list(check_volumes(change(use_case, changes), suites("flights"), partitions, raw))
    assert any(found in finding.found for finding in findings), findings
    assert all(
        finding.describe("flights", REPOSITORY / "params.yaml").startswith("params.yaml:") for finding in findings
    )


def test_rows_that_ingest_would_set_aside_are_not_judged(
    use_case: UseCase, outside: Outside, source: LiveSource
) -> None:
    declared, definition = suites("flights"), features.definition("flights")
    partitions = find_partitions(use_case, definition, declared, outside)
    assert partitions is not None
    assert partitions == (week(4), week(5))
    hot = f"update weather set temp_f = 900 where origin = 'JFK' and known_at >= '{week(5).start}'"
    outside.source.execute(f"{hot} and known_at < '{week(5).start + timedelta(hours=5)}'")
    raw = read_sample_rows(use_case, definition, partitions, outside)
    sample = take_sample(use_case, definition, declared, partitions, raw)
    assert pc.max(sample.rows["weather"]["temp_f"]).as_py() < 200


def test_a_source_with_too_little_to_look_at_is_named(use_case: UseCase, outside: Outside) -> None:
    LiveSource(outside.source, FLIGHTS_SOURCE).open(FIRST + timedelta(days=9))
    findings = list(check_use_case(change(use_case, {"source.last_partition": None}), outside))
    assert_named(findings, "params.yaml", "source.first_partition", "no two partitions have rows", "wait for them")
