"""What all DAGs share: retries, hand-offs through XCom, the questions a run is asked."""

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import psycopg2
import psycopg2.errors
import pytest

from adapters.errors import Corrupt, Missing, Unavailable
from pipeline.handoffs import Batch, RefittedWinner, Snapshot, TableBatch
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.errors import BadData

NEW_YEAR = datetime(2012, 12, 31, tzinfo=UTC)


@pytest.fixture
def retries(airflow_home: Path) -> Any:
    from orchestration.retries import Retries

    return Retries()


@pytest.mark.parametrize(
    "mistake",
    [
        BadData("10x the rows"),
        ValueError("no such partition"),
        AssertionError(),
        Missing("no bundle"),
        KeyError("a column that is not there"),
        IndexError("of an empty list"),
        ZeroDivisionError(),
        SyntaxError("in a definition"),
        NotImplementedError(),
        Corrupt("in the store, too"),
        psycopg2.errors.UniqueViolation("duplicate key value violates unique constraint"),
        psycopg2.errors.NotNullViolation("null value in column"),
        psycopg2.errors.CardinalityViolation("cannot affect row a second time"),
        psycopg2.errors.NumericValueOutOfRange("integer out of range"),
        psycopg2.errors.UndefinedColumn("column does not exist"),
        duckdb.ConstraintException("duplicate key"),
        duckdb.BinderException("column not found"),
        duckdb.ConversionException("could not convert"),
    ],
    ids=lambda mistake: type(mistake).__name__,
)
def test_bad_data_and_mistakes_fail_at_once(retries: Any, mistake: Exception) -> None:
    assert retries.evaluate(mistake, 1, 8).action.value == "fail"


