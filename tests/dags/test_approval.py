"""A high-risk use case on a real Airflow: nobody but a person promotes, and the ledger says who decided.

The training itself is not what is tested here: its tasks are marked as done, as an operator would, with a verdict that
says `promote`, and so is the winner's refit. What follows is the real DAG, scheduler, API, registry and warehouse.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests

from infra.local.stack import Stack
from pipeline.handoffs import RefittedWinner, Verdict
from pipeline.settings import REPOSITORY
from tests.conftest import start_stack

DAG = "flights.train"
AS_OF = datetime(2013, 4, 1, tzinfo=UTC)
PATIENCE_SECONDS = 240  # other tests run beside this one


class Live:
    """A running stack whose use case is of high risk."""

    def __init__(self, stack: Stack) -> None:
        self.home, environment = stack.home(), stack.environment()
        self.url = environment["AIRFLOW_URL"]
        self.user = environment["AIRFLOW_ADMIN_USER"]
        self.tracking_uri = environment["MLFLOW_TRACKING_URI"]
        self.session = requests.Session()
        login = {"username": self.user, "password": environment["AIRFLOW_ADMIN_PASSWORD"]}
        token = requests.post(f"{self.url}/auth/token", json=login, timeout=30).json()["access_token"]
        self.session.headers["Authorization"] = f"Bearer {token}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self.session.request(method, f"{self.url}/api/v2/dags/{DAG}{path}", json=body, timeout=30)
        assert answer.ok, answer.text
        return answer.json()

    def sql(self, database: str, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.home.dsn(database))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def states(self, run_id: str) -> dict[str, str | None]:
        found = self.call("GET", f"/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {task["task_id"]: task["state"] for task in found}

    def until(self, run_id: str, said: Callable[[dict[str, str | None]], bool]) -> dict[str, str | None]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not said(states := self.states(run_id)):
            assert time.monotonic() < deadline, states
            time.sleep(0.5)
        return states

    def let_the_scheduler_see_it(self) -> None:
        """Wait for the scheduler's next beats: a task answered before it saw it pause is a killed one to it."""
        beats = (
            "select latest_heartbeat > %s + interval '2 s' from job where job_type = 'SchedulerJob' order by id desc"
        )
        [(now,)] = self.sql("airflow", "select now()")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.sql("airflow", beats, (now,))[0][0]:
            assert time.monotonic() < deadline, "the scheduler does not beat"
            time.sleep(0.2)

    def ledger(self, verdict_id: str) -> list[tuple[Any, ...]]:
        query = "select action, actor, model_version from ledger where verdict_id = %s order by entry"
        return self.sql("warehouse", query, (verdict_id,))

    def champion(self) -> str | None:
        found = self.sql("warehouse", "select version from champions")
        return str(found[0][0]) if found else None


