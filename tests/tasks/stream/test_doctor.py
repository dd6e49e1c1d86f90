"""The doctor says what a followed source lacks, and nothing where it is followed well."""

from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from adapters.connect import Outside
from infra.doctor.stream import check_streams
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tests.shipped import read_shipped_params
from tests.tasks.build_features.test_build import put
from tests.tasks.killed import environment
from tests.tasks.stream.live import LiveSource, await_known, following

HOUR = timedelta(hours=1)


@pytest.fixture
def follow() -> str:
    return "cdc"


def told(outside: Outside, folder: Path, follow: str | None) -> dict[str, str]:
    """The environment of a stack whose use case follows its source, or does not."""
    params = read_shipped_params()
    params["flights"]["source"] |= {"follow": follow, "watermark": {"table": "clock", "column": "told_until"}}
    params["flights"]["endpoint"]["answers"] = None
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return {**environment(outside.settings), "WINDSOCK_PARAMS": str(folder / "params.yaml")}


@pytest.fixture
def asked(followed: UseCase, outside: Outside, tmp_path: Path) -> dict[str, str]:
    """The environment of a stack whose use case follows its source."""
    return told(outside, tmp_path, "cdc")


def said(asked: dict[str, str]) -> list[str]:
    return [str(finding) for finding in check_streams(asked) if not finding.is_ok]


def test_what_is_missing_is_named_and_nothing_where_all_is_well(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource, asked: dict[str, str]
) -> None:
    assert [line.split()[1] for line in said(asked)] == ["stream", "slot"]
    with following(followed, outside):
        source.tell(snapshot.end + HOUR)
        await_known(outside, snapshot.end + HOUR)
        assert said(asked) == []
        outside.source.execute(
            f"grant insert on weather to {asked['WINDSOCK_FOLLOWER_DSN'].split('user=')[1].split()[0]}"
        )
        [line] = said(asked)
        assert "may write weather" in line
    del asked["WINDSOCK_FOLLOWER_DSN"]
    assert any("set WINDSOCK_FOLLOWER_DSN" in line for line in said(asked))


def test_tables_that_are_not_there_yet_are_waited_for_and_those_that_are_gone_are_wrong(
    followed: UseCase, outside: Outside, source: LiveSource, asked: dict[str, str]
) -> None:
    """Whoever made a use case of their own has none of the shipped one's tables: nothing is wrong with that."""
    source.hide("clock", "weather")
    [waits] = check_streams(asked)
    assert waits.is_ok
    assert "waits for what is not in the source yet: clock, weather" in str(waits)
    put(outside, followed, 0)
    [gone] = said(asked)
    assert "no longer in the source: clock, weather" in gone


def test_before_the_first_dataset_a_stream_that_waits_is_not_wrong(
    outside: Outside, source: LiveSource, asked: dict[str, str]
) -> None:
    assert said(asked) == []
    assert [str(finding).split()[0] for finding in check_streams(asked)] == ["note", "ok", "ok"]
    outside.warehouse.execute(
        "insert into online_state (use_case, definition, since, as_of, snapshot_version, revision)"
        " values ('flights', 'digest', now(), now(), 'version', 1)"
    )
    assert [line.split()[1] for line in said(asked)] == ["stream", "slot"]


def test_a_stack_in_which_nothing_is_followed_is_left_alone(outside: Outside, tmp_path: Path) -> None:
    assert list(check_streams(told(outside, tmp_path, None))) == []
