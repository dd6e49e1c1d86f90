"""Windows, lookups and points of drawn definitions are in every engine what a plain reading says, to the last bit."""

import os
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from features import measures, point_program, sorted_events, spans, vocabulary
from features.definition_expressions import compile_definition
from features.document import from_document, to_document
from features.followed import FollowedSeries
from features.key_events import find_extreme
from features.masked import MaskedColumn
from features.measures import DistinctCounter, count_distinct, find_variance
from features.operations import add_months
from features.series import to_microseconds
from features.spans import WindowSpan, months_before, parse_span, read_window_span, short_span
from features.stream_change import SourceChange
from features.vocabulary import Preceding, Window
from tests.features.stored import parquet
from tests.features.window_engines import KEYS, differences
from tests.features.window_oracle import say_by_oracle
from tests.features.window_worlds import CONSTRUCTS, DAY, LEAD, SCHEMA, START, Drawn, draw, draw_rows, measure_names

EXAMPLES = max(3, int(os.environ.get("WINDSOCK_EXPRESSION_EXAMPLES", "60")) // 20)  # of five windows each
LONG = 1_000
WINDOW = Window(prefix="w", stream="events", key=(), spans=("1 day",))
seen: Counter[str] = Counter()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller seed is no simpler definition
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.integers(0, 1 << 64))
def test_a_drawn_definition_says_in_every_engine_what_the_oracle_says(seed: int) -> None:
    drawn = draw(seed)
    seen.update(drawn.constructs)
    assert differences(drawn) == []


def test_every_construct_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{EXAMPLES} definitions: {', '.join(f'{name} {seen[name]}' for name in CONSTRUCTS)}")
    assert set(seen) <= set(CONSTRUCTS)
    if EXAMPLES >= LONG:
        assert min(seen[name] for name in CONSTRUCTS) >= 100


def test_the_claim_is_about_values() -> None:
    """Of the same draws: each construct says something of some point, and not the same of all."""
    told: dict[str, set[Any]] = {}
    for seed in range(30):
        for features in say_by_oracle(draw(seed)).values():
            for name, value in features.items():
                kind = next((word for word in ("_var_", "_distinct_", "leg_", "_r", "_e") if word in name), "sum")
                told.setdefault(kind, set()).add(value)
    assert len(told) == 6
    assert all(len(values) > 10 for values in told.values())


@pytest.mark.parametrize("seed", range(3))
def test_series_that_follow_are_to_the_byte_those_of_a_rebuild(seed: int) -> None:
    drawn = draw(seed)
    rows = [*{(row["number"], row["known_at"]): row for row in draw_rows(Random(seed), 60)}.values()]  # noqa: S311
    table = pa.Table.from_pylist(rows, SCHEMA)
    split = START + 20 * DAY
    is_late = pa.array([row["known_at"] >= split or row["number"] % 3 == 0 for row in rows], pa.bool_())
    late = table.filter(is_late)

    def follow(table: pa.Table) -> FollowedSeries:
        with tempfile.TemporaryDirectory() as folder:
            tables = parquet({"orders": table}, folder)
            return FollowedSeries(drawn.definition, tables, KEYS, since=START, split=split, lead=LEAD)

    with closing(follow(table.filter(pc.invert(is_late)))) as followed, closing(follow(table)) as rebuilt:
        change = SourceChange(rows=late, gone=late.slice(0, 0).select(["number", "known_at"]))
        assert late.num_rows > 0
        assert followed.apply({"orders": change}).recent
        assert followed.pack_all() == rebuilt.pack_all()


@pytest.mark.parametrize("seed", range(3))
def test_a_drawn_definition_comes_back_from_its_document(seed: int) -> None:
    definition = draw(seed).definition
    assert from_document(to_document(definition), definition.digest(), like=definition) == definition


# Planted faults


def go_beyond(moments: Any, months: int) -> Any:
    """The 31st less a month is the day after its last."""
    firsts = moments.astype("datetime64[us]").astype("datetime64[M]").astype("datetime64[us]").astype(np.int64)
    return months_before(firsts, months) + moments - firsts


def fill_up(column: MaskedColumn) -> Any:
    return measures.add_up_running(MaskedColumn(np.where(column.valid, column.values, 0), np.ones_like(column.valid)))


