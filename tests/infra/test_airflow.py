"""Airflow in the whole stack, and what the doctor and the containers' health checks find of it: one for all of them."""

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests
import torch

from adapters.connect import Outside
from infra.compose import health
from infra.doctor.airflow import check_execution_api
from infra.local.__main__ import main
from infra.local.airflow import JOBS, airflow_settings
from infra.local.plan import GROUPS
from infra.local.ports import find_free_port
from infra.local.processes import ProcessIdentity, find_members, wait_until_ended
from infra.local.stack import Stack
from infra.replay.flights_source import create_source_tables
from models.ensemble import fit_ensemble
from pipeline.settings import REPOSITORY, read_settings
from pipeline.spec import use_cases
from tests.conftest import start_stack
from tests.infra.test_doctor import Environment, nobody, wrong
from tests.infra.test_stack import all_processes, command_line, read_living
from tests.models import synthetic
from tests.models.test_training import recipe
from tests.tasks import planted
from tests.tasks.test_score import crown
from tests.waiting import until

PARTS = {"postgres", "s3", "mlflow", "torchserve", "shipper", "api-server", "scheduler", "dag-processor", "triggerer"}


@pytest.fixture(scope="module")
def airflow_stack(processes: None) -> Iterator[Stack]:
    """Everything. It takes half a minute to start, and a quarter of a processor as long as it runs."""
    yield from start_stack(*GROUPS)


@pytest.fixture
def call(airflow_stack: Stack) -> Callable[..., Any]:
    """Airflow's API, as the administrator of the env file."""
    environment = airflow_stack.environment()
    url = environment["AIRFLOW_URL"]
    login = {"username": environment["AIRFLOW_ADMIN_USER"], "password": environment["AIRFLOW_ADMIN_PASSWORD"]}
    token = requests.post(f"{url}/auth/token", json=login, timeout=30).json()["access_token"]

    def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        answer = requests.request(method, f"{url}/api/v2{path}", headers=headers, json=body, timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    return ask


def test_every_part_is_healthy(airflow_stack: Stack) -> None:
    rows = airflow_stack.status()
    # A stack without HAProxy has no gateway, and says so.
    assert {row.part for row in rows} - {"gateway"} == PARTS | {"stream"}
    assert all(row.healthy for row in rows)
    assert main(["status", "--home", str(airflow_stack.folder)]) == 0


def test_airflow_says_so_too(call: Callable[..., Any]) -> None:
    health = call("GET", "/monitor/health")
    assert {name: part["status"] for name, part in health.items()} == {
        "metadatabase": "healthy",
        "scheduler": "healthy",
        "triggerer": "healthy",
        "dag_processor": "healthy",
    }


def test_nobody_comes_in_without_the_generated_password(airflow_stack: Stack) -> None:
    url = airflow_stack.environment()["AIRFLOW_URL"]
    guess = {"username": "admin", "password": "admin"}
    assert requests.post(f"{url}/auth/token", json=guess, timeout=30).status_code == 401
    assert requests.get(f"{url}/api/v2/dags", timeout=30).status_code == 401
    passwords = airflow_stack.folder / "airflow" / "passwords.json"
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600


def test_the_pools_that_dags_name_have_one_slot(call: Callable[..., Any]) -> None:
    pools = {pool["name"]: pool["slots"] for pool in call("GET", "/pools")["pools"]}
    assert (pools["gpu"], pools["dvc"]) == (1, 1)


def test_our_dags_are_parsed(call: Callable[..., Any]) -> None:
    until(lambda: call("GET", "/dags?limit=100")["total_entries"] >= 5)
    assert call("GET", "/importErrors")["import_errors"] == []


def test_no_secret_is_on_a_command_line(airflow_stack: Stack) -> None:
    secrets = [value for name, value in airflow_stack.home().secrets.items() if name != "stack"]
    lines = read_living(all_processes(airflow_stack), command_line)
    assert len(lines) > len(PARTS)
    assert not [line for line in lines for secret in secrets if secret in line]


def test_a_killed_scheduler_comes_back_and_its_workers_do_not_live_on(airflow_stack: Stack) -> None:
    home, before = airflow_stack.home(), airflow_stack.state()["parts"]["scheduler"]
    leader = ProcessIdentity(pid=before["pid"], started=before["started"])
    workers = [p for p in find_members(leader, f"{home.stack}/scheduler") if p.pid != leader.pid]
    assert workers
    os.kill(leader.pid, signal.SIGKILL)

    def scheduler() -> dict[str, Any]:
        state: dict[str, Any] = airflow_stack.state()["parts"]["scheduler"]
        return state

    until(lambda: scheduler()["pid"] != leader.pid and scheduler()["state"] == "up")
    assert scheduler()["restarts"] == before["restarts"] + 1
    assert wait_until_ended(workers, 0) == []


def test_mlflow_keeps_its_runs_in_postgres_and_its_artifacts_in_s3(airflow_stack: Stack) -> None:
    url = airflow_stack.home().url("mlflow")
    body = {"name": "from-the-test"}
    made = requests.post(f"{url}/api/2.0/mlflow/experiments/create", json=body, timeout=30).json()
    connection = psycopg2.connect(airflow_stack.home().dsn("mlflow"))
    with connection, connection.cursor() as cursor:
        cursor.execute("select experiment_id, artifact_location from experiments where name = 'from-the-test'")
        assert cursor.fetchall() == [(int(made["experiment_id"]), f"mlflow-artifacts:/{made['experiment_id']}")]
    connection.close()
    artifact = f"{url}/api/2.0/mlflow-artifacts/artifacts/{made['experiment_id']}/r/a.json"
    assert requests.put(artifact, data=json.dumps({"n": 1}), timeout=30).ok
    assert requests.get(artifact, timeout=30).json() == {"n": 1}


def test_mlflow_answers_only_to_its_own_name(airflow_stack: Stack) -> None:
    url = airflow_stack.home().url("mlflow")
    answer = requests.get(f"{url}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"}, timeout=30)
    assert answer.status_code == 403


