"""Every version of a row that the stream is told of is kept, with where it stands, while answers are compared."""

from datetime import timedelta

from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import read_followed
from tasks.build_features.followed_versions import forget_followed, read_versions
from tests.clean_data import week
from tests.tasks.stream.live import LiveSource, await_known, following

START = week(2).start
HOUR = timedelta(hours=1)


def test_what_was_told_is_kept_version_by_version_and_forgotten_in_time(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    is_log = followed.source.follow == "cdc"
    with following(followed, outside):
        source.tell(START + HOUR)
        await_known(outside, START + HOUR)
        source.run("update weather set temp_f = 99 where origin = 'EWR'")
        source.tell(START + 2 * HOUR)
        await_known(outside, START + 2 * HOUR)
        if is_log:
            source.remove("weather", "origin = 'EWR' and temp_f = 99")
            source.tell(START + 3 * HOUR)
            await_known(outside, START + 3 * HOUR)
    with outside.warehouse.transaction() as at:
        versions = read_versions(at, followed, START, ["weather"])
        kept = read_followed(at, followed, START)
    assert kept is not None
    last = {(each.table, each.identity): each for each in versions}
    assert {(row.identity, row.row_data) for row in kept.rows if row.table == "weather"} == {
        (each.identity, each.row_data) for each in last.values()
    }
    assert (len(versions) > len(last)) == is_log  # a poll sees what changed within the horizon, which is 0 here
    assert all((each.step.position is not None) == is_log for each in versions)
    steps = [each.step for each in versions]
    assert [step.changes for step in steps] == sorted(step.changes for step in steps)
    assert all(step.known_until and step.known_until >= (step.known_before or START) for step in steps)
    with outside.warehouse.transaction() as at:
        forget_followed(at, followed, snapshot.end)
        assert read_versions(at, followed, START, ["weather"]) == versions
        forget_followed(at, followed, START + timedelta(days=12 * 7, hours=4))
        assert read_versions(at, followed, START, ["weather"]) == []
