"""What is answered online is what the batch computes, to the last bit, and knows as little of the future."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import operations
from features.engine import features_sql
from features.expressions import CompiledExpressions, compile_expressions
from features.masked import MaskedColumn
from features.online import OnlineFeatures
from features.operations import local_clock
from features.plan import SeriesPlan
from features.series import list_series, point_kinds
from features.series_codec import SeriesPacker, pack_events, unpack_series
from features.vocabulary import declare_source
from tests.features.stored import CACHE_BYTES, Stored, filled, online, requests
from tests.features.test_point_in_time import EXTREME, plant
from tests.features.world import FLIGHTS, LEAD, World, changed, day, engine, moved, small_world

SINCE, AS_OF = day(12), day(20)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


@pytest.fixture(scope="module")
def batch(world: World) -> pa.Table:
    return engine(world, SINCE, AS_OF)[0]


@pytest.fixture(scope="module")
def events(world: World) -> pa.Table:
    return requests(world, SINCE, AS_OF)


@pytest.fixture(scope="module")
def store(world: World) -> Stored:
    return filled(world, SINCE, AS_OF)


def test_a_thousand_real_events_of_a_week_have_the_features_of_the_batch(
    batch: pa.Table, events: pa.Table, store: Stored
) -> None:
    found = online(events, store)
    assert events.num_rows > 1000
    assert found.features.schema.equals(batch.schema)
    assert moved(batch, found.features) == []
    seldom = {name for name in FLIGHTS.numeric if batch[name].null_count > 0.9 * batch.num_rows}
    assert not seldom, "so the claim is about values"


def test_batches_of_64_in_any_order_are_the_same(batch: pa.Table, events: pa.Table, store: Stored) -> None:
    reader = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES)
    order = np.random.default_rng(3).permutation(events.num_rows)
    for start in range(0, 640, 64):
        rows = order[start : start + 64]
        assert moved(batch.take(rows), reader.compute(events.take(rows), store.fetch).features) == []
    small = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=1)  # forgets everything after each batch
    for rows in (order[:64], order[64:128]):
        assert moved(batch.take(rows), small.compute(events.take(rows), store.fetch).features) == []


@pytest.mark.parametrize("shifted", [-HOUR, HOUR])
def test_features_shifted_by_an_hour_are_seen(
    world: World, batch: pa.Table, events: pa.Table, shifted: timedelta
) -> None:
    """The parity check is not blind."""
    differ = moved(batch, online(events, filled(world, SINCE, AS_OF, shifted=shifted)).features)
    assert {"temp_f", "origin_departure_delay_minutes_1h", "tail_hours_since_last_movement"} <= set(differ)


def test_planted_future_in_the_store_moves_no_feature(world: World, batch: pa.Table, events: pa.Table) -> None:
    moment = day(16, 7)
    spoiled = filled(plant(world, moment, set(EXTREME)), SINCE, AS_OF)
    found = online(events, spoiled).features
    kind = batch.schema.field("prediction_time").type
    before = pc.less_equal(batch["prediction_time"], pa.scalar(moment, kind))
    assert 300 < pc.sum(before).as_py() < events.num_rows
    assert moved(batch.filter(before), found.filter(before)) == []
    assert len(moved(batch.filter(pc.invert(before)), found.filter(pc.invert(before)))) > 20  # known in time, it does


def test_later_than_the_store_features_are_those_of_its_last_moment(world: World, events: pa.Table) -> None:
    """No false standstill: the queue of flights overdue does not grow by the silence."""
    store = filled(world, SINCE, day(15))
    late = events.filter(pc.greater(events["scheduled_departure"], pa.scalar(datetime(2013, 1, 16))))  # noqa: DTZ001
    found = online(late, store).features
    overdue = found["origin_overdue_3h"].to_pylist()
    assert (
        len(set(zip(found["origin"].to_pylist(), overdue, strict=True))) == 3
    )  # one number an airport, the last known
    assert pc.min(found["prediction_time"]).as_py() > day(15)
    assert found["temp_f"].null_count == 0


def test_a_flight_that_nobody_entered_counts_itself_once_and_takes_its_routes_distance(
    world: World, batch: pa.Table, events: pa.Table
) -> None:
    row = events.num_rows // 2
    flights = world["flights"]
    others = flights.filter(pc.not_equal(flights["flight"], events["flight"][row].as_py()))
    found = online(events.slice(row, 1), filled(world | {"flights": others}, SINCE, AS_OF)).features
    same = [int(table["scheduled_same_hour"][at].as_py()) for table, at in ((batch, row), (found, 0))]
    gone = {
        other
        for other in zip(*(events[n].to_pylist() for n in ("flight", "carrier", "scheduled_departure")), strict=True)
        if other[0] == events["flight"][row].as_py() and other[2] == events["scheduled_departure"][row].as_py()
    }
    assert same[0] - same[1] == len(gone) - 1
    assert found["distance_km"][0].as_py() == pytest.approx(batch["distance_km"][row].as_py(), rel=0.01)


def test_without_a_store_history_is_missing_and_the_schedule_is_not(events: pa.Table) -> None:
    found = online(events.slice(0, 5), None)
    assert found.state is None
    assert found.features["carrier"].null_count == found.features["planned_minutes"].null_count == 0
    for name in (
        "temp_f",
        "all_late_rate_7d",
        "origin_overdue_3h",
        "scheduled_same_hour",
        "distance_km",
        "plane_seats",
    ):
        assert found.features[name].null_count == 5, name


def test_what_is_not_known_is_said_row_by_row(world: World, events: pa.Table, store: Stored) -> None:
    strange = changed(events.slice(0, 3), dest="XXX")
    asked = pa.concat_tables([strange, events.slice(3, 3), changed(events.slice(6, 3), origin="AAA", tailnum=None)])
    problems = online(asked, store).problems
    assert all("unknown dest XXX" in row for row in problems[:3])
    listed = set(world["planes"]["tailnum"].to_pylist())
    for tail, row in zip(events["tailnum"].to_pylist()[3:6], problems[3:6], strict=True):
        assert row == (() if tail is None or tail in listed else (f"unknown plane {tail}",))
    assert all({"unknown origin AAA", "no weather for AAA"} <= set(row) for row in problems[6:])


def test_a_plane_that_was_told_and_is_not_listed_is_said(events: pa.Table, store: Stored) -> None:
    """Its history is missing. Its twins: a plane that is listed, and none told."""
    event = events.slice(events.num_rows - 1)
    said = [online(changed(event, tailnum=tail), store) for tail in ("N0NEXX", "N14228", None)]
    assert [found.problems for found in said] == [(("unknown plane N0NEXX",),), ((),), ((),)]
    assert [found.features["plane_seats"].null_count for found in said] == [1, 0, 1]


def test_a_source_may_declare_its_columns_in_any_order(world: World, batch: pa.Table, events: pa.Table) -> None:
    """What is packed by position is written and read in one order."""
    planes = declare_source(bigint="seats year", varchar="tailnum", timestamp="known_at", timeless=True)
    turned = replace(FLIGHTS, sources={**FLIGHTS.sources, "planes": planes})
    store = filled(world, SINCE, AS_OF, definition=turned)
    found = OnlineFeatures(turned, LEAD, cache_bytes=CACHE_BYTES).compute(events, store.fetch)
    assert moved(batch, found.features) == []


@pytest.mark.parametrize(
    "values", [{"planes": {"seats": 777}}, {"planes": {"seats": 1}}, {"flights": {"tailnum": "NZZ"}}]
)
def test_of_two_versions_known_at_one_moment_both_sides_take_the_same_whatever_the_order_of_files(
    world: World, batch: pa.Table, events: pa.Table, values: dict[str, dict[str, object]]
) -> None:
    [(name, other)] = values.items()
    table, told = world[name], changed(world[name], **other)
    before, after = (world | {name: pa.concat_tables(rows)} for rows in ((told, table), (table, told)))
    points = engine(before, SINCE, AS_OF)[0]
    assert moved(points, engine(after, SINCE, AS_OF)[0]) == []
    for both in (before, after):
        assert moved(points, online(requests(both, SINCE, AS_OF), filled(both, SINCE, AS_OF)).features) == []
    assert moved(batch, points) or other == {"seats": 1}, "so the claim is about what changes"


def test_hot_keys_are_read_once_and_a_refresh_is_seen_at_once(world: World, events: pa.Table) -> None:
    store = filled(world, SINCE, day(16))
    reader, few = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES), events.slice(events.num_rows - 10)
    reader.compute(few, store.fetch)
    store.reads.clear()
    before = reader.compute(few, store.fetch)
    assert store.reads == [[]]  # its state, and nothing else
    newer = filled(world, SINCE, day(18))
    newer.state = newer.state._replace(revision=2)
    after = reader.compute(few, newer.fetch)
    assert after.state == newer.state
    assert "temp_f" in moved(before.features, after.features)
    assert moved(after.features, online(few, newer).features) == []


def test_a_cache_that_is_full_makes_room_for_what_is_new_and_keeps_the_rest(
    batch: pa.Table, events: pa.Table, store: Stored
) -> None:
    stored, whole = Stored(store.state, store.series), OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES)
    first, last = events.slice(0, 64), events.slice(events.num_rows - 64)
    whole.compute(first, stored.fetch)
    of_first, read_by_whole = whole.held_bytes, {key for keys in stored.reads for key in keys}
    tight = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=int(1.1 * of_first))
    for rows, expected in ((first, batch.slice(0, 64)), (last, batch.slice(batch.num_rows - 64))):
        assert moved(expected, tight.compute(rows, stored.fetch).features) == []
    stored.reads.clear()
    assert moved(batch.slice(0, 64), tight.compute(first, stored.fetch).features) == []
    read_again = {key for keys in stored.reads for key in keys}
    assert read_again < read_by_whole
    assert read_again


def test_series_that_change_ever_again_do_not_push_out_those_that_stay(events: pa.Table, store: Stored) -> None:
    few, stored = events.slice(0, 16), Stored(store.state, store.series)
    reader = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES)
    reader.compute(few, stored.fetch)
    often, needed = [key for keys in stored.reads for key in keys][::3], reader.held_bytes
    for changes in range(1, 50):
        stored.state = store.state._replace(changes=changes)
        stored.changed = dict.fromkeys(often, changes)
        reader.compute(few, stored.fetch)
        assert reader.held_bytes == needed


def test_a_full_cache_keeps_what_changed_longest_since_little_of_it_is_to_be_decoded(
    events: pa.Table, store: Stored
) -> None:
    stored, whole = Stored(store.state, store.series), OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES)
    first, last = events.slice(0, 64), events.slice(events.num_rows - 64)
    whole.compute(first, stored.fetch)
    often = {key for keys in stored.reads for key in keys[::3]}
    tight = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=whole.held_bytes)
    tight.compute(first, stored.fetch)
    stored.state, stored.changed = store.state._replace(changes=1), dict.fromkeys(often, 1)
    tight.compute(last, stored.fetch)
    assert tight.held_bytes > whole.held_bytes
    tight.compute(last.slice(0, 1), stored.fetch)
    held = {*tight._replaced, *tight._texts}
    assert often <= held
    assert not {key for keys in stored.reads for key in keys} <= held


def test_a_damaged_series_is_named_and_answered_without(batch: pa.Table, events: pa.Table, store: Stored) -> None:
    damaged = dict(store.series)
    for key in [key for key in damaged if key.startswith("weather(origin)")]:
        payload = bytearray(damaged[key])
        payload[len(payload) // 2] ^= 1
        damaged[key] = bytes(payload)
    found = online(events, Stored(store.state, damaged))
    assert all("damaged history of weather(origin)" in row for row in found.problems)
    told = {"temp_f", "pressure_trend_mb_per_hour", "visibility_miles"}
    assert told <= set(moved(batch, found.features))
    assert "all_late_rate_7d" not in moved(batch, found.features)


def test_a_series_under_another_key_is_refused_and_a_whole_one_is_read(store: Stored) -> None:
    series = {s.name: s for s in list_series(FLIGHTS, point_kinds(FLIGHTS))}["due(origin)"]
    kinds = {"moment": "timestamp", "due": "bigint"}
    key, other = series.key_text(["JFK"]), series.key_text(["LGA"])
    assert len(unpack_series(key, store.series[key], kinds)["due"].values) > 50
    with pytest.raises(ValueError, match=r'due\(origin\)\["LGA"\] is damaged'):
        unpack_series(other, store.series[key], kinds)


@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(allow_nan=False),
            st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9),
        ),
        min_size=1,  # a key without events is no key
        max_size=20,
    )
)
def test_what_is_packed_comes_back(rows: list[tuple[int | None, float | None, str | None]]) -> None:
    columns = {"a": pa.int64(), "b": pa.float64(), "c": pa.string()}
    table = pa.table({name: pa.array([row[i] for row in rows], columns[name]) for i, name in enumerate(columns)})
    payload = SeriesPacker(table, np.zeros(1, np.int64)).payload("k", 0)
    assert payload == pack_events("k", [*zip(zip(*rows, strict=True), ("bigint", "double", "varchar"), strict=True)])
    read = unpack_series("k", payload, dict.fromkeys(columns, ""))
    back = [[v if there else None for v, there in zip(*(c.tolist() for c in read[n]), strict=True)] for n in columns]
    assert back == [[row[i] for row in rows] for i in range(3)]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("double", [0.0, -0.0, float("nan"), -float("nan"), None]),
        ("boolean", [True, False, None]),
        ("bigint", [-(2**63), 0]),
        ("bigint", [None]),
        ("varchar", ["", None, "é" * 40]),
    ],
)
def test_few_events_are_packed_to_the_bytes_of_many(kind: str, values: list[object]) -> None:
    types = {"double": pa.float64(), "boolean": pa.bool_(), "bigint": pa.int64(), "varchar": pa.string()}
    packer = SeriesPacker(pa.table({"a": pa.array(values, types[kind])}), np.zeros(1, np.int64))
    assert pack_events("k", [(values, kind)]) == packer.payload("k", 0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_both_evaluators_of_the_expressions_agree_to_the_last_bit(seed: int) -> None:
    """Every feature's text on made-up columns, nulls and zeros among them: DuckDB's value and ours."""
    expressions = features_sql(FLIGHTS)
    rows = 30
    random = np.random.default_rng(seed)
    program = _program()
    columns = {name: _random(random, _kinds()[name], rows) for name in program.inputs}
    for name, (values, valid) in columns.items():  # a field is missing where its record is
        record, _, field = name.partition(".")
        if field and record in columns:
            columns[name] = MaskedColumn(values, valid & columns[record].valid)
    plain = {name: _plain(column) for name, column in columns.items()}
    ours = zip(*(program.run({name: plain[name][row] for name in plain}) for row in range(rows)), strict=True)
    theirs = _by_duckdb(expressions, columns)
    for (name, kind), mine in zip(program.kinds.items(), ours, strict=True):
        rounded = [float(np.float32(v)) if kind == "float" and v is not None else v for v in mine]
        np.testing.assert_array_equal(np.array(rounded, object), np.array(theirs[name].to_pylist(), object), name)


def _plain(column: MaskedColumn) -> list[Any]:
    return [value if there else None for value, there in zip(*(each.tolist() for each in column), strict=True)]


@cache
def _kinds() -> dict[str, str]:
    points = {n.removeprefix("points."): k for n, k in point_kinds(FLIGHTS).items() if n.startswith("points.")}
    for series in list_series(FLIGHTS, point_kinds(FLIGHTS)):
        points |= SeriesPlan.of(FLIGHTS, series).kinds
    return points


@cache
def _program() -> CompiledExpressions:
    return compile_expressions(features_sql(FLIGHTS), _kinds())


def _random(random: np.random.Generator, kind: str, rows: int) -> MaskedColumn:
    valid = random.random(rows) < 0.8
    if kind == "varchar":
        return MaskedColumn(random.choice(np.array(["EWR", "JFK", "arrived", "departed"], object), rows), valid)
    if kind == "timestamp":
        return MaskedColumn(random.integers(1_350_000_000, 1_360_000_000, rows) * 1_000_000, valid)
    if kind == "struct":
        return MaskedColumn(valid, valid)
    values = random.integers(-3, 40, rows)
    return (
        MaskedColumn(values.astype(np.float64) * (1 if kind == "bigint" else 1.1), valid)
        if kind == "double"
        else MaskedColumn(values, valid)
    )


def _by_duckdb(expressions: dict[str, str], columns: dict[str, MaskedColumn]) -> pa.Table:
    """A struct's fields are null where the struct is, as in the batch."""
    flat, structs = {}, {}
    for name, (values, valid) in columns.items():
        kind = pa.timestamp("us") if _kinds()[name] == "timestamp" else None
        array = pa.array(values, kind, mask=~valid) if kind is None else pa.array(values, mask=~valid).cast(kind)
        record, _, field = name.partition(".")
        if field:
            structs.setdefault(record, {})[field] = array
        else:
            flat[name] = array
    for record, fields in structs.items():
        there = flat.pop(record, None)
        made = pa.StructArray.from_arrays(list(fields.values()), list(fields))
        flat[record] = made if there is None else pc.if_else(pc.is_valid(there), made, None)
    table = pa.table(flat)
    with duckdb.connect() as connection:
        connection.register("rows_", table)
        return connection.sql(
            "select " + ", ".join(f"{sql} as {name}" for name, sql in expressions.items()) + " from rows_"
        ).to_arrow_table()