def snapshots(old: str, new: str) -> Any:
    """The points of other moments, or of other customers."""
    return vocabulary, "snapshots_sql", lambda *a, **k: SNAPSHOTS(*a, **k).replace(old, new)


SNAPSHOTS, AT_MOST, BEGIN = vocabulary.snapshots_sql, measures.count_at_most, point_program._write_begin
MONTH = 30 * 86_400_000_000
PLANTED: dict[str, tuple[Any, str, Any]] = {
    "a variance is that of everyone": (
        point_program, "find_variance", lambda n, s, q: (n * q - s * s) / (n * n) if n > 1 else None,
    ),
    "of one value the variance is 0": (point_program, "find_variance", lambda n, s, q: find_variance(n, s, q) or 0.0),
    "what is missing is 0 in a variance": (sorted_events, "add_up_running", fill_up),
    "squares have 64 bits": (measures, "_NARROW", float("inf")),
    "a total is rounded before it is squared": (
        point_program, "find_variance", lambda n, s, q: max(0.0, q - float(s) * s / n) / (n - 1) if n > 1 else None,
    ),
    "nothing is a value": (point_program, "count_distinct", lambda values: float(len({*values}))),
    "what comes again at a window's beginning counts twice": (
        measures, "count_at_most", lambda numbers, limits, ends: AT_MOST(numbers, limits - 1, ends),
    ),
    "a month of a span has 30 days": (point_program, "add_months", lambda at, months, _: at + months * MONTH),
    "a shorter month goes on in the next": (spans, "months_before", go_beyond),
    "no span is longer than 44 bits of microseconds": (
        point_program, "_write_begin", lambda span: f"max({BEGIN(span)}, known - (1 << 44))",
    ),
    "a span's first moment is outside": (point_program, "_write_begin", lambda span: f"{BEGIN(span)} + 1"),
    "the last of several records is the first": (
        point_program, "find_extreme", lambda ranks, low, high, last: find_extreme(ranks, low, high, not last),
    ),
    "a snapshot is taken of whom nobody knows yet": snapshots("known_at <=", "known_at - interval 1 day <="),
    "a week begins on Sunday": snapshots(" week as", " week - interval 1 day as"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_sabotage_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, planted = PLANTED[fault]
    monkeypatch.setattr(where, name, planted)
    assert any(differences(draw(seed)) for seed in range(40))


# Spans


@pytest.mark.parametrize(
    ("text", "span", "longest", "short"),
    [
        ("3 hours", WindowSpan(0, 10_800_000_000), timedelta(hours=3), "3h"),
        ("1 hours", WindowSpan(0, 3_600_000_000), timedelta(hours=1), "1h"),
        ("1 day", WindowSpan(0, 86_400_000_000), DAY, "1d"),
        ("90 minutes", WindowSpan(0, 5_400_000_000), timedelta(minutes=90), "90m"),
        ("6 months", WindowSpan(6, 0), 186 * DAY, "6mo"),
        ("1 year", WindowSpan(12, 0), 372 * DAY, "1y"),
        ("100 years", WindowSpan(1200, 0), 37_200 * DAY, "100y"),
    ],
)
def test_a_span_is_read(text: str, span: WindowSpan, longest: timedelta, short: str) -> None:
    assert (read_window_span(text), parse_span(text), short_span(text)) == (span, longest, short)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1.5 days", "a span like '7 days'"),
        ("0 days", "a span like '7 days'"),
        ("-1 days", "a span like '7 days'"),
        ("3 fortnights", "second, minute, hour, day, week, month, year"),
        ("days", "a span like '7 days'"),
        ("101 years", "at most 100 years"),
        ("99999999999999999999 seconds", "at most 100 years"),
    ],
)
def test_what_is_no_span_is_refused_where_it_is_written(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(WINDOW, spans=("1 day", text))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), min_size=1, max_size=20),  # noqa: DTZ001
    st.integers(1, 1200),
)
def test_a_month_before_is_the_same_everywhere(moments: list[datetime], months: int) -> None:
    told = [to_microseconds(moment) for moment in moments]
    with duckdb.connect() as connection:
        query = f"select epoch_us(make_timestamp(unnest($1::bigint[])) - interval {months} months)"
        expected = [begin for (begin,) in connection.execute(query, [told]).fetchall()]
    assert months_before(np.array(told), months).tolist() == expected
    assert [add_months(moment, -months, 0) for moment in told] == expected


# Measures


