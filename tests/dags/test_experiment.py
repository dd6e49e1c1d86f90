"""The experiment DAG's one task does what its form asks for, and nothing where nothing runs."""

from types import SimpleNamespace
from typing import Any

import pytest

RUN = SimpleNamespace(run_id="manual__1", triggering_user_name="ada")


@pytest.fixture
def act(bag: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task's function, with the step's functions replaced by ones that say how they were called."""
    from adapters import connect
    from tasks.deploy.experiment import experiment

    monkeypatch.setattr(connect, "outside", lambda: "outside")
    monkeypatch.setattr(experiment, "start_experiment", lambda *a, **k: f"start {a[0].name} {a[1]} {sorted(k.items())}")
    monkeypatch.setattr(experiment, "stop_experiment", lambda *a, **k: f"stop {a[0].name} {sorted(k.items())}")
    monkeypatch.setattr(experiment, "judge_experiment", lambda *a: f"look {a[0].name}")
    function = bag.dags["flights.experiment"].get_task("experiment").python_callable

    def call(**params: str | None) -> Any:
        return function(params={"action": "look", "version": None, "reason": None} | params, dag_run=RUN)

    return call


def test_by_default_it_looks_and_with_nothing_running_it_is_skipped(act, monkeypatch):
    from airflow.sdk.exceptions import AirflowSkipException

    from tasks.deploy.experiment import experiment

    assert act() == "look flights"
    monkeypatch.setattr(experiment, "judge_experiment", lambda *_: None)
    with pytest.raises(AirflowSkipException):
        act()


def test_a_start_is_named_by_its_run_so_that_a_retry_is_the_same_experiment(act):
    said = act(action="start", version="8")
    assert said == "start flights 8 [('actor', 'ada'), ('request_id', 'manual__1')]"
    with pytest.raises(ValueError, match="name the version"):
        act(action="start")


def test_a_stop_hands_on_who_and_why(act):
    assert act(action="stop", reason="enough") == "stop flights [('actor', 'ada'), ('reason', 'enough')]"


def test_it_looks_every_ten_minutes_by_itself_where_an_experiment_is_declared(bag):
    from dags.experiment import make_experiment_dag
    from orchestration.defaults import declared

    [flights] = [one for one in declared() if one.name == "flights"]
    rule = SimpleNamespace(share=0.2)
    dag = make_experiment_dag(flights.model_copy(update={"experiment": rule}))
    assert dag.timetable.expression == "*/10 * * * *"
    assert dag.params["action"] == "look"
    assert make_experiment_dag(flights.model_copy(update={"experiment": None})).schedule is None
