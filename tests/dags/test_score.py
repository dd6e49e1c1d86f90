"""Scoring is mapped over shares of what is due, and each share wakes monitoring with a partition of its own."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.handoffs import Scores


def scored(keys: Sequence[str]) -> list[Scores]:
    """What scoring of these partitions hands on."""
    starts = [datetime.fromisoformat(key).replace(tzinfo=UTC) for key in keys]
    return [
        Scores(
            use_case="flights", partition_start=start, partition_end=start + timedelta(days=7), model_version="1",
            snapshot_version="s", rows=1, inserted=1, updated=0,
        )
        for start in starts
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "woken"),
    [([["2013-01-07", "2013-01-14"], ["2013-01-21"]], ["2013-01-14", "2013-01-21"]), ([], [])],
    ids=["a backfill", "nothing due"],
)
def test_every_share_is_a_task_and_wakes_monitoring_once(
    bag: Any, monkeypatch: pytest.MonkeyPatch, shares: list[list[str]], woken: list[str]
) -> None:
    from airflow.utils.session import create_session
    from sqlalchemy import text

    from adapters import connect
    from tasks import score

    monkeypatch.setattr(connect, "outside", lambda: None)
    monkeypatch.setattr(score, "plan_shares", lambda *_: shares)
    monkeypatch.setattr(score, "score_partitions", lambda _use_case, _outside, keys: scored(keys))
    run = bag.dags["flights.score"].test()
    assert run.state == "success"
    states = {(task.task_id, task.map_index, task.state) for task in run.get_task_instances()}
    mapped = {("score", i, "success") for i in range(len(shares))} or {("score", -1, "skipped")}
    assert states == {("find", -1, "success"), *mapped}
    with create_session() as session:
        query = text("select partition_key from asset_event where source_run_id = :run order by 1")
        assert [row[0] for row in session.execute(query, {"run": run.run_id})] == woken