def test_what_a_backfill_leaves_due_is_scored_in_shares_that_are_mapped(
    airflow_stack: Stack, call: Callable[..., Any], tmp_path: Path
) -> None:
    """Eighteen weeks of features and a champion since the first: two tasks, every week once."""
    outside, use_case = (
        Outside(read_settings(airflow_stack.environment())),
        use_cases(REPOSITORY / "params.yaml")["flights"],
    )
    table = synthetic.table(800, days=18 * 7 - 2)
    planted.dataset(outside, use_case, table)
    ensemble = fit_ensemble(recipe(epochs=1), table, torch.device("cpu"))
    version = planted.model(outside.registry, use_case, tmp_path, ensemble, key="1", cutoff=synthetic.START)
    crown(outside, use_case, version, None, use_case.grid.partition("2012-12-31").start)
    call("PATCH", "/dags/flights.score", {"is_paused": False})
    run = "/dags/flights.score/dagRuns"
    call("POST", run, {"dag_run_id": "backfilled", "logical_date": None})
    until(lambda: call("GET", f"{run}/backfilled")["state"] in {"success", "failed"}, 240)
    tasks = call("GET", f"{run}/backfilled/taskInstances")["task_instances"]
    found = sorted((task["task_id"], task["map_index"], task["state"]) for task in tasks)
    assert found == [("find", -1, "success"), ("score", 0, "success"), ("score", 1, "success")]
    scored = outside.warehouse.query("select partition_start, rows from scorings order by partition_start")
    assert (len(scored), sum(row["rows"] for row in scored)) == (18, 800)
    assert outside.warehouse.query("select count(*) as n from predictions")[0]["n"] == 800


@pytest.fixture
def tasks(airflow_stack: Stack) -> Environment:
    """What a task of the embedded stack is told."""
    return airflow_settings(airflow_stack.home())


def test_an_api_server_that_takes_our_tokens_is_left_alone(tasks: Environment) -> None:
    assert [finding.check for finding in check_execution_api(tasks)] == ["execution API", "JWT secret"]
    assert wrong(check_execution_api(tasks)) == []


def test_what_airflow_says_before_the_token_is_no_part_of_it(tasks: Environment) -> None:
    """Without the profile `monitoring` there is no StatsD, which every process of Airflow mentions."""
    silent = {"AIRFLOW__METRICS__STATSD_ON": "True", "AIRFLOW__METRICS__STATSD_HOST": "nowhere.invalid"}
    assert wrong(check_execution_api({**tasks, **silent})) == []


def test_a_secret_that_is_not_the_api_server_s(tasks: Environment) -> None:
    [said] = wrong(check_execution_api({**tasks, "AIRFLOW__API_AUTH__JWT_SECRET": "0" * 64}))
    assert "give AIRFLOW__API_AUTH__JWT_SECRET one value in every Airflow process" in said


