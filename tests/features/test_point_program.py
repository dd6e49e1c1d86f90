"""A plan, run for one point in plain Python and for many in arrays, says the same to the last bit."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.masked import MaskedColumn
from features.plan import SeriesPlan
from features.point_program import compile_plan
from features.series import Series, list_series, point_kinds
from features.sorted_events import Places, SortedEvents
from tests.features.stored import decode_columns
from tests.features.world import FLIGHTS

HOUR = 3_600_000_000
NOW, POINTS = 400 * 24 * HOUR, 12


class OneKey(SortedEvents):
    """The events of one key in arrays; its slot is 0."""

    def bounds(self, slots: Places, *moments: Places) -> Places:
        assert not slots.any()
        return np.stack([self._at.searchsorted(moment) for moment in moments])


@cache
def plans() -> dict[str, SeriesPlan]:
    return {series.name: SeriesPlan.of(FLIGHTS, series) for series in list_series(FLIGHTS, point_kinds(FLIGHTS))}


def draw_columns(series: Series, random: np.random.Generator, rows: int) -> dict[str, MaskedColumn]:
    """Events at whole hours, many at once; each value but a moment and a sum may be missing."""
    columns = {}
    for name, kind in series.stored.items():
        valid = random.random(rows) < 0.8
        if name == "moment":
            values: Any = np.sort(NOW - random.integers(-30, 24 * 35, rows) * HOUR)
        elif name.startswith("rank"):
            values = random.permutation(rows)
        elif kind == "timestamp":
            values = NOW - random.integers(-30, 60, rows) * HOUR
        elif kind == "varchar":
            values = random.choice(np.array(["EWR", "JFK"], object), rows)
        elif kind == "double":
            values = random.choice([0.1, -0.0, np.nan, np.inf], rows)
        else:
            values = random.integers(-300, 300, rows)
        is_whole = name == "moment" or name in series.sums or name.startswith("rank")
        columns[name] = MaskedColumn(values, np.ones(rows, np.bool_) if is_whole else valid)
    return columns


def in_arrays(plan: SeriesPlan, columns: dict[str, MaskedColumn], points: Any) -> tuple[list[dict[str, Any]], Any]:
    """The values of each point by name, None where one is missing; and why something is not known, by point."""
    sums = [np.append(0, np.cumsum(columns[name].values)) for name in plan.series.sums]
    totals = np.stack(sums, axis=1) if sums else np.zeros((len(columns["moment"].values) + 1, 0))
    told = [[] for _ in range(POINTS)]  # type: ignore[var-annotated]

    def note_absence(absent: str | None, rows: Any) -> None:
        for row in np.flatnonzero(rows).tolist() if absent else ():
            told[row].append(absent)

    points.note_absence = note_absence
    events = OneKey(plan.series, columns["moment"].values, totals, columns)
    found = plan.columns(points, events, np.zeros(POINTS, np.int64))
    values = {name: column.values.tolist() for name, column in found.items()}
    rows = [{n: values[n][at] if found[n].valid[at] else None for n in found} for at in range(POINTS)]
    return rows, told


@pytest.mark.parametrize("name", plans())
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.sampled_from([0, 1, 7, 60]))
def test_both_say_the_same(name: str, seed: int, rows: int) -> None:
    plan, random = plans()[name], np.random.default_rng(seed)
    columns = draw_columns(plan.series, random, rows)
    known = NOW - random.integers(-40, 24 * 20, POINTS) * HOUR - random.integers(0, 2, POINTS)
    points = SimpleNamespace(known=known, event_time=known + 2 * HOUR)
    expected, told = in_arrays(plan, columns, points)
    run, events = compile_plan(plan), decode_columns(plan.series, columns)
    for at in range(POINTS):
        row: dict[str, Any] = {}
        assert list(run(row, events, int(points.known[at]), int(points.event_time[at]))) == told[at]
        assert repr(row) == repr({key: expected[at][key] for key in row})  # NaN and the sign of zero as well
        assert row.keys() == expected[at].keys() >= plan.kinds.keys()


def test_sabotage_a_point_that_knows_an_hour_more_is_seen() -> None:
    plan = plans()["outcomes(origin)"]
    columns = draw_columns(plan.series, np.random.default_rng(1), 600)
    known = NOW - np.arange(POINTS) * HOUR
    expected, _ = in_arrays(plan, columns, SimpleNamespace(known=known, event_time=known))
    row: dict[str, Any] = {}
    compile_plan(plan)(row, decode_columns(plan.series, columns), int(known[0]) + HOUR, int(known[0]))
    assert row != expected[0]