@given(
    st.lists(
        st.datetimes(datetime(2012, 1, 1), datetime(2014, 12, 31)),  # noqa: DTZ001
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["America/New_York", "Pacific/Honolulu", "Asia/Tokyo", "Australia/Lord_Howe", "Nowhere/Else"]),
)
@settings(deadline=None, max_examples=15)
def test_the_wall_clock_is_that_of_the_engine(moments: list[datetime], zone: str) -> None:
    values = pa.array(moments, pa.timestamp("us")).cast(pa.int64()).to_pylist()
    found = [local_clock(zone, value) for value in values]
    if zone == "Nowhere/Else":
        assert found == [None] * len(values)
        return
    query = "select timezone(?, ?::timestamptz)"
    with duckdb.connect() as engine_:
        expected = [engine_.execute(query, [zone, m.replace(tzinfo=UTC)]).fetchall()[0][0] for m in moments]
    assert pa.array(found).cast(pa.timestamp("us")).to_pylist() == expected


def test_however_many_years_are_named_a_table_is_made_for_each_zone_and_nothing_is_asked_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every year that a request may name; and of one that only a store may, the engine's own answer."""
    zones = ["America/New_York", "Pacific/Honolulu", "Europe/Dublin", "Nowhere/Else"]
    moments = [
        int(datetime(year, month, 1, 12, 30, tzinfo=UTC).timestamp()) * 1_000_000
        for year in range(1900, 2200, 7)
        for month in (1, 7)
    ]
    operations._changes.cache_clear()
    for zone in zones:
        local_clock(zone, moments[0])
    ask = operations._ahead
    monkeypatch.setattr(operations, "_ahead", lambda *_: pytest.fail("asked"))
    found = {zone: [local_clock(zone, moment) for moment in moments] for zone in zones}
    assert operations._changes.cache_info().currsize == 4
    monkeypatch.setattr(operations, "_ahead", ask)
    assert set(found.pop("Nowhere/Else")) == {None}
    far = int(datetime(2300, 7, 1, tzinfo=UTC).timestamp()) * 1_000_000
    with duckdb.connect() as engine_:
        for zone, clocks in found.items():
            told = [local_clock(zone, far), *clocks]
            expected = ask(engine_, zone, np.array([far, *moments])) + np.array([far, *moments])
            assert told == expected.tolist(), zone


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("md5(carrier)", "unsupported md5"),
        ("flight + nobody", "unknown column nobody"),
        ("carrier < 5", "unsupported COMPARE_LESSTHAN(varchar, bigint)"),
        ("flight + null", "unsupported + of a null without a type"),
        ("flight = null", "unsupported COMPARE_EQUAL of a null without a type"),
        ("nullif(null, flight)", "unsupported nullif of a null without a type"),
        ("case when flight then 1 end", "unsupported case when of bigint"),
        ("flight and flight > 1", "unsupported CONJUNCTION_AND(bigint, boolean)"),
        ("not flight", "unsupported OPERATOR_NOT(bigint)"),
        ("leg = leg", "unsupported COMPARE_EQUAL(struct, struct)"),
    ],
)
def test_what_cannot_be_evaluated_online_is_refused_when_it_is_declared(sql: str, what: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)here: .*{re.escape(what)}.* it cannot be answered online"):
        compile_expressions({"here": sql}, {"flight": "bigint", "carrier": "varchar", "leg": "struct"})


