"""The DAGs as data: what every one of them must have, and what parsing them may cost."""

import copy
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tests.dags.conftest import parse

VERBS = {
    "ingest",
    "build_features",
    "train",
    "score",
    "monitor",
    "retrain",
    "experiment",
    "rollback",
    "replay_quarantine",
    "reconcile",
    "deploy",
    "watch",
}
HEAVY = {
    *("torch", "mlflow", "great_expectations", "evidently", "optuna", "boto3", "botocore", "pandas", "polars"),
    *("pyarrow", "duckdb", "dvc", "matplotlib", "slack_sdk", "tasks", "adapters", "models", "features", "expectations"),
}
# A use case that is shipped -> where its name may stand: where it is declared, and in what replays it.
NAME_ALLOWED = {
    name: {
        "params.yaml",
        "dvc.yaml",
        f"features/{name}.py",
        f"expectations/{name}.py",
        f"infra/replay/{name}_source.py",
    }
    for name in ("flights", "taxi")
}
NAME_ALLOWED["taxi"] |= {"infra/replay/fetch_taxi.py"}


def test_there_is_one_dag_per_verb_and_use_case(bag: Any) -> None:
    names = use_cases(REPOSITORY / "params.yaml")
    expected = {f"{name}.{verb}" for name in names for verb in VERBS} | {"alerts.flush", "alerts.digest"}
    assert set(bag.dags) == expected


