"""What is looked up in sorted arrays is what the definition says as SQL, to the last bit."""

from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from features import build, history, offline, sorted_events
from features.engine import build_by_sql
from features.key_events import find_last_known
from features.masked import MaskedColumn, missing_column
from features.series import list_series, point_kinds
from features.sorted_events import Places
from features.step_plan import StepPlan
from tests.features.stored import decode_columns
from tests.features.world import FLIGHTS, LEAD, Build, Span, World, day, engine, held_up, moved, small_world

START, END = day(15), day(18)


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


@pytest.fixture(scope="module")
def by_sql(world: World) -> tuple[pa.Table, pa.Table]:
    return engine(world, START, END, by=build_by_sql)


def test_points_and_labels_are_those_of_the_sql(world: World, by_sql: tuple[pa.Table, pa.Table]) -> None:
    points, labels = engine(world, START, END)
    assert points.schema.equals(by_sql[0].schema)
    assert moved(by_sql[0], points) == []
    assert labels.equals(by_sql[1])
    assert points.num_rows > 500


def test_however_many_keys_and_moments_there_are_and_in_parts_of_any_size(
    world: World, by_sql: tuple[pa.Table, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_MOST", 50)  # each key and each clock has more
    monkeypatch.setattr(history, "_READ_ROWS", 2048)
    monkeypatch.setattr(offline, "_POINTS_AT_ONCE", 97)
    monkeypatch.setattr(sorted_events, "_CELLS", 64)
    assert moved(by_sql[0], engine(world, START, END)[0]) == []


@pytest.mark.parametrize("by", [build, build_by_sql])
@pytest.mark.parametrize("letters", [2, 3])
def test_braces_of_a_regular_expression_are_no_placeholders(
    world: World, by_sql: tuple[pa.Table, pa.Table], by: Build, letters: int
) -> None:
    """Every carrier has two letters, none has three."""
    asked = f"select * from ({FLIGHTS.steps['asked']}) where regexp_matches(carrier, '^\\w{{{letters}}}$')"
    assert f"{{{letters}}}$" in asked
    points, _ = engine(world, START, END, replace(FLIGHTS, steps={**FLIGHTS.steps, "asked": asked}), by=by)
    assert points.num_rows == (by_sql[0].num_rows if letters == 2 else 0)


def test_a_search_that_is_one_step_late_is_seen(
    world: World, by_sql: tuple[pa.Table, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is not blind."""
    before = history.Clock.before

    def late(clock: history.Clock, moments: Places) -> Places:
        return np.asarray(before(clock, moments + 60_000_000))

    monkeypatch.setattr(history.Clock, "before", late)
    assert "origin_departed_late_share_3h" in moved(by_sql[0], engine(world, START, END)[0])


def test_what_became_known_at_one_moment_is_in_the_order_of_its_records(world: World) -> None:
    """Everything that moved on a day is told at its end: a plane's last movement is one of several."""
    moment = day(16, 12)
    late = held_up(world["movements"], day(15), moment)
    told = world | {"movements": late}
    assert moved(engine(told, START, END, by=build_by_sql)[0], engine(told, START, END)[0]) == []


@pytest.mark.parametrize("told_since", [[True], [False]])
def test_a_version_of_which_nobody_says_since_when_never_held(told_since: list[bool]) -> None:
    """As in SQL; not since 1970."""
    [legs] = [item for item in list_series(FLIGHTS, point_kinds(FLIGHTS)) if item.joined]
    told = {name: missing_column(1, kind) for name, kind in legs.stored.items()}
    since = MaskedColumn(np.zeros(1, np.int64), np.array(told_since))
    events = decode_columns(legs, told | {"known_at": since})
    assert [find_last_known(events.columns, 0, 1, known=5) == 0] == told_since


def test_a_value_of_another_type_is_named_wherever_it_stands(world: World) -> None:
    movements = world["movements"]
    values = [*movements["delay_minutes"].cast(pa.string()).to_pylist()[:-1], "soon"]
    position = movements.column_names.index("delay_minutes")
    told = world | {"movements": movements.set_column(position, "delay_minutes", pa.array(values, pa.string()))}
    with pytest.raises(ValueError, match=r"a source is not as declared: .*'soon'.*delay_minutes"):
        engine(told, START, END)


def test_a_clock_goes_by_the_longest_step_and_by_rank_where_that_makes_too_many() -> None:
    minute, year = 60_000_000, 365 * 86_400_000_000
    even = history.Clock(np.array([7, 7 + 3 * minute, 7 + 9 * minute]))
    assert even.size == 4
    assert even.before(np.array([0, 7, 8, 7 + 3 * minute, 7 + 4 * minute, year])).tolist() == [0, 0, 1, 1, 2, 4]
    fine = history.Clock(np.array([5, year, year + 1]))
    assert fine.size == 3
    assert fine.before(np.array([0, 5, 6, year, year + 1, 2 * year])).tolist() == [0, 0, 1, 1, 2, 3]
    assert history.Clock(np.zeros(0, np.int64)).before(np.array([-5, 5])).tolist() == [0, 1]


def test_totals_are_as_wide_as_their_values_need() -> None:
    """Also where 64 bits do not hold the total itself: of a window it is a difference, which they do."""
    assert history._running([np.array([3, -4])], 2).dtype == np.int32
    totals = history._running([np.array([1 << 62, 1 << 62, 5])], 3)
    assert totals.dtype == np.int64
    assert (totals[3] - totals[2]).tolist() == [5]


def test_a_step_that_is_read_once_is_a_view_and_a_table_goes_with_its_last_reader() -> None:
    with duckdb.connect() as connection:
        steps = StepPlan(connection, FLIGHTS, ["from asked", "from labels", "from outcomes", "from legs"])
        steps.create({}, Span(START, END), LEAD)

        def stored() -> set[str]:
            return {name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()}

        assert stored() == {"schedule", "tellings", "outcomes"}
        steps.finish_query()
        assert stored() == {"schedule", "tellings", "outcomes"}  # legs reads schedule, and is a view
        steps.finish_query()
        assert stored() == {"schedule", "outcomes"}
        steps.finish_query()
        steps.finish_query()
        assert stored() == set()
