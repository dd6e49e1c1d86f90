"""What Airflow does on events and orders that carry partition keys, as the pages say: seen in its own database."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dags.conftest import parse
from tests.dags.test_score import scored
from tests.pages import list_spans, read_blocks, read_page

OWN, KEYLESS = "tell_sales", "never_told"


@pytest.fixture
def synced(bag: Any) -> Iterator[Any]:
    """Airflow's database, which knows our DAGs; what the test adds is taken away."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import sync_bag_to_db
    from airflow.utils.session import create_session
    from sqlalchemy import text

    def ask(query: str, **values: Any) -> list[Any]:
        with create_session() as session:
            answer = session.execute(text(query), values)
            return [tuple(row) for row in answer] if answer.returns_rows else []

    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(bag, "dags-folder", None)
    yield ask
    ask("delete from dag where dag_id in (:own, :keyless)", own=OWN, keyless=KEYLESS)
    ask("delete from dag_run where dag_id = 'flights.ingest'")
    ask("delete from backfill")


def test_a_dag_of_your_own_runs_once_a_partition_and_one_whose_schedule_knows_none_never(
    synced: Any, bag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.dag_processing.dagbag import sync_bag_to_db

    from adapters import connect
    from tasks import score

    [page] = read_blocks("docs/own-dag.md", "python")
    schedule = 'PartitionedAssetTimetable(assets=Asset("flights.scores"))'
    assert schedule in page
    (tmp_path / "own.py").write_text(page)
    (tmp_path / "keyless.py").write_text(page.replace(schedule, '[Asset("flights.scores")]').replace(OWN, KEYLESS))
    sync_bag_to_db(parse(tmp_path), "dags-folder", None)
    synced("update dag set is_paused = false where dag_id in (:own, :keyless)", own=OWN, keyless=KEYLESS)
    weeks = ["2013-01-07", "2013-01-14"]
    monkeypatch.setattr(connect, "outside", lambda: None)
    monkeypatch.setattr(score, "plan_shares", lambda *_: [[week] for week in weeks])
    monkeypatch.setattr(score, "score_partitions", lambda _use_case, _outside, keys: scored(keys))
    assert bag.dags["flights.score"].test().state == "success"
    due = synced("select target_dag_id, partition_key from asset_partition_dag_run order by partition_key")
    assert [key for name, key in due if name == OWN] == weeks
    assert KEYLESS not in {name for name, _ in due}
    assert synced("select * from asset_dag_run_queue where target_dag_id = :keyless", keyless=KEYLESS) == []


@pytest.mark.parametrize(("option", "runs_each"), [(["--reprocess-behavior", "completed"], 2), ([], 1)])
def test_the_backfill_of_the_readme_takes_partitions_that_had_a_run(
    synced: Any, option: list[str], runs_each: int
) -> None:
    from airflow.cli.cli_parser import get_parser

    [line] = [span for span in list_spans(read_page("README.md")) if "airflow backfill create" in span]
    words = shlex.split(line.partition("airflow ")[2])
    assert words[-2:] == ["--reprocess-behavior", "completed"]
    for asked in (words[:-2], [*words[:-2], *option]):
        arguments = get_parser().parse_args(asked)
        arguments.func(arguments)
        synced("update dag_run set state = 'failed' where dag_id = 'flights.ingest'")
        synced("update backfill set completed_at = now()")
    runs = synced("select partition_key, count(*) from dag_run where dag_id = 'flights.ingest' group by 1 order by 1")
    assert runs == [(f"2013-{day}", runs_each) for day in ("01-07", "01-14", "01-21", "01-28", "02-04")]
