"""What runs as soon as Airflow has seen the DAGs of a use case, and how much of the past that may be."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import REPOSITORY
from tests.dags.conftest import parse
from tests.shipped import read_shipped_params


@pytest.fixture
def seen(bag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Any]]]:
    """Airflow's database, which sees the DAGs of two use cases, with years of history, for the first time."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import sync_bag_to_db
    from airflow.utils.session import create_session
    from sqlalchemy import text

    def ask(query: str) -> list[Any]:
        with create_session() as session:
            answer = session.execute(text(query))
            return [tuple(row) for row in answer] if answer.returns_rows else []

    shipped = read_shipped_params()["flights"]
    lasting = shipped | {"source": shipped["source"] | {"last_partition": None}}
    blocks = {"running": {**lasting, "paused": False}, "waiting": {**lasting, "paused": True}, "silent": {**lasting}}
    del blocks["silent"]["paused"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(blocks))
    monkeypatch.setenv("WINDSOCK_PARAMS", str(tmp_path / "params.yaml"))
    ask("delete from dag where dag_id like 'alerts.%'")
    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(parse(REPOSITORY / "dags"), "dags-folder", None)
    yield ask
    for name in blocks:
        ask(f"delete from dag where dag_id like '{name}.%'")


def test_dags_run_from_the_start_unless_their_block_says_otherwise(seen: Callable[..., list[Any]]) -> None:
    paused = dict(seen("select dag_id, is_paused from dag where dag_id similar to '(running|waiting|silent|alerts).%'"))
    by_use_case = {name.partition(".")[0] for name, is_paused in paused.items() if not is_paused}
    assert by_use_case == {"running", "silent", "alerts"}
    assert {name.partition(".")[0] for name, is_paused in paused.items() if is_paused} == {"waiting"}


def test_no_schedule_takes_of_years_of_history_more_than_what_ended_last(seen: Callable[..., list[Any]]) -> None:
    """With a start date, or with `catchup`, the first run would be of 2012."""
    due = dict(seen("select dag_id, next_dagrun_create_after from dag where dag_id like 'silent.%'"))
    clocked = {name.partition(".")[2]: at for name, at in due.items() if at is not None}
    assert {*clocked} == {"ingest", "watch", "reconcile", "retrain"}
    now = datetime.now(UTC)
    assert now - timedelta(days=7) <= clocked["ingest"] <= now + timedelta(days=7)
    assert all(now - timedelta(minutes=11) <= clocked[verb] for verb in ("watch", "reconcile", "retrain"))


def test_what_a_person_paused_or_unpaused_stays_so(seen: Callable[..., list[Any]]) -> None:
    from airflow.dag_processing.dagbag import sync_bag_to_db

    seen("update dag set is_paused = not is_paused where dag_id in ('silent.ingest', 'waiting.ingest')")
    sync_bag_to_db(parse(REPOSITORY / "dags"), "dags-folder", None)
    found = seen("select dag_id, is_paused from dag where dag_id in ('silent.ingest', 'waiting.ingest') order by 1")
    assert found == [("silent.ingest", True), ("waiting.ingest", False)]
