"""Expectations and features that do not fit a use case, or an engine, are named; the shipped ones fit."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

import features
from expectations import suites
from expectations.vocabulary import DeclaredColumn, Suite, between
from features import FeatureSet
from features.vocabulary import SourceTable
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.check_use_case.declared_check import check_definition, check_suites
from tests.tasks.check_use_case.test_params import change

USE_CASE = use_cases(REPOSITORY / "params.yaml")["flights"]
SUITES, FLIGHTS = suites("flights"), features.definition("flights")
FEATURES, EXPECTATIONS = "features/flights.py", "expectations/flights.py"


def suite(table: str, **changes: Any) -> Mapping[str, Suite]:
    return {**SUITES, table: replace(SUITES[table], **changes)}


def without_column(table: str, column: str) -> Mapping[str, Suite]:
    columns = {name: declared for name, declared in SUITES[table].columns.items() if name != column}
    return suite(table, columns=columns)


def with_column(table: str, column: str, kind: Any, *, nullable: bool) -> Mapping[str, Suite]:
    return suite(table, columns={**SUITES[table].columns, column: DeclaredColumn(kind=kind, nullable=nullable)})


def source(name: str, **columns: Any) -> FeatureSet:
    known = FLIGHTS.sources[name]
    made = SourceTable(columns={**known.columns, **columns}, timeless=known.timeless, grain=known.grain)
    return replace(FLIGHTS, sources={**FLIGHTS.sources, name: made})


def step(name: str, sql: str) -> FeatureSet:
    return replace(FLIGHTS, steps={**FLIGHTS.steps, name: sql})


def number(name: str, sql: str) -> FeatureSet:
    return replace(FLIGHTS, numeric_sql={**FLIGHTS.numeric_sql, name: sql})


def windows(which: int, **changes: Any) -> FeatureSet:
    made = list(FLIGHTS.windows)
    made[which] = replace(made[which], **changes)
    return replace(FLIGHTS, windows=tuple(made))


# What is declared -> the file, the key that is named, what it says, and what to set.
SUITE_MISTAKES: list[tuple[Mapping[str, Suite], str, str, str, str]] = [
    (
        {n: s for n, s in SUITES.items() if n != "planes"},
        EXPECTATIONS,
        "planes",
        "no suite is about",
        "a suite 'planes'",
    ),
    ({**SUITES, "trains": SUITES["planes"]}, "params.yaml", "source.tables", "lacks 'trains'", "a table 'trains'"),
    (
        without_column("planes", "tailnum"),
        "params.yaml",
        "source.tables.planes.key",
        "'tailnum' is no column",
        "columns",
    ),
    (
        with_column("planes", "tailnum", "text", nullable=True),
        "params.yaml",
        "source.tables.planes.key",
        "'tailnum' may be null",
        "always have a value",
    ),
    (
        without_column("weather", "known_at"),
        "params.yaml",
        "source.tables.weather.available_at",
        "'known_at' is no column",
        "kind timestamp",
    ),
    (
        with_column("weather", "known_at", "text", nullable=False),
        "params.yaml",
        "source.tables.weather.available_at",
        "is of kind text",
        "kind timestamp",
    ),
    (
        suite("planes", expects=(*SUITES["planes"].expects, between("wings", 1, 4, "planes have wings"))),
        EXPECTATIONS,
        "wings",
        "does not declare",
        "one of tailnum",
    ),
    (
        suite("planes", plausible_hours={"seats": (0, 1)}),
        EXPECTATIONS,
        "seats",
        "no such column of kind timestamp",
        "one",
    ),
]

DEFINITION_MISTAKES: list[tuple[FeatureSet, str, str, str, str]] = [
    (source("planes", wings="bigint"), FEATURES, "wings", "planes.wings is not declared", "a column of the suite"),
    (
        source("planes", seats="varchar"),
        FEATURES,
        "seats",
        "is read as varchar, and is of kind integer",
        "bigint='seats'",
    ),
    (
        replace(FLIGHTS, sources={**FLIGHTS.sources, "trains": FLIGHTS.sources["planes"]}),
        FEATURES,
        "trains",
        "no suite is about",
        "one of flights",
    ),
    (number("label", "seats"), FEATURES, "label", "tables of points and scores need", "another name"),
    (number("score", "seats"), FEATURES, "score", "tables of points and scores need", "another name"),
    (number("carrier", "seats"), FEATURES, "carrier", "numeric and categorical at once", "two names"),
    (windows(1, prefix="all"), FEATURES, "all", "two windows of one prefix", "two prefixes"),
    (
        windows(0, sums=("one", "one_var"), variances=("one",)),
        FEATURES,
        f"{FLIGHTS.windows[0].prefix}_one_var_7d",
        "two columns of one window have this name",
        "another name of a column",
    ),
    (
        replace(FLIGHTS, point_sql={n: s for n, s in FLIGHTS.point_sql.items() if n != "prediction_time"}),
        FEATURES,
        "prediction_time",
        "no such column",
        "among the columns of a point",
    ),
    (step("due", f"{FLIGHTS.steps['due']} and known_at < now()"), FEATURES, "due", "now gives something else", "{end}"),
    (number("noise", "random()"), FEATURES, "noise", "random gives something else", "what the rows say"),
    (step("due", "select no_such_column from schedule"), FEATURES, "flights", "DuckDB refuses it", "DuckDB knows"),
    (number("odd", "no_such_function(seats)"), FEATURES, "flights", "DuckDB refuses it", "DuckDB knows"),
    (
        number("odd", "regexp_extract_all(carrier, '.')[1]"),
        FEATURES,
        "odd",
        "cannot be answered online",
        "answered online",
    ),
    (
        step("due", "select greatest(scheduled_departure, known_at) as known_at, origin, 1.5 as due from schedule"),
        FEATURES,
        "due",
        "a sum of due.due, which is DECIMAL",
        "cast(due as bigint)",
    ),
    (
        step("labels", FLIGHTS.steps["labels"].replace("known_at as label_time", "known_at as told_at")),
        FEATURES,
        "labels",
        "no column label_time",
        "one that has",
    ),
]


def test_what_is_shipped_fits() -> None:
    assert list(check_suites(USE_CASE, SUITES)) == []
    assert list(check_definition(USE_CASE, FLIGHTS, SUITES)) == []


def test_an_engine_that_is_not_there_is_named() -> None:
    findings = list(check_definition(change(USE_CASE, {"engine": "spark"}), FLIGHTS, SUITES))
    if find_spec("sqlglot") is None:
        assert_named(findings, "params.yaml", "engine", "it is not installed", "the extra `spark`")
    else:
        assert findings == []


def assert_named(findings: Any, file: str, key: str, found: str, set_to: str) -> None:
    named = [each for each in findings if (each.file, each.key) == (file, key) and found in each.found]
    assert named, findings
    assert set_to in named[0].set_to
    told = named[0].describe("flights", REPOSITORY / "params.yaml")
    assert told.startswith(file)
    assert f"{key}: " in told


@pytest.mark.parametrize(
    ("declared", "file", "key", "found", "set_to"), SUITE_MISTAKES, ids=[f"{m[2]}-{m[3]}" for m in SUITE_MISTAKES]
)
def test_a_suite_that_does_not_fit_is_named(
    declared: Mapping[str, Suite], file: str, key: str, found: str, set_to: str
) -> None:
    assert_named(list(check_suites(USE_CASE, declared)), file, key, found, set_to)


@pytest.mark.parametrize(
    ("definition", "file", "key", "found", "set_to"),
    DEFINITION_MISTAKES,
    ids=[f"{m[2]}-{m[3]}" for m in DEFINITION_MISTAKES],
)
def test_a_definition_that_does_not_fit_is_named(
    definition: FeatureSet, file: str, key: str, found: str, set_to: str
) -> None:
    assert_named(list(check_definition(USE_CASE, definition, SUITES)), file, key, found, set_to)


@pytest.mark.parametrize(
    ("changes", "key", "name"),
    [
        ({"gate.slices": ["carrier", "colour"]}, "gate.slices", "'colour' is no categorical feature"),
        ({"gate.slices": ["plane_seats"]}, "gate.slices", "'plane_seats' is no categorical feature"),
        ({"monitor.structural_features": ["wings"]}, "monitor.structural_features", "'wings' is no feature"),
    ],
)
def test_a_feature_that_there_is_not_is_named(changes: Mapping[str, Any], key: str, name: str) -> None:
    assert_named(list(check_definition(change(USE_CASE, changes), FLIGHTS, SUITES)), "params.yaml", key, name, "of ")
