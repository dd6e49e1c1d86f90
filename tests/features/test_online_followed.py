"""A server that reads a store which the stream keeps current: what changed is read again, and nothing else is."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import cache
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.followed import ChangedSeries, FollowedSeries
from features.key_events import DecodedSeries, decode_series
from features.masked import MaskedColumn
from features.online import OnlineFeatures, StoreState
from features.series import Series, extract_sql, list_series, point_kinds
from features.series_codec import join_payloads, pack_series
from tests.features.stored import CACHE_BYTES, Stored, micros, online, parquet, requests
from tests.features.test_followed import IDENTITIES, KEYS, between, known_by, move, rows_changed
from tests.features.world import FLIGHTS, LEAD, World, day, engine, moved, small_world

SINCE, SPLIT, CUT, END = day(12), day(15), day(16, 12), day(18)


@pytest.fixture(scope="module")
def world() -> World:
    return {name: small_world()[name] for name in IDENTITIES}


@pytest.fixture
def followed(world: World) -> Iterator[FollowedSeries]:
    with tempfile.TemporaryDirectory() as folder:
        files = parquet(known_by(world, CUT), folder)
        series = FollowedSeries(FLIGHTS, files, KEYS, since=SINCE, split=SPLIT, lead=LEAD)
    yield series
    series.close()


def store_of(followed: FollowedSeries, known_until: int) -> Stored:
    stored = Stored(StoreState(1, micros(SINCE), known_until, "dataset"), {})
    stored.change(followed.pack_all())
    return stored


def test_features_are_the_batchs_whatever_came_meanwhile(world: World, followed: FollowedSeries) -> None:
    """One reader asks before and after each step; what it held and did not change is not read again."""
    reader, stored = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES), store_of(followed, micros(CUT))
    for start, end in ((CUT, day(16, 18)), (day(16, 18), day(17)), (day(17), day(17, 12))):
        events, batch = requests(world, day(16), start), engine(world, day(16), start)[0]
        assert events.num_rows > 20
        assert moved(batch, reader.compute(events, stored.fetch).features) == []
        coming = {name: rows_changed(name, between(table, start, end)) for name, table in world.items()}
        changed = followed.apply({name: change for name, change in coming.items() if change.rows.num_rows})
        stored.change(changed)
        stored.state = stored.state._replace(as_of=micros(end))
        stored.reads.clear()
        assert moved(batch, reader.compute(events, stored.fetch).features) == []  # the past is as it was
        read = [key for keys in stored.reads for key in keys]
        assert set(read) <= {*changed.settled, *changed.recent}
        assert len(read) == len(set(read))


def test_nobody_notices_that_the_store_moves_to_a_later_dataset(world: World, followed: FollowedSeries) -> None:
    """Series that are still cut at the former split answer as those that were cut anew, and none is read again."""
    reader, stored = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES), store_of(followed, micros(CUT))
    rows, later = known_by(world, CUT), day(13)
    events, batch = requests(world, day(16), CUT), engine(world, day(16), CUT)[0]
    assert moved(batch, reader.compute(events, stored.fetch).features) == []
    followed.mark_stored((key, key in stored.recent, False) for key in {*stored.series, *stored.recent})
    _, changed = move(followed, rows, rows, later)
    assert changed == ChangedSeries()  # the dataset has what was followed
    stored.state = stored.state._replace(since=micros(later), snapshot="later", changes=stored.state.changes + 1)
    stored.reads.clear()
    for start, end in ((CUT, day(16, 18)), (day(16, 18), day(17))):
        events, batch = requests(world, day(16), start), engine(world, day(16), start)[0]
        assert moved(batch, reader.compute(events, stored.fetch).features) == []
        assert moved(batch, online(events, stored).features) == []  # one that begins now
        coming = {name: rows_changed(name, between(table, start, end)) for name, table in world.items()}
        stored.change(followed.apply({name: change for name, change in coming.items() if change.rows.num_rows}))
        stored.state = stored.state._replace(as_of=micros(end))
        stored.settle(followed.settle(300))
    assert followed.settle(1) != ChangedSeries()  # some still are as they were
    while (settled := followed.settle(10_000)) != ChangedSeries():
        stored.settle(settled)
    events, batch = requests(world, day(16), day(17)), engine(world, day(16), day(17))[0]
    assert moved(batch, online(events, stored).features) == []


def test_a_store_that_is_behind_is_asked_for_the_moment_before_it_knows_no_more(world: World) -> None:
    """All *before* its `as_of` is in it: whether what became known at that very moment is, changes no answer."""
    known = Counter(moment for moment in world["movements"]["known_at"].to_pylist() if CUT <= moment < day(17))
    [(moment, told)] = known.most_common(1)
    assert told > 1
    events, answers = requests(world, moment, day(17, 6)), []
    assert events.num_rows > 20
    for until in (moment, moment + timedelta(microseconds=1)):
        with tempfile.TemporaryDirectory() as folder:
            files = parquet(known_by(world, until), folder)
            with closing(FollowedSeries(FLIGHTS, files, KEYS, since=SINCE, split=SPLIT, lead=LEAD)) as series:
                stored = store_of(series, micros(moment))
        answers.append(OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES).compute(events, stored.fetch).features)
    assert moved(*answers) == []


def test_sabotage_a_change_that_is_not_told_is_not_seen(world: World, followed: FollowedSeries) -> None:
    reader, stored = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES), store_of(followed, micros(CUT))
    events, batch = requests(world, CUT, day(17)), engine(world, CUT, day(17))[0]
    reader.compute(events, stored.fetch)
    stored.change(followed.apply({name: rows_changed(name, between(table, CUT, END)) for name, table in world.items()}))
    stored.state, told = stored.state._replace(as_of=micros(END)), dict(stored.changed)
    stored.changed = dict.fromkeys(told, 0)
    assert moved(batch, reader.compute(events, stored.fetch).features) != []
    stored.changed = told
    stored.state = stored.state._replace(changes=stored.state.changes + 1)
    stored.changed = dict.fromkeys(told, stored.state.changes)
    assert moved(batch, reader.compute(events, stored.fetch).features) == []


def test_a_store_that_moves_between_two_reads_of_a_batch_is_read_anew(world: World, followed: FollowedSeries) -> None:
    reader, stored = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES), store_of(followed, micros(CUT))
    events, batch = requests(world, CUT, day(17)), engine(world, CUT, day(17))[0]
    steps = iter([(CUT, day(16, 18)), (day(16, 18), END)])

    def fetch(keys: list[str], held: StoreState | None) -> object:
        answer = stored.fetch(keys, held)
        if (step := next(steps, None)) is not None:
            coming = {name: rows_changed(name, between(table, *step)) for name, table in world.items()}
            stored.change(followed.apply(coming))
            stored.state = stored.state._replace(as_of=micros(step[1]))
        return answer

    assert moved(batch, reader.compute(events, fetch).features) == []  # type: ignore[arg-type]


def test_a_damaged_part_is_a_reason(world: World, followed: FollowedSeries) -> None:
    stored = store_of(followed, micros(CUT))
    events = requests(world, day(16), CUT)
    key = "outcomes(origin)"
    for part in ("series", "recent"):
        whole = getattr(stored, part)
        damaged = {k: v[:-3] + b"xyz" if k.startswith(key) else v for k, v in whole.items()}
        computed = OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES).compute(
            events, replace(stored, **{part: damaged}).fetch
        )
        assert all(f"damaged history of {key}" in problems for problems in computed.problems)


SERIES = next(s for s in list_series(FLIGHTS, point_kinds(FLIGHTS)) if s.name == "outcomes(tailnum)")


def events_of(key: int, number: int) -> dict[str, MaskedColumn]:
    """Events of a key, which say whose they are."""
    columns = {}
    for name, kind in SERIES.stored.items():
        values = np.arange(number) * 10 + key
        columns[name] = MaskedColumn(
            np.array([str(v) for v in values], object) if kind == "varchar" else values, np.ones(number, np.bool_)
        )
    return columns


PARTED = Series(
    name="told(gate)",
    stream="told",
    key=("gate",),
    on=("gate",),
    moment="known_at",
    reach=None,
    sums=("minutes",),
    columns={"kind": "varchar", "ranking": "bigint"},  # a field may be named like a rank
    orders=(("known_at", "minutes"), ("known_at", "kind")),
)
GATE = PARTED.key_text(["A"])
Told = tuple[int, int, str, int | None]  # the hour, minutes, the kind, a ranking


def pack(told: list[Told]) -> bytes | None:
    """The payload of what was told of a gate; None: nothing was."""
    columns = {"hours": pa.int64(), "minutes": pa.int64(), "kind": pa.string(), "ranking": pa.int64()}
    table = pa.table({name: pa.array([row[at] for row in told], columns[name]) for at, name in enumerate(columns)})
    with one_thread().cursor() as connection:
        connection.register("rows_given", table)
        events = "(select *, 'A' as gate, timestamp '2013-01-16' + to_hours(hours) as known_at from rows_given)"
        return dict(pack_series(PARTED, connection.sql(extract_sql(PARTED, events, SINCE)).to_arrow_table())).get(GATE)


@cache
def one_thread() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


@settings(max_examples=40, deadline=None)
@given(
    told=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 2),
            st.sampled_from(["arrived", "departed"]),
            st.none() | st.integers(0, 99),
        ),
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_parts_are_joined_to_what_was_parted(told: list[Told], cuts: list[int]) -> None:
    """Ranks and all: many events at one moment, parts without an event, and none; read anew, or where it ends."""
    whole = list_events(decode_series(PARTED, GATE, (pack(told), None)))
    was: DecodedSeries | None = None
    for known in range(5):
        so_far = [row for row in told if row[0] < known]
        bounds = [0, *sorted(cuts), known]
        payloads = [pack([row for row in so_far if low <= row[0] < high]) for low, high in pairwise(bounds)]
        parts = payloads[0], join_payloads(GATE, [payload for payload in payloads[1:] if payload is not None])
        was = decode_series(PARTED, GATE, parts, was)
        assert list_events(was) == list_events(decode_series(PARTED, GATE, parts))
    assert list_events(was) == whole


def list_events(decoded: DecodedSeries | None) -> list[list[object]]:
    """All that is held, by column."""
    assert decoded is not None
    at, totals, columns = decoded.events
    return [list(each) for each in (at, *totals, *columns.values())]


def test_payloads_that_were_joined_are_read_and_damage_is_seen() -> None:
    payloads = [pack([(hour, 1, "arrived", None)]) for hour in (5, 7, 9)]
    joined = join_payloads(GATE, [payload for payload in payloads if payload is not None])
    assert joined is not None
    hours = [at // 3_600_000_000 % 24 for at in decode_series(PARTED, GATE, (None, joined)).events.at]
    assert hours == [5, 7, 9]
    for place in range(len(joined)):
        damaged = joined[:place] + bytes([joined[place] ^ 1]) + joined[place + 1 :]
        with pytest.raises(ValueError, match="damaged"):
            decode_series(PARTED, GATE, (None, damaged))