def test_an_execution_address_that_leads_elsewhere(tasks: Environment) -> None:
    name = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"
    root = tasks[name].removesuffix("execution/")
    [elsewhere] = wrong(check_execution_api({**tasks, name: f"{root}nowhere/"}))
    assert "something else answers there" in elsewhere
    [unset] = wrong(check_execution_api({**tasks, name: ""}))
    assert f"set {name} to" in unset
    [silent] = wrong(check_execution_api({**tasks, name: f"http://{nobody()}/execution/"}))
    assert "start the api-server" in silent


@pytest.fixture
def container(airflow_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a container that runs what the embedded stack runs."""
    for name, value in airflow_settings(airflow_stack.home()).items():
        if name.startswith("AIRFLOW__"):
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("server", ["api-server", *JOBS])
def test_a_server_that_works_is_healthy(container: None, server: str) -> None:
    assert health.is_server_healthy(server)


@pytest.mark.parametrize("server", JOBS)
def test_one_that_beats_in_another_container_is_not_this_one(
    container: None, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setattr(health.socket, "gethostname", lambda: "another")  # what a container is known by
    assert not health.is_server_healthy(server)


def test_without_its_database_none_is_healthy(container: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"postgresql+psycopg2://airflow:x@127.0.0.1:{find_free_port(set())}/airflow"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", nowhere)
    assert not any(health.is_server_healthy(server) for server in JOBS)


def test_an_api_server_that_is_not_there_is_not_healthy(container: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__PORT", str(find_free_port(set())))
    assert not health.is_server_healthy("api-server")


def test_a_partition_that_nobody_took_is_taken_though_its_source_has_ended(
    airflow_stack: Stack, call: Callable[..., Any]
) -> None:
    """`reconcile` starts an ingest that has a task: a run with today's data time would be a success of nothing."""
    outside = Outside(read_settings(airflow_stack.environment()))
    create_source_tables(outside.source)
    for start, table in itertools.product(("2013-06-03", "2013-06-17"), ("flights", "movements", "weather")):
        outside.warehouse.execute(
            "insert into batches (use_case, table_name, partition_start, partition_end, raw_sha256, version, raw_uri,"
            " raw_rows, status) values ('flights', %s, %s, %s::timestamptz + interval '7 days', 'planted', 1, '-', 0,"
            " 'landed')",
            (table, f"{start}T00:00Z", f"{start}T00:00Z"),
        )
    for verb in ("ingest", "reconcile"):
        call("PATCH", f"/dags/flights.{verb}", {"is_paused": False})
    call("POST", "/dags/flights.reconcile/dagRuns", {"dag_run_id": "looked", "logical_date": None})
    taken = "select 1 from batches where partition_start = '2013-06-10T00:00Z'"
    until(lambda: bool(outside.warehouse.query(taken)), 240)
    runs = call("GET", "/dags/flights.ingest/dagRuns")["dag_runs"]
    assert [run["conf"] for run in runs] == [{"partition": "2013-06-10"}]


def test_what_runs_tasks_lets_the_processes_of_other_sessions_go_first_too(processes: None) -> None:
    """Where Linux shares processors out by session, a process's own niceness counts within its session alone.

    Only what the scheduler itself forks yields: neither the scheduler, nor a task once more than its worker.
    """
    code = """
import os
from functools import partial
from infra.local.airflow_main import SESSION_NICENESS as session, yield_processor

def tell(who, session_before):
    shared = session.read_text().split()[-1] if session.exists() else "-"
    print(who, os.nice(0), shared, os.getsid(0) != session_before, flush=True)

def fork(work):
    if (pid := os.fork()) == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)

os.register_at_fork(after_in_child=partial(yield_processor, 3, os.getpid()))
mine = os.getsid(0)
def work():
    tell("worker", mine)
    theirs = os.getsid(0)
    fork(lambda: tell("task", theirs))
fork(work)
tell("scheduler", mine)
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, start_new_session=True)
    if "cannot be written" in said.stdout:
        pytest.skip(said.stdout)
    before = os.nice(0)
    [worker, task, scheduler] = [line.split() for line in said.stdout.splitlines()]
    shared = ("-", "-") if worker[2] == "-" else ("3", "0")
    assert worker == ["worker", str(before + 3), shared[0], "True"]
    assert task == ["task", str(before + 3), shared[0], "False"]
    assert scheduler == ["scheduler", str(before), shared[1], "False"]
