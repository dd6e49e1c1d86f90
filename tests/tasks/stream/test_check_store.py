"""What is in the online store is compared with a rebuild: nothing differs, or the series that do are named."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta

import pytest

from adapters.connect import Outside
from features import definition
from features.series import list_series, point_kinds
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.stream.check_store import Parts, check_store, compare_parts
from tests.clean_data import week
from tests.features.test_followed import SINCE, SPLIT, World, follow, known_by, world
from tests.features.world import day
from tests.tasks.killed import environment
from tests.tasks.stream.live import LiveSource, await_known, following, read_content

__all__ = ["world"]  # a fixture

FLIGHTS = definition("flights")
HOUR = timedelta(hours=1)
SERIES = list_series(FLIGHTS, point_kinds(FLIGHTS))
SPOIL = """
update online_series set {part} = (
    select {part} from online_series where key like 'outcomes(carrier)%%' and {part} is not null order by key limit 1
) where key = %s"""


@pytest.mark.parametrize("follow", ["cdc"])
def test_a_store_that_was_followed_is_a_rebuild_and_one_spoilt_series_is_named(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    until = week(2).start + 20 * HOUR
    with following(followed, outside):
        source.tell(until)
        await_known(outside, until)
    checked = check_store(followed, outside)
    assert (checked.different, checked.same_events) == ((), 0)
    assert checked.same_bytes == len(read_content(outside)) > 500
    for part in ("payload", "recent"):
        [row] = outside.warehouse.query(
            f"select key, {part} from online_series where {part} is not null order by key desc limit 1"
        )
        outside.warehouse.execute(SPOIL.format(part=part), (row["key"],))
        assert check_store(followed, outside).different == (row["key"],)
        outside.warehouse.execute(f"update online_series set {part} = %s where key = %s", (row[part], row["key"]))
    outside.warehouse.execute("delete from online_series where key = %s", (row["key"],))
    assert check_store(followed, outside).different == (row["key"],)


def test_the_command_says_what_it_found(outside: Outside, snapshot: Snapshot) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "tasks.stream.check_store", *arguments]
        done = subprocess.run(command, env=environment(outside.settings), capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert run("trains")[0] == 2
    assert "no use case 'trains'" in run("trains")[1]
    assert run("flights") == (2, "flights: the online store is not followed yet\n")


def to_parts(world: World, *, split: datetime = SPLIT, since: datetime = SINCE) -> dict[str, Parts]:
    series = follow(known_by(world, day(17)), split=split, since=since)
    packed = series.pack_all()
    series.close()
    return {text: (packed.settled.get(text), packed.recent.get(text)) for text in {*packed.settled, *packed.recent}}


def test_series_that_are_cut_elsewhere_hold_the_same_events_until_one_is_lacking(world: World) -> None:
    here, there = to_parts(world), to_parts(world, split=day(SPLIT.day + 1))

    def compare(stored: Mapping[str, Parts]) -> tuple[int, tuple[str, ...]]:
        checked = compare_parts(SERIES, stored, there, lambda: there, SINCE)
        assert checked.same_bytes + checked.same_events + len(checked.different) == len({*stored, *there})
        return checked.same_events, checked.different

    same_events, different = compare(here)
    assert different == ()
    assert same_events > 50
    text = next(text for text in sorted(here) if None not in here[text] and here[text] != there[text])
    for lacking in ((here[text][0], None), (None, here[text][1]), (here[text][0], here[text][0]), (b"damaged", None)):
        assert compare({**here, text: lacking})[1] == (text,)


def test_a_stream_that_began_earlier_may_hold_more_but_nothing_that_never_was(world: World) -> None:
    stored, rebuilt, before = (to_parts(world, since=day(number)) for number in (SINCE.day, 14, SINCE.day - 2))
    checked = compare_parts(SERIES, stored, rebuilt, lambda: before, day(14))
    assert checked.different == ()
    more = sorted(text for text in stored.keys() - rebuilt.keys() if text in before)
    assert 20 < len(more) <= checked.same_events
    without = {text: parts for text, parts in before.items() if text != more[0]}
    assert compare_parts(SERIES, stored, rebuilt, lambda: without, day(14)).different == (more[0],)