@pytest.mark.parametrize(
    "sql",
    [
        "case when flight > 0 then 1 end + 1",
        "coalesce(case when flight > 0 then 1 end, null) * delay",
        "greatest(flight, null) / 2",
        "cast(null as double) + flight",
        "case when carrier = 'UA' then carrier end || flight",
        "case when carrier <> 'UA' or flight > 0 then delay else null end - flight",
        "cast(case when not flight > 0 then flight end as varchar)",
    ],
)
def test_a_null_takes_the_type_of_what_it_stands_beside(sql: str) -> None:
    kinds = {"flight": "bigint", "delay": "double", "carrier": "varchar"}
    rows: list[tuple[Any, ...]] = [(0, 0.5, "UA"), (5, None, None), (None, 2.0, "AA"), (7, 3.0, "B6")]
    program = compile_expressions({"here": sql}, kinds)
    found = [value for row in rows for value in program.run(dict(zip(kinds, row, strict=True)))]
    with duckdb.connect() as engine_:
        engine_.execute("create table told (flight bigint, delay double, carrier varchar)")
        engine_.executemany("insert into told values (?, ?, ?)", rows)
        expected = [value for (value,) in engine_.execute(f"select {sql} from told").fetchall()]
    assert found == expected


@pytest.mark.parametrize("moment", [-(10**17), -1, 0, 10**15, 7_258_118_399_999_999, 7_258_118_400_000_000, 10**18])
def test_the_year_is_numpys_whichever_it_is(moment: int) -> None:
    assert str(operations.year(moment)) == str(np.datetime64(moment, "us").astype("M8[Y]"))
