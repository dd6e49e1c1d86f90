"""A stream that is killed at any step goes on where it was: nothing is lost, nothing is taken twice."""

from datetime import timedelta

import pytest

from adapters.connect import Outside
from features import definition
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import build
from tests.clean_data import week
from tests.tasks.build_features.test_build import put
from tests.tasks.killed import run
from tests.tasks.stream.live import LiveSource, await_content, await_known, following, read_content, rebuild

START = week(2).start
HOUR = timedelta(hours=1)
STREAM = """
import threading
import psycopg2.extras
from tasks.stream import follow, session
from tasks.stream.log_reader import LogReader
from tasks.stream.poll import PollReader
from tests.tasks.stream.live import live
use_case = live(use_cases(settings().params)["flights"], "{follow}")
{planted}
follow.follow_use_case(use_case, outside, threading.Event())
"""
EMPTIED = """
select count(*) as series, count(*) filter (where s.changed > o.changes) as untold
from online_series s join online_state o using (use_case, definition) where s.payload is null and s.recent is null"""
PLANTED = {
    "before it works anything out": """
real = session.apply_rows
session.apply_rows = lambda *given: die() if given[3] else real(*given)
""",
    "with half of the series written": """
real = psycopg2.extras.execute_values
def half(at, statement, rows, **options):
    dying = "set recent = excluded.recent" in statement and rows
    real(at, statement, rows[: len(rows) // 2] if dying else rows, **options)
    if dying:
        die()
psycopg2.extras.execute_values = half
""",
    "between the commit and the word to the source": """
for reader in (LogReader, PollReader):
    reader.settle = lambda self, step: die() if step.changes_rows else None
""",
}
MOVING = {
    "with the series of a later dataset written": """
session.StoreWriter.delete_empty = die
""",
    "when the store is at the later dataset": """
real = session.StreamSession.move
session.StreamSession.move = lambda self: die(real(self))
""",
    "with some series cut anew": """
real = session.StoreWriter.settle
session.StoreWriter.settle = lambda self, *given: die(real(self, *given))
""",
    "when some series cut anew are kept": """
real = session.StreamSession.settle
session.StreamSession.settle = lambda self, most, **how: None if self.is_settled else die(real(self, most, **how))
""",
}


@pytest.mark.parametrize("when", PLANTED)
def test_it_goes_on_where_it_was_killed(
    when: str, followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    source.tell(START + 5 * HOUR)
    run(outside.settings, STREAM.format(follow=followed.source.follow, planted=PLANTED[when]), killed=True)
    kept = outside.warehouse.query("select position, changes from stream_state")
    assert kept[0]["changes"] == (1 if when.startswith("between") else 0)
    source.tell(START + 6 * HOUR)
    with following(followed, outside):
        await_known(outside, START + 6 * HOUR)
    rows = source.read_rows()
    assert read_content(outside) == rebuild(followed, outside, snapshot, definition("flights"), rows)
    [counted] = outside.warehouse.query("select count(*) as rows, count(row_data) as there from followed_rows")
    assert counted["rows"] == counted["there"] == sum(table.num_rows for table in rows.values())


@pytest.mark.parametrize("when", MOVING)
def test_a_move_goes_on_where_it_was_killed(
    when: str, followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    source.tell(week(2).end)
    with following(followed, outside):
        await_known(outside, week(2).end)
    put(outside, followed, 2)
    built = build.build_snapshot(followed, outside)
    assert built is not None
    run(outside.settings, STREAM.format(follow=followed.source.follow, planted=MOVING[when]), killed=True)
    [state] = outside.warehouse.query("select snapshot_version from online_state")
    has_moved = when not in list(MOVING)[:1]
    assert state["snapshot_version"] == (built.version if has_moved else snapshot.version)
    none = {name: table.slice(0, 0) for name, table in source.read_rows().items()}
    content = rebuild(followed, outside, built, definition("flights"), none, first=None if has_moved else snapshot)
    with following(followed, outside):
        await_content(outside, content)
    assert outside.warehouse.query("select count(*) as rows from followed_rows") == [{"rows": 0}]
    [emptied] = outside.warehouse.query(EMPTIED)
    assert emptied["series"] > 0
    assert emptied["untold"] == 0  # else each reader of the store reads them at each look, for as long as nothing comes
