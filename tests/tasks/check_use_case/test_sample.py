"""What two partitions of real rows show of a use case and its features; the shipped ones show nothing."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pyarrow as pa
import pytest

import features
from features import FeatureSet
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.check_use_case import online_check
from tasks.check_use_case.sample import Sample, build_from_rows
from tasks.check_use_case.sample_check import check_sample
from tests.clean_data import FIRST, week
from tests.real_flights import real_rows
from tests.tasks.check_use_case.test_declared import assert_named, number, step
from tests.tasks.check_use_case.test_params import change

FLIGHTS = features.definition("flights")
FILE = "features/flights.py"
# Six weeks are little for the limits of the shipped block.
USE_CASE = change(
    use_cases(REPOSITORY / "params.yaml")["flights"], {"monitor.max_new_rows_share": 9.0, "train.min_rows": 1000}
)


@cache
def rows() -> Mapping[str, pa.Table]:
    return {name: real_rows(name, Interval(FIRST, week(7).end)) for name in FLIGHTS.sources}


def make_sample(definition: FeatureSet, use_case: UseCase = USE_CASE) -> Sample:
    first, second = week(5), week(6)
    until = second.end + use_case.time.label_delay
    points, _ = build_from_rows(use_case, definition, rows(), Interval(first.start, second.end))
    _, labels = build_from_rows(use_case, definition, rows(), Interval(first.start, until))
    return Sample(first=first, second=second, rows=rows(), points=points, labels=labels, until=until, seconds=0)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample(FLIGHTS)


def point(name: str, sql: str) -> FeatureSet:
    return replace(FLIGHTS, point_sql={**FLIGHTS.point_sql, name: sql})


def label(sql: str, moment: str = "known_at") -> FeatureSet:
    """The labels with another value, or known at another moment."""
    text = FLIGHTS.steps["labels"]
    return step(
        "labels", text.replace("cast(delay_minutes > 15 as bigint) as label, known_at", f"{sql} as label, {moment}")
    )


LEAK = replace(
    step(
        "asked",
        FLIGHTS.steps["asked"].replace(
            "select carrier, flight,",
            "select (select max(m.delay_minutes) from movements m where m.carrier = p.carrier and m.flight = p.flight"
            " and m.origin = p.origin and m.scheduled_departure = p.scheduled_departure) as leaked, carrier, flight,",
        ),
    ),
    point_sql={**FLIGHTS.point_sql, "leaked": "asked.leaked"},
    numeric_sql={**FLIGHTS.numeric_sql, "leaked_minutes": "leaked"},
)

# What is declared -> the key that is named, what it says, and what to set.
MISTAKES: list[tuple[FeatureSet, str, str, str]] = [
    (
        step("asked", f"{FLIGHTS.steps['asked']} and false"),
        "asked",
        "no event is predicted",
        "shorter time.lead_minutes",
    ),
    (point("entity_key", "asked.carrier"), "entity_key", "events have several points, such as", "tells the events"),
    (point("entity_key", "nullif(asked.carrier, 'UA')"), "entity_key", "null in", "a value for each"),
    (label("case when origin <> 'JFK' then 1 end"), "label", "null in", "no row where there is no label"),
    (label("1"), "label", "[1.0] in each of", "tells outcomes apart"),
    (
        label("cast(delay_minutes > 15 as bigint)", "scheduled_departure - interval 3 hours"),
        "label_time",
        "were known when",
        "the moment",
    ),
    (
        step("labels", FLIGHTS.steps["labels"].replace("carrier || flight", "flight || carrier")),
        "labels",
        "no point of",
        "the keys",
    ),
    (number("empty", "case when seats < 0 then 1 end"), "empty", "null in all", "leave it out"),
    (LEAK, "leaked_minutes", "it reads the future", "known_at <= prediction_time"),
]


def test_the_shipped_features_show_nothing(sample: Sample) -> None:
    assert sample.points.num_rows > 10_000
    assert list(check_sample(USE_CASE, FLIGHTS, sample)) == []


@pytest.mark.parametrize(("definition", "key", "found", "set_to"), MISTAKES, ids=[f"{m[1]}-{m[2]}" for m in MISTAKES])
def test_a_definition_that_is_wrong_on_real_rows_is_named(
    definition: FeatureSet, key: str, found: str, set_to: str
) -> None:
    assert_named(list(check_sample(USE_CASE, definition, make_sample(definition))), FILE, key, found, set_to)


@pytest.mark.parametrize(
    ("changes", "key", "found", "set_to"),
    [
        ({"time.label_delay_hours": 2}, "time.label_delay_hours", "2: 99% of the labels have come only", "at least"),
        ({"monitor.min_coverage": 0.999}, "monitor.min_coverage", "0.999", "at most 0.9"),
        (
            {"gate.min_rows": 90_000, "gate.min_slice_rows": 10},
            "gate.min_rows",
            "90000: about",
            "more train.holdout_days",
        ),
        ({"monitor.min_rows": 90_000}, "monitor.min_rows", "90000: about", "more 8 times source.partition_days"),
        ({"monitor.min_labelled": 50_000}, "monitor.min_labelled", "50000: about", "more monitor.performance_days"),
        ({"train.min_rows": 90_000}, "train.min_rows", "90000: about", "an earlier source.first_partition"),
        (
            {"monitor.max_new_rows_share": 0.01},
            "monitor.max_new_rows_share",
            "0.01: one partition alone has",
            "more than",
        ),
    ],
)
def test_what_the_rows_cannot_give_is_named(
    sample: Sample, changes: Mapping[str, Any], key: str, found: str, set_to: str
) -> None:
    assert_named(list(check_sample(change(USE_CASE, changes), FLIGHTS, sample)), "params.yaml", key, found, set_to)


def test_labels_of_another_kind_than_the_target_are_named() -> None:
    minutes = label("delay_minutes")
    findings = list(check_sample(USE_CASE, minutes, make_sample(minutes)))
    assert_named(findings, "params.yaml", "target.kind", "binary, and labels are", "regression")


def test_a_feature_that_a_server_computes_otherwise_is_named(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is the server's own, so another lead stands for a server that is wrong."""

    def an_hour_early(definition: FeatureSet, tables: Any, kept: Any, lead: Any, asked: pa.Table) -> pa.Table:
        return real(definition, tables, kept, lead * 1.5, asked)

    real = online_check.compute_as_online
    monkeypatch.setattr(online_check, "compute_as_online", an_hour_early)
    findings = list(check_sample(USE_CASE, FLIGHTS, sample))
    assert_named(findings, FILE, "origin_departed_late_share_3h", "another value than in batch", "the request tells")