def test_trouble_of_the_outside_world_is_tried_again_later_and_later(retries: Any) -> None:
    import botocore.exceptions
    import requests

    troubles = [
        psycopg2.OperationalError("server closed the connection"),
        psycopg2.errors.DeadlockDetected("deadlock detected"),
        psycopg2.errors.SerializationFailure("could not serialize access"),
        psycopg2.errors.DiskFull("no space left on device"),
        duckdb.OutOfMemoryException("another task has it"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1"),
        requests.exceptions.JSONDecodeError("half an answer", "", 0),  # a ValueError, and yet no mistake of ours
        ConnectionResetError(),
        Unavailable("MLflow did not answer"),
        RuntimeError("anything else"),
    ]
    for trouble in troubles:
        decisions = [retries.evaluate(trouble, attempt, 8) for attempt in (1, 2, 3, 8, 20)]
        assert {decision.action.value for decision in decisions} == {"retry"}
        assert [d.retry_delay.total_seconds() for d in decisions] == [5, 10, 20, 600, 600]


def test_every_handoff_crosses_xcom_unchanged(airflow_home: Path) -> None:
    """Also a list of dataclasses inside a dataclass, of which Airflow forgets the type."""
    from airflow.sdk.serde import deserialize, serialize

    table = TableBatch(table="weather", raw_uri="s3://lake/a", raw_sha256="a", raw_rows=3, quarantined_rows=1)
    batch = Batch(
        use_case="u", partition_start=NEW_YEAR, partition_end=NEW_YEAR + timedelta(days=7), tables=[table, table]
    )
    snapshot = Snapshot(
        use_case="u", version="v", git_revision="g", start=NEW_YEAR, end=batch.partition_end, partitions=1, rows=9
    )
    refitted = RefittedWinner(
        use_case="u", judged_version="1", model_version=None, reasons=["worse"], measured={"gain": -0.1, "apart": None}
    )
    for handoff in (batch, [batch], {"snapshot": snapshot, "as_of": NEW_YEAR}, refitted):
        crossed = deserialize(serialize(handoff))
        assert crossed == handoff
    moment = deserialize(serialize(batch)).partition_start
    assert Interval(moment, moment + timedelta(days=7)).start == NEW_YEAR
    assert dataclasses.asdict(deserialize(serialize(batch))) == dataclasses.asdict(batch)


def test_a_run_is_about_its_partition_key_or_its_parameter(airflow_home: Path, use_case: UseCase) -> None:
    from orchestration.parameters import read_moment, read_partition

    week = use_case.grid.partition("2013-01-07")
    assert read_partition(use_case, "2013-01-07", {"partition": None}) == week
    assert read_partition(use_case, None, {"partition": "2013-01-07"}) == week
    assert read_moment(use_case, "2013-01-07T00:00:00+00:00", None) == week.start
    assert read_moment(use_case, None, week.end) == week.end
    with pytest.raises(ValueError, match="name a partition"):
        read_partition(use_case, None, {"partition": None})
    with pytest.raises(ValueError, match="2013-01-07"):
        read_moment(use_case, "2013-01-08", None)
    with pytest.raises(ValueError, match="has no features yet"):
        read_moment(use_case, None, None)


def test_who_approved_is_who_answered(airflow_home: Path) -> None:
    from dags.train import answer

    said = {"chosen_options": ["Approve"], "responded_by_user": {"id": "7", "name": "Ada"}}
    assert answer(said, "run") == (True, "Ada")
    assert answer({**said, "chosen_options": ["Reject"]}, "run") == (False, "Ada")
    assert answer({"chosen_options": ["Reject"], "responded_by_user": None}, "run") == (
        False,
        "nobody (approval expired)",
    )
    assert answer(None, "run") == (None, "gate (run)")


_RESULTS: list[dict[str, str] | None] = []


def poll_results(use_case: str) -> dict[str, str] | None:
    return _RESULTS.pop(0)


def test_the_trigger_polls_until_there_is_a_result(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration import sensors
    from orchestration.sensors import PollTrigger

    async def first(trigger: PollTrigger) -> Any:
        return await anext(trigger.run())

    monkeypatch.setattr(sensors, "POLLS", {"test": poll_results})
    _RESULTS[:] = [None, None, {"decision_id": "d"}]
    trigger = PollTrigger(poll="test", use_case="u", every_seconds=0.01)
    path, arguments = trigger.serialize()
    assert path == "orchestration.sensors.PollTrigger"
    assert asyncio.run(first(PollTrigger(**arguments))).payload == {"decision_id": "d"}
    assert _RESULTS == []


def test_a_wait_that_an_earlier_version_left_begins_anew_within_seconds_and_alerts_nobody(
    airflow_home: Path, bag: Any
) -> None:
    """The triggerer cannot import the class that its row names. That fails the task once, and its retry defers anew."""
    from airflow.jobs.triggerer_job_runner import TriggerRunner
    from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR
    from airflow.sdk.exceptions import TaskDeferralError, TaskDeferred

    from orchestration.sensors import PollTrigger

    runner = TriggerRunner()
    runner.to_create.append(SimpleNamespace(id=7, classpath="pipeline.orchestration.Until"))
    asyncio.run(runner.create_triggers())
    [(trigger_id, error)] = runner.failed_triggers
    assert trigger_id == 7
    assert isinstance(error, ImportError)
    waiting = bag.dags["flights.retrain"].get_task("await_decision")
    with pytest.raises(TaskDeferralError) as failed:
        waiting.resume_execution(TRIGGER_FAIL_REPR, {"error": "Trigger failure"}, {})
    decision = waiting.retry_policy.evaluate(failed.value, 1, waiting.retries)
    assert (decision.action.value, decision.retry_delay.total_seconds()) == ("retry", 5)  # callbacks: on failure only
    assert waiting.on_retry_callback in (None, [])
    with pytest.raises(TaskDeferred) as deferred:
        waiting.execute({})
    assert isinstance(deferred.value.trigger, PollTrigger)
    # One whose trigger had fired already names the method to go on with.
    assert waiting.resume_execution("answered", {"event": {"decision_id": "d"}}, {}) == {"decision_id": "d"}
