"""Series that follow their sources are, to the byte, those of a rebuild from the same rows; in any order of changes."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import FeatureSet
from features.engine import FixedSpan
from features.followed import ChangedSeries, FollowedSeries
from features.followed_streams import FollowedStreams
from features.key_events import decode_series
from features.series import list_series, point_kinds
from features.stream_change import SourceChange, SourceKey
from tasks.build_features.store_refresh import pack_all_series
from tests.features.stored import parquet
from tests.features.test_point_in_time import EXTREME
from tests.features.world import FLIGHTS, LEAD, Span, World, changed, day, small_world

_FLIGHT = ("carrier", "flight", "origin", "scheduled_departure", "known_at")
IDENTITIES = {
    "flights": _FLIGHT,
    "movements": (*_FLIGHT, "kind"),
    "weather": ("origin", "observed_at", "known_at"),
    "planes": ("tailnum", "known_at"),
    "airports": ("faa", "known_at"),
}
KEYS = {name: SourceKey(identity=columns, available_at="known_at") for name, columns in IDENTITIES.items()}
SINCE, SPLIT, MOVE, CUT = day(12), day(15), day(16), day(16, 12)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
Held = tuple[dict[str, bytes | None], dict[str, bytes | None]]


@pytest.fixture(scope="module")
def world() -> World:
    """One airline: enough for each stream to have rows."""
    found = {name: small_world()[name] for name in IDENTITIES}
    for name in ("flights", "movements"):
        found[name] = found[name].filter(pc.equal(found[name]["carrier"], "US"))
    return found


def between(table: pa.Table, start: datetime, end: datetime) -> pa.Table:
    known, kind = table["known_at"], table.schema.field("known_at").type
    inside = pc.and_(pc.greater_equal(known, pa.scalar(start, kind)), pc.less(known, pa.scalar(end, kind)))
    return table.filter(inside)


def known_by(world: World, moment: datetime) -> World:
    return {name: between(table, datetime(2012, 1, 1, tzinfo=UTC), moment) for name, table in world.items()}


def follow(
    world: World, definition: FeatureSet = FLIGHTS, split: datetime = SPLIT, since: datetime = SINCE
) -> FollowedSeries:
    with tempfile.TemporaryDirectory() as folder:
        return FollowedSeries(definition, parquet(world, folder), KEYS, since=since, split=split, lead=LEAD)


def apply_to_rows(world: World, changes: Mapping[str, SourceChange]) -> World:
    """The rows as they are after a change, by other means."""
    after = dict(world)
    for name, change in changes.items():
        columns = list(IDENTITIES[name])
        taken = {tuple(row.values()) for part in (change.rows, change.gone) for row in part.select(columns).to_pylist()}
        stays = [tuple(row.values()) not in taken for row in world[name].select(columns).to_pylist()]
        after[name] = pa.concat_tables([world[name].filter(pa.array(stays, pa.bool_())), change.rows])
    return after


def update(held: Held, by: ChangedSeries) -> None:
    for part, payloads in zip(held, (by.settled, by.recent), strict=True):
        part.update(payloads)
        for key in [key for key, payload in part.items() if payload is None]:
            del part[key]


def packed_all(followed: FollowedSeries) -> Held:
    everything = followed.pack_all()
    return {**everything.settled}, {**everything.recent}


def store_all(followed: FollowedSeries) -> Held:
    """All of them, as the store has them from now on."""
    held = packed_all(followed)
    followed.mark_stored((key, key in held[1], False) for key in {*held[0], *held[1]})
    return held


def rows_changed(name: str, rows: pa.Table, gone: pa.Table | None = None) -> SourceChange:
    return SourceChange(rows=rows, gone=(rows.slice(0, 0) if gone is None else gone).select(list(IDENTITIES[name])))


def steps(world: World, draw: st.DataObject) -> dict[str, SourceChange]:
    """One step: rows that come in time or late, are corrected or told again, or go; of some tables, some of each."""
    changes = {}
    for name in draw.draw(st.lists(st.sampled_from(sorted(world)), min_size=1, max_size=3, unique=True)):
        table, what = world[name], draw.draw(st.sampled_from(["come", "correct", "retell", "go"]))
        number, start = draw.draw(st.integers(1, 40)), draw.draw(st.integers(0, table.num_rows - 1))
        some = table.slice(start, number)
        if what == "correct":
            some = changed(some, **EXTREME[name])
        if what == "retell":
            later = pc.add(some["known_at"], pa.scalar(timedelta(hours=draw.draw(st.integers(1, 90)))))
            kind = some.schema.field("known_at").type
            some = some.set_column(some.column_names.index("known_at"), "known_at", later.cast(kind))
        changes[name] = rows_changed(name, some.slice(0, 0), some) if what == "go" else rows_changed(name, some)
    return changes


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(draw=st.data())
def test_after_every_step_they_are_those_of_a_rebuild(world: World, draw: st.DataObject) -> None:
    rows = known_by(world, CUT)
    followed = follow(rows)
    held = packed_all(followed)
    for _ in range(draw.draw(st.integers(1, 4))):
        changes = steps(world, draw)
        rows = apply_to_rows(rows, changes)
        update(held, followed.apply(changes))
        assert held == packed_all(follow(rows))


def move(followed: FollowedSeries, filed: World, rows: World, since: datetime) -> tuple[World, ChangedSeries]:
    """Go on to files of what became known before MOVE; all rows there are then, and what changed."""
    before = {name: between(table, datetime(2012, 1, 1, tzinfo=UTC), MOVE) for name, table in filed.items()}
    after = {name: between(table, MOVE, NEVER) for name, table in rows.items()}
    spans = dict.fromkeys(KEYS, FixedSpan(datetime(1, 1, 1, tzinfo=UTC), MOVE))
    kept = {name: table.select(list(IDENTITIES[name])) for name, table in after.items()}
    with tempfile.TemporaryDirectory() as folder:
        changed = followed.move(parquet(before, folder), spans, kept, since=since, split=MOVE)
    return {name: pa.concat_tables([before[name], after[name]]) for name in before}, changed


def assert_read_as(held: Held, canonical: Held) -> None:
    """Series that are cut elsewhere have the same events; before them there may be some that nobody looks back on."""
    by_name = {series.name: series for series in list_series(FLIGHTS, point_kinds(FLIGHTS))}
    for text in {*canonical[0], *canonical[1]}:
        series = by_name[text.partition("[")[0]]
        found, expected = (decode_series(series, text, (s.get(text), r.get(text))).events for s, r in (held, canonical))
        more = len(found.at) - len(expected.at)
        assert found.at[more:] == expected.at, text
        for name in series.columns:
            assert list(found.columns[name][more:]) == list(expected.columns[name]), (text, name)
        for totals, expected_totals in zip(found.totals, expected.totals, strict=True):
            assert [total - totals[more] for total in totals[more:]] == list(expected_totals), text
        for number in range(len(series.orders)) if series.is_parted else ():  # what is before is less in every order
            ranks = [rank - more for rank in found.columns[f"rank{number}"][more:]]
            assert ranks == list(expected.columns[f"rank{number}"]), text


def settle_all(followed: FollowedSeries, held: Held, at_once: int) -> None:
    while (settled := followed.settle(at_once)) != ChangedSeries():
        update(held, settled)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(draw=st.data())
def test_moved_to_later_files_they_are_those_of_a_rebuild_from_them(world: World, draw: st.DataObject) -> None:
    """The files have some rows otherwise than they were followed; rows come before, meanwhile and after."""
    rows = known_by(world, CUT)
    followed = follow(rows)
    held = store_all(followed)
    for _ in range(draw.draw(st.integers(0, 2))):
        changes = steps(world, draw)
        rows = apply_to_rows(rows, changes)
        update(held, followed.apply(changes))
    since = draw.draw(st.sampled_from([SINCE, day(13)]))
    filed = apply_to_rows(rows, steps(world, draw)) if draw.draw(st.booleans()) else rows
    rows, changed = move(followed, filed, rows, since)
    update(held, changed)
    if draw.draw(st.booleans()):  # as a session that begins finds it
        cut = {*changed.settled, *changed.recent}
        followed.mark_stored((key, key in held[1], key not in cut) for key in {*held[0], *held[1]})
    for _ in range(draw.draw(st.integers(0, 2))):
        changes = steps(world, draw)
        rows = apply_to_rows(rows, changes)
        update(held, followed.apply(changes))
        assert_read_as(held, packed_all(followed))
        update(held, followed.settle(draw.draw(st.integers(1, 200)), is_busy=draw.draw(st.booleans())))
    settle_all(followed, held, 500)
    rebuilt = follow(rows, split=MOVE)
    move(rebuilt, rows, rows, since)  # which forgets what no window reaches any more, and changes nothing else
    assert held == packed_all(rebuilt)


def test_a_row_that_the_files_do_not_have_is_seen_to_be_gone(world: World) -> None:
    """The property above is not blind: what a dataset lacks goes, and what it has otherwise is as it has it."""
    rows = known_by(world, CUT)
    followed = follow(rows)
    held = store_all(followed)
    lacking = {**rows, "movements": rows["movements"].slice(7)}
    rows, changed = move(followed, lacking, rows, SINCE)
    assert changed.settled
    update(held, changed)
    assert held != packed_all(follow(rows, split=MOVE))  # not yet
    settle_all(followed, held, 10_000)
    assert held == packed_all(follow(rows, split=MOVE))


def test_undivided_they_are_what_a_refresh_of_the_store_writes(world: World) -> None:
    rows = known_by(world, CUT)
    followed = follow(rows, split=NEVER)
    held = packed_all(followed)
    coming = {name: rows_changed(name, between(table, CUT, day(17))) for name, table in world.items()}
    update(held, followed.apply({name: change for name, change in coming.items() if change.rows.num_rows}))
    with tempfile.TemporaryDirectory() as folder:
        files = parquet(apply_to_rows(rows, coming), folder)
        stored = dict(pack_all_series(FLIGHTS, files, Span(SINCE, NEVER), LEAD))  # type: ignore[arg-type]
    assert held == (stored, {})
    assert len(stored) > 300


WRONG = replace(FLIGHTS.sources["movements"], grain=("carrier", "flight", "origin", "kind", "known_at"))


def told_again(rows: World) -> dict[str, SourceChange]:
    """Movements told again: when one became known does not tell it apart from the one before, as `WRONG` has it."""
    again = changed(rows["movements"].slice(rows["movements"].num_rows - 50), delay_minutes=250.0, known_at=day(16, 13))
    return {"movements": rows_changed("movements", again)}


def test_a_wrongly_declared_grain_is_refused_where_it_shows(world: World) -> None:
    rows = known_by(world, CUT)
    followed = follow(rows, replace(FLIGHTS, sources={**FLIGHTS.sources, "movements": WRONG}))
    held = packed_all(followed)
    with pytest.raises(ValueError, match="grain"):
        followed.apply(told_again(rows))
    assert packed_all(followed) == held
    rightly = follow(rows)
    update(held, rightly.apply(told_again(rows)))
    assert held == packed_all(follow(apply_to_rows(rows, told_again(rows))))


def test_a_wrongly_declared_grain_is_seen(world: World) -> None:
    """The property above is not blind, where nothing of a grain lies apart and so nothing is missed."""
    definition = replace(FLIGHTS, sources={**FLIGHTS.sources, "movements": WRONG})
    rows = known_by(world, CUT)
    followed = follow(rows, definition, split=NEVER)
    held = packed_all(followed)
    changes = told_again(rows)
    update(held, followed.apply(changes))
    assert held != packed_all(follow(apply_to_rows(rows, changes), definition, split=NEVER))


@pytest.mark.parametrize("is_first", [True, False])
def test_what_one_step_brings_and_takes_again_is_none(world: World, *, is_first: bool) -> None:
    """A movement changes an outcome by its own grain, and the clock of its airport changes it once more."""
    rows = known_by(world, CUT)
    followed = follow(rows)
    held = packed_all(followed)
    of_origin = pc.equal(rows["movements"]["origin"], rows["movements"]["origin"][-1])
    at_origin = rows["movements"].filter(of_origin)
    movements = changed(at_origin.slice(at_origin.num_rows - 1), delay_minutes=77.0)
    airports = rows["airports"].filter(pc.equal(rows["airports"]["faa"], movements["origin"][0]))
    both = {"movements": movements, "airports": changed(airports, tzone="Asia/Tokyo")}
    names = list(both) if is_first else list(both)[::-1]
    changes = {name: rows_changed(name, both[name]) for name in names}
    update(held, followed.apply(changes))
    assert held == packed_all(follow(apply_to_rows(rows, changes)))


GRAIN = ("carrier", "flight", "origin", "scheduled_departure")


def follow_shifted(world: World) -> tuple[Held, Held]:
    """Of a stream whose rows have the columns of their grain by name alone: what is held, and what a rebuild gives."""
    shifted = "s.scheduled_departure + interval 1 minute as scheduled_departure, s.scheduled_arrival"
    legs = FLIGHTS.steps["legs"].replace("s.scheduled_departure, s.scheduled_arrival", shifted)
    definition = replace(FLIGHTS, steps={**FLIGHTS.steps, "legs": legs})
    rows = known_by(world, CUT)
    followed = follow(rows, definition)
    held = packed_all(followed)
    changes = {"movements": rows_changed("movements", between(world["movements"], CUT, day(16, 18)))}
    update(held, followed.apply(changes))
    return held, packed_all(follow(apply_to_rows(rows, changes), definition))


@pytest.mark.parametrize("is_noticed_at_once", [True, False])
def test_what_was_there_is_worked_out_where_rows_do_not_tell_their_grain(
    world: World, monkeypatch: pytest.MonkeyPatch, *, is_noticed_at_once: bool
) -> None:
    if not is_noticed_at_once:  # no row told otherwise at the beginning
        monkeypatch.setattr(FollowedStreams, "_list_told", lambda _: {(*GRAIN, "legs")})
    held, rebuilt = follow_shifted(world)
    assert held == rebuilt


def test_rows_that_do_not_tell_their_grain_would_be_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        FollowedStreams, "_find_told", lambda _, __, new: [stream for stream in new if stream == "legs"]
    )
    held, rebuilt = follow_shifted(world)
    assert held != rebuilt


def test_what_is_told_twice_touches_nothing(world: World) -> None:
    rows = known_by(world, CUT)
    followed = follow(rows)
    again = followed.apply({name: rows_changed(name, table.slice(0, 30)) for name, table in rows.items()})
    assert again == ChangedSeries()


def test_what_cannot_be_read_changes_nothing_and_what_comes_next_does(world: World) -> None:
    rows = known_by(world, CUT)
    followed = follow(rows)
    held = packed_all(followed)
    coming = rows_changed("movements", between(world["movements"], CUT, day(16, 15)))
    assert coming.rows.num_rows
    with pytest.raises(ValueError, match="a source is not as declared"):
        followed.apply({"movements": replace(coming, rows=coming.rows.drop_columns(["delay_minutes"]))})
    changes = {"movements": coming}
    update(held, followed.apply(changes))
    assert held == packed_all(follow(apply_to_rows(rows, changes)))


def test_a_change_that_fails_in_its_second_grain_leaves_nothing_of_its_first(world: World) -> None:
    rows = known_by(world, CUT)
    followed = follow(rows)
    held = packed_all(followed)
    coming = rows_changed("movements", between(world["movements"], CUT, day(16, 15)))
    planes = rows_changed("planes", rows["planes"].slice(0, 2))
    typed_wrongly = planes.rows.set_column(0, "tailnum", pa.array([[1], [2]])).drop_columns(["seats"])
    with pytest.raises(ValueError, match="a source is not as declared"):
        followed.apply({"movements": coming, "planes": replace(planes, rows=typed_wrongly)})
    assert held == packed_all(followed)


def test_from_nothing_they_come_to_what_a_rebuild_gives(world: World) -> None:
    """A source may have had no file yet; the split may be told in any time zone."""
    eastern = SPLIT.astimezone(timezone(timedelta(hours=-5)))
    followed = FollowedSeries(FLIGHTS, {}, KEYS, since=SINCE, split=eastern, lead=LEAD)
    held = packed_all(followed)
    rows = known_by(world, CUT)
    for name, table in rows.items():
        for half in (table.slice(0, table.num_rows // 2), table.slice(table.num_rows // 2)):
            update(held, followed.apply({name: rows_changed(name, half)}))
    assert held == packed_all(follow(rows))


def test_there_is_one_zero(world: World) -> None:
    """SQL takes 0.0 and -0.0 for the same: a correction from one to the other changes nothing, in a rebuild neither."""
    rows = known_by(world, CUT)
    rows["weather"] = changed(rows["weather"], temp_f=0.0)
    followed = follow(rows)
    held = packed_all(followed)
    changes = {"weather": rows_changed("weather", changed(rows["weather"].slice(0, 9), temp_f=-0.0))}
    update(held, followed.apply(changes))
    assert held == packed_all(follow(apply_to_rows(rows, changes)))