@pytest.fixture(scope="module")
def live(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    params = tmp_path_factory.mktemp("params") / "params.yaml"
    text = (REPOSITORY / "params.yaml").read_text()
    assert "risk: low " in text
    recalibrates = "{half_life_days: 28, spread: 0.15, min_gain: 0.0002}"
    assert recalibrates in text
    params.write_text(text.replace("risk: low ", "risk: high", 1).replace(recalibrates, "null", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINDSOCK_PARAMS", str(params))
        for stack in start_stack("postgres", "s3", "mlflow", "airflow"):
            yield Live(stack)


def register(live: Live) -> str:
    """A model version with nothing in it."""
    from mlflow import MlflowClient

    client = MlflowClient(live.tracking_uri)
    run = client.create_run(client.create_experiment(secrets.token_hex(4)))
    if not client.search_registered_models():
        client.create_registered_model("flights")
    tags = {"windsock.bundle_sha256": "0" * 64}
    return str(
        client.create_model_version("flights", source=run.info.artifact_uri, run_id=run.info.run_id, tags=tags).version
    )


def ask(live: Live, airflow_home: Path, *, refitted: str | None = None) -> tuple[str, Verdict]:
    """A training up to the question; the run id and the verdict that was asked about."""
    run_id = f"asked-{secrets.token_hex(4)}"
    verdict = Verdict(
        verdict_id=run_id,
        use_case="flights",
        candidate_version=register(live),
        champion_version=live.champion(),
        answer="promote",
        reasons=["clearly better"],
        effect=0.02,
        effect_low=0.01,
        effect_high=0.03,
        evidence_uri="s3://lake/evidence",
        as_of=AS_OF,
        needs_approval=True,
    )
    live.call("PATCH", "", {"is_paused": True})
    live.call("POST", "/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": {"as_of": "2013-04-01"}})
    hand_on(live, run_id, "evaluate", verdict)
    done = ["plan", "tune", "refit", "evaluate"]
    if refitted is not None:
        winner = RefittedWinner(
            use_case="flights",
            judged_version=verdict.candidate_version,
            model_version=refitted,
            reasons=[],
            measured={"gain": 0.001},
        )
        hand_on(live, run_id, "refit_winner", winner)
        done.append("refit_winner")
    for task_id in done:
        live.call("PATCH", f"/dagRuns/{run_id}/taskInstances/{task_id}", {"new_state": "success"})
    live.call("PATCH", "", {"is_paused": False})
    live.until(run_id, lambda states: states["approval"] == "awaiting_input")
    live.let_the_scheduler_see_it()
    return run_id, verdict


def hand_on(live: Live, run_id: str, task_id: str, handoff: Verdict | RefittedWinner) -> None:
    """What a task has returned."""
    from airflow.sdk.serde import serialize

    live.sql(
        "airflow",
        "insert into xcom (dag_run_id, task_id, map_index, key, dag_id, run_id, value, timestamp)"
        " select id, %s, -1, 'return_value', dag_id, run_id, %s, now() from dag_run where run_id = %s",
        (task_id, json.dumps(serialize(handoff)), run_id),
    )


def respond(live: Live, run_id: str, option: str) -> None:
    path = f"/dagRuns/{run_id}/taskInstances/approval/-1/hitlDetails"
    live.call("PATCH", path, {"chosen_options": [option], "params_input": {}})


def ended(states: dict[str, str | None]) -> bool:
    return states["finish"] == "success" and states["deploy"] in ("success", "skipped", "failed")


def test_the_refit_of_an_approved_candidate_becomes_champion_and_the_ledger_names_who_approved(
    live: Live, airflow_home: Path
) -> None:
    refitted = register(live)
    run_id, verdict = ask(live, airflow_home, refitted=refitted)
    assert live.champion() not in {verdict.candidate_version, refitted}, "nothing is promoted before the answer"
    assert live.ledger(run_id) == []
    respond(live, run_id, "Approve")
    states = live.until(run_id, ended)
    assert states["admit"] == states["promote"] == states["deploy"] == "success"
    assert live.champion() == refitted
    told = [("approve", live.user, verdict.candidate_version), ("promote", live.user, refitted)]
    assert live.ledger(run_id) == told


def test_a_rejected_candidate_changes_nothing_and_the_ledger_names_who_rejected(live: Live, airflow_home: Path) -> None:
    before = live.champion()
    run_id, verdict = ask(live, airflow_home)
    respond(live, run_id, "Reject")
    states = live.until(run_id, ended)
    assert (states["refit_winner"], states["promote"], states["deploy"]) == ("skipped", "success", "skipped")
    assert live.champion() == before
    assert live.ledger(run_id) == [("reject", live.user, verdict.candidate_version)]


def test_no_answer_in_time_is_a_rejection_by_nobody(live: Live, airflow_home: Path) -> None:
    before = live.champion()
    run_id, verdict = ask(live, airflow_home)
    live.sql("airflow", "update task_instance set trigger_timeout = now() where run_id = %s", (run_id,))
    states = live.until(run_id, ended)
    assert (states["approval"], states["promote"], states["deploy"]) == ("success", "success", "skipped")
    assert states["refit_winner"] == "skipped"
    assert live.champion() == before
    assert live.ledger(run_id) == [("reject", "nobody (approval expired)", verdict.candidate_version)]


def test_waving_the_question_through_promotes_nothing(live: Live, airflow_home: Path) -> None:
    """Marking the approval as success in the grid is no approval: nobody answered."""
    before = live.champion()
    run_id, _ = ask(live, airflow_home)
    live.call("PATCH", f"/dagRuns/{run_id}/taskInstances/approval", {"new_state": "success"})
    assert live.until(run_id, ended)["refit_winner"] == "skipped"
    assert live.champion() == before
    assert [action for action, *_ in live.ledger(run_id)] == ["reject"]