def test_a_second_use_case_gets_its_dags_from_params_alone(
    airflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    risky = copy.deepcopy(blocks["flights"]) | {"risk": "high"}
    risky["train"]["workers"] = 3
    risky["monitor"]["recalibration"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(blocks | {"risky": risky}))
    monkeypatch.setenv("WINDSOCK_PARAMS", str(tmp_path / "params.yaml"))
    dags = parse(REPOSITORY / "dags").dags
    assert {f"risky.{verb}" for verb in VERBS} <= set(dags)
    assert dags["flights.train"].get_task("approval").pre_execute is not None  # it skips itself where nobody is needed
    assert dags["risky.train"].get_task("approval").defaults == ["Reject"]
    hours = use_cases(tmp_path / "params.yaml")["risky"].gate.approval_hours
    assert dags["risky.train"].get_task("approval").response_timeout == timedelta(hours=hours)
    workers = [
        dags[f"{name}.train"].get_task("tune").op_kwargs_expand_input.value["worker"] for name in ("flights", "risky")
    ]
    assert workers == [[0], [0, 1, 2]], "a task each, over one study"


def test_a_dag_says_who_what_and_how_to_resume(bag: Any) -> None:
    for dag in bag.dags.values():
        assert len(dag.tags) == 2, dag.dag_id
        assert all(part in dag.doc_md for part in ("**Steps.**", "**Started by**", "**To resume**")), dag.dag_id
        assert dag.description.endswith("."), dag.dag_id
        assert not dag.catchup, dag.dag_id
        assert all(task.owner not in {"", "airflow"} for task in dag.tasks), dag.dag_id


def test_every_task_of_ours_is_retried_bounded_in_time_and_reports_its_failure(bag: Any) -> None:
    waiting = {"await_decision", "approval", "start_train", "close"}  # these wait without holding a slot
    for dag in bag.dags.values():
        for task in dag.tasks:
            name = f"{dag.dag_id}.{task.task_id}"
            assert type(task.retry_policy).__name__ == "Retries", name
            assert task.retries > 0, name
            delays = (task.retry_delay, task.retry_exponential_backoff, task.max_retry_delay)
            assert delays == (timedelta(seconds=5), 2.0, timedelta(minutes=10)), f"{name}: after its process was killed"
            assert task.on_failure_callback, name
            assert task.execution_timeout or task.task_id in waiting, name


def test_one_run_of_a_verb_at_a_time_and_of_monitoring_one_of_each_task(bag: Any) -> None:
    """A partition is decided on while the answers of the one before are still compared, and never two at once."""
    several = {"ingest": 4, "monitor": 2}
    for dag in bag.dags.values():
        verb = dag.dag_id.partition(".")[2]
        assert dag.max_active_runs == several.get(verb, 1), dag.dag_id
        if verb == "monitor":
            assert {task.max_active_tis_per_dag for task in dag.tasks} == {1}


def test_training_and_the_data_workspace_have_one_slot_pools(bag: Any) -> None:
    from orchestration.defaults import POOLS

    pools = {f"{dag.dag_id}.{task.task_id}": task.pool for dag in bag.dags.values() for task in dag.tasks}
    assert {pools[f"flights.train.{step}"] for step in ("tune", "refit", "refit_winner")} == {"gpu"}
    assert pools["flights.train.admit"] == "default_pool", "what is held waits for no accelerator"
    assert pools["flights.build_features.build"] == "dvc"
    assert set(pools.values()) == {*POOLS, "default_pool"}
    assert {slots for slots, _ in POOLS.values()} == {1}


def test_on_kubernetes_trainings_name_the_pod_that_the_scheduler_mounts(bag: Any) -> None:
    values = yaml.safe_load((REPOSITORY / "infra" / "helm" / "values.yaml").read_text())
    [mount] = values["scheduler"]["extraVolumeMounts"]
    asked = {f"{dag.dag_id}.{task.task_id}": task.executor_config for dag in bag.dags.values() for task in dag.tasks}
    assert {name: config for name, config in asked.items() if config} == {
        f"{name}.train.{step}": {"pod_template_file": f"{mount['mountPath']}/gpu.yaml"}
        for name in use_cases(REPOSITORY / "params.yaml")
        for step in ("tune", "refit", "refit_winner")
    }


def test_all_dags_parse_in_a_fraction_of_airflows_own_import_and_load_nothing_heavy(airflow_home: Path) -> None:
    """In a process that has loaded nothing else, both in processor time: a faster machine does both faster."""
    script = f"""
import json, sys, time
began = time.process_time()
from airflow.dag_processing.dagbag import DagBag
folder = {str(REPOSITORY / "dags")!r}
imported = time.process_time()
bag = DagBag(folder, collect_dags=False)
bag.collect_dags(folder)
share = (time.process_time() - imported) / (imported - began)
print(json.dumps([share, len(bag.dags), sorted({{n.partition('.')[0] for n in sys.modules}})]))
"""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("WINDSOCK") and k != "PYTHONDONTWRITEBYTECODE"
    }
    answers = []
    for _ in range(2):  # the first may have to compile
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    share, dags, modules = answers[-1]
    assert dags == len(VERBS) * len(use_cases(REPOSITORY / "params.yaml")) + 2
    assert not HEAVY & set(modules)
    assert share <= 0.25


def test_every_use_case_that_is_shipped_says_where_its_name_may_stand() -> None:
    assert NAME_ALLOWED.keys() == use_cases(REPOSITORY / "params.yaml").keys()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", NAME_ALLOWED)
def test_the_name_of_a_use_case_occurs_only_where_it_is_declared(name: str) -> None:
    found = subprocess.run(
        ["git", "grep", "-lw", name, "--", "*.py", "*.yaml", "*.toml", "*.sql"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    outside = {f for f in found.stdout.split() if not f.startswith(("docs/", "tests/", "benchmarks/"))}
    assert outside <= NAME_ALLOWED[name]


def test_the_dag_page_is_up_to_date(airflow_home: Path) -> None:
    from infra.docs import PAGE, render_page

    assert PAGE.read_text() == render_page(), "run `python -m infra.docs`"


def test_the_page_of_expressions_is_up_to_date() -> None:
    from infra.docs import EXPRESSIONS
    from infra.expression_page import render_expressions

    assert EXPRESSIONS.read_text() == render_expressions(), "run `python -m infra.docs`"