@settings(max_examples=80, deadline=None)
@given(st.lists(st.none() | st.sampled_from("abc") | st.text(max_size=2), max_size=40), st.data())
def test_distinct_counts_are_those_of_a_set(values: list[str | None], data: st.DataObject) -> None:
    places = st.integers(0, len(values))
    stretches = [sorted(pair) for pair in data.draw(st.lists(st.tuples(places, places), max_size=8))]
    there = np.array([value is not None for value in values], np.bool_)
    column = MaskedColumn(np.array([value or "" for value in values], object), there)
    low, high = (np.array([pair[end] for pair in stretches], np.int64) for end in (0, 1))
    assert DistinctCounter(column).count(low, high).tolist() == [count_distinct(values[a:b]) for a, b in stretches]


def test_values_that_are_all_equal_do_not_vary_however_large_they_are() -> None:
    assert find_variance(3, 3 * 10**15, 3 * 10**30) == 0.0
    assert find_variance(2, 2 * 10**15 + 1, 10**30 + (10**15 + 1) ** 2) == 0.5


def test_a_window_is_as_long_as_it_says() -> None:
    """It was cut after 203 days."""
    drawn = next(each for each in map(draw, range(20)) if each.snapshots is None)
    moment, spans_ = datetime(2024, 3, 31, 12, tzinfo=UTC), ("203 days", "204 days", "1 year", "600 days")
    row = dict.fromkeys(SCHEMA.names) | {"customer": "ann", "event_at": START, "seen_at": START}
    ages = [1, 203, 203.5, 204, 365, 366, 599, 600, 601]
    known = [moment - LEAD - timedelta(days=age) for age in ages]
    rows = [{**row, "number": number, "known_at": at, "event_at": moment} for number, at in enumerate(known)]
    window = replace(WINDOW, key=("customer",), spans=spans_, sums=("seen",))
    names = {name: name for name in measure_names(window)}
    definition = replace(drawn.definition, windows=(window,), joined=(), numeric_sql=names)
    drawn = replace(drawn, definition=definition, rows=rows)
    assert differences(drawn) == []
    assert next(iter(say_by_oracle(drawn).values())) == {
        "w_seen_203d": 2.0, "w_seen_204d": 4.0, "w_seen_1y": 6.0, "w_seen_600d": 8.0
    }  # fmt: skip


# What is refused


def drawn_with(**changes: Any) -> Drawn:
    drawn = draw(1)
    window = replace(WINDOW, **changes)
    names = {name: name for name in measure_names(window)}
    return replace(drawn, definition=replace(drawn.definition, windows=(window,), joined=(), numeric_sql=names))


def test_a_measure_of_a_kind_that_has_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a variance of events.kind, which is of kind varchar: cast it to bigint"):
        compile_definition(drawn_with(variances=("kind",)).definition)
    drawn = drawn_with(distinct=("price",)).definition
    events = f"select *, 0.5e0 as price from ({drawn.steps['events']})"
    with pytest.raises(ValueError, match=r"a distinct count of events.price, which is of kind double: cast it to"):
        compile_definition(replace(drawn, steps={**drawn.steps, "events": events}))
    compile_definition(drawn_with(variances=("cents",)).definition)
    compile_definition(drawn_with(distinct=("kind",)).definition)


def test_a_window_that_is_longer_than_what_is_read_is_refused() -> None:
    definition = replace(draw(1).definition, windows=(replace(WINDOW, spans=("6 months",)),), look_back=186 * DAY)
    told = r"window w: a window of 6 months, and the definition looks back 185 days.*look_back of at least 186 days"
    with pytest.raises(ValueError, match=told):
        replace(definition, look_back=185 * DAY)


def test_spans_whose_columns_would_have_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="window w: expected spans, each once"):
        replace(WINDOW, spans=("1 day", "1 days"))
    replace(WINDOW, spans=("6 minutes", "6 months"))  # 6m and 6mo


def test_a_record_that_is_a_word_of_sql_is_refused() -> None:
    with pytest.raises(ValueError, match="order: expected a name that is no word of SQL"):
        replace(WINDOW, latest={"order": ("known_at",)})


def test_what_precedes_does_so_by_a_day_at_most() -> None:
    with pytest.raises(ValueError, match="leg: expected a span of at most a day, got '25 hours'"):
        Preceding(prefix="leg", stream="entries", key=(), span="25 hours", fields=("event_at",))
