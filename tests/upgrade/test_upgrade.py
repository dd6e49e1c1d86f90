"""A stack that commit 6d6a10f left goes on under today's code: nothing is deleted, made again or started anew.

`state_6d6a10f.tar.xz` holds what that commit's own steps had written (make_state.py says how): seven weeks of a thin
slice of flights, a champion, a scored and decided week, a deployment, and a search interrupted after one of its trials.
"""

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from adapters.connect import Outside
from adapters.warehouse import Warehouse
from infra.local import s3
from infra.local.postgres import find_postgres_programs
from infra.local.stack import Stack
from pipeline.partitions import utc
from pipeline.settings import Settings, read_settings
from pipeline.spec import UseCase, use_cases
from tasks import pending_work, score
from tasks.build_features import build, dataset, online_features
from tasks.build_features.rebuild import rebuild_version
from tasks.common.ledger import find_judged_version
from tasks.deploy import deployments
from tasks.ingest import land, validate
from tasks.monitor import monitor
from tasks.promote import evaluate, promote, winner
from tasks.train import refit, search
from tasks.train.study import open_study, summarise_study

ARCHIVE = Path(__file__).with_name("state_6d6a10f.tar.xz")
CHAMPION_AS_OF, NEXT_AS_OF = utc(date(2013, 2, 11)), utc(date(2013, 2, 18))
LAST_WEEK, NEXT_WEEK = "2013-02-11", "2013-02-18"
DATABASES = ("warehouse", "source", "optuna", "mlflow")


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="windsock-upgrade-"))
    folder.chmod(0o755)  # PostgreSQL runs as nobody when the tests run as root
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder / "state", filter="data")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def old_stack(processes: None, state: Path) -> Iterator[Stack]:
    """PostgreSQL, S3, MLflow and the workspace of datasets, as they were left."""
    stack = Stack(state / "home")
    try:
        stack.start(("postgres", "s3"), owner=os.getpid())
        home = stack.home()
        for database in DATABASES:
            psql = [
                str(find_postgres_programs() / "psql"),
                "--quiet",
                "--set=ON_ERROR_STOP=1",
                "--dbname",
                home.dsn(database),
            ]
            dump = (state / "state" / "databases" / f"{database}.sql").read_text()
            text = f"drop schema public cascade; create schema public; {dump}"
            environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
            subprocess.run(psql, input=text, text=True, check=True, env=environment, stdout=subprocess.DEVNULL)
        client = s3.make_s3_client(home.url("s3"), home.secrets["s3_access"], home.secrets["s3_secret"])
        objects = state / "state" / "objects"
        for path in objects.rglob("*"):
            if path.is_file():
                bucket, _, key = path.relative_to(objects).as_posix().partition("/")
                client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
        shutil.copytree(state / "state" / "workspaces", state / "home" / "workspaces")
        stack.start(("postgres", "s3", "mlflow"), owner=os.getpid())
        Warehouse(home.dsn("warehouse")).migrate()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def settings(old_stack: Stack, state: Path) -> Settings:
    params = state / "state" / "params.yaml"
    text = params.read_text()
    text = re.sub(r"^ +(history_days|calibration_quantile|event_time):.*\n", "", text, flags=re.MULTILINE)
    following = "    follow: null\n    horizon_seconds: 60\n    watermark: null\n"
    text = text.replace("  source:\n", f"  source:\n    recheck_partitions: 4\n{following}")
    text = re.sub(r"^  endpoint:.*\n", r"\g<0>    answers: null\n", text, flags=re.MULTILINE)
    params.write_text(text)  # with the keys that the changelog asks to add, and without those that it asks to delete
    return read_settings({**old_stack.environment(), "WINDSOCK_PARAMS": str(params)})


@pytest.fixture(scope="module")
def outside(settings: Settings) -> Outside:
    return Outside(settings)


@pytest.fixture(scope="module")
def use_case(settings: Settings) -> UseCase:
    return use_cases(settings.params)["flights"]


def rows(outside: Outside, query: str) -> list[dict[str, Any]]:
    return outside.warehouse.query(query)


def test_the_last_partition_was_made_with_what_would_make_it_today(use_case, outside):
    assert build.pending_partitions(use_case, outside) == []
    assert online_features.find_unreached_snapshot(use_case, outside) is None
    assert pending_work.find_pending_verbs(use_case, outside) == []


def test_every_version_can_be_read_and_made_again_to_the_same_hash(use_case, outside):
    versions = [row["version"] for row in rows(outside, "select version from snapshots order by build_order")]
    assert len(versions) == 2
    for version in versions:
        snapshot = dataset.find_snapshot(version, use_case, outside)
        loaded = dataset.load_rows(
            version, use_case, outside, start=snapshot.start, end=snapshot.end, known_by=snapshot.end
        )
        assert loaded.num_rows > 1000
    assert rebuild_version(dataset.find_snapshot(versions[0], use_case, outside), outside) == versions[0]


def test_an_interrupted_search_of_rows_that_were_split_otherwise_begins_anew_beside_what_it_left(use_case, outside):
    snapshot = dataset.latest_snapshot(use_case, outside)
    before = _studies(outside)
    search.run_search(use_case, snapshot, NEXT_AS_OF, 2, outside)
    result = search.load_study_result(use_case, snapshot, NEXT_AS_OF, outside)
    assert _studies(outside) == {*before, result.study_name}
    assert (result.trials, result.study_name in before) == (2, False)


def _studies(outside: Outside) -> set[str]:
    return {
        row["study_name"] for row in Warehouse(outside.settings.studies_dsn).query("select study_name from studies")
    }


def test_a_retry_of_the_champions_training_finds_it_and_registers_no_second_version(use_case, outside):
    snapshot = dataset.find_snapshot(
        rows(outside, "select version from snapshots order by build_order")[0]["version"], use_case, outside
    )
    [name] = [each for each in _studies(outside) if f"/{CHAMPION_AS_OF:%Y%m%dT%H%M}/" in each]
    study = summarise_study(open_study(name, use_case, outside))
    candidate = refit.refit(use_case, snapshot, study, CHAMPION_AS_OF, "first champion", None, outside)
    assert candidate.model_version == "1"


def test_what_answers_is_known(use_case, outside):
    serving = deployments.find_serving_deployment(use_case, outside)
    assert (serving.version, serving.outcome, serving.stage) == ("1", "full", "done")
    assert "version 1 answers everyone" in serving.describe()


def test_a_week_more_is_taken_built_scored_and_decided_on_and_nothing_else_changes(use_case, outside):
    kept = "select md5(string_agg(p::text, ',' order by event_time, entity_key)) as digest from predictions p"
    before, entries = rows(outside, kept), rows(outside, "select * from ledger order by entry")
    made = rows(outside, "select index from snapshots order by build_order desc limit 1")[0]["index"]
    week = use_case.grid.partition(NEXT_WEEK)
    validate.validate_batch(use_case, land.land_partition(use_case, week, outside), outside)
    assert build.pending_partitions(use_case, outside) == [NEXT_WEEK]
    build.build_snapshot(use_case, outside)
    index = rows(outside, "select index from snapshots order by build_order desc limit 1")[0]["index"]
    assert {key: entry for key, entry in index.items() if key != NEXT_WEEK} == made

    [scored] = score.score_partitions(use_case, outside)
    assert (scored.partition_start, scored.model_version, scored.updated) == (week.start, "1", 0)
    [decided] = monitor.monitor_partitions(use_case, outside)
    assert decided.as_of == week.end
    assert rows(outside, f"{kept} where prediction_time < '{NEXT_WEEK} 00:00+00'") == before
    assert rows(outside, "select * from ledger order by entry")[: len(entries)] == entries


def test_the_source_is_landed_as_it_was(use_case, outside):
    """Landing a week again finds the very object that 6d6a10f put there, where its rows are still in the source."""
    batches = rows(outside, "select count(*) as number from batches")
    week = use_case.grid.partition(NEXT_WEEK)
    again = land.land_partition(use_case, week, outside)
    assert rows(outside, "select count(*) as number from batches") == batches
    assert {table.table for table in again.tables} == set(use_case.source.tables)


def test_a_champion_of_before_is_judged_itself_and_a_refitted_winner_takes_over(use_case, outside):
    version = rows(outside, "select version from snapshots order by build_order")[1]["version"]
    snapshot = dataset.find_snapshot(version, use_case, outside)
    study = search.load_study_result(use_case, snapshot, NEXT_AS_OF, outside)
    candidate = refit.refit(use_case, snapshot, study, NEXT_AS_OF, "age", None, outside)
    verdict = evaluate.judge_candidate(use_case, candidate, outside)
    assert verdict.champion_version == find_judged_version(use_case, "1", outside) == "1"
    assert "twin" not in "; ".join(verdict.reasons)
    refitted = winner.refit_winner(use_case, candidate, outside)
    assert refitted.model_version not in {"1", candidate.model_version, None}
    won = replace(verdict, answer="promote")
    released = promote.promote(use_case, won, outside, actor="test", refitted=refitted)
    assert (released.champion_version, released.previous_version) == (refitted.promoted_version, "1")
    assert find_judged_version(use_case, refitted.promoted_version, outside) == candidate.model_version
