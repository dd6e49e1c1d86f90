"""Retrains: at most one in flight, the budget kept through a storm and a restart, orphans taken up again."""

from itertools import pairwise
from pathlib import Path

import psycopg2.errors
import pytest

from adapters.connect import Outside
from pipeline.handoffs import retrain_run_id
from pipeline.spec import UseCase
from tasks.monitor import monitor, retrain
from tests.tasks.watched import TRAINING_WEEKS, World, monitored

STORM_WEEKS = 60
SMALL = {"limits": {"auc": {"min": 0.5}}, "cooldown_days": 14, "monthly_retrains": 2, "breaker_days": 56}


@pytest.fixture
def world(use_case: UseCase, outside: Outside, tmp_path: Path) -> World:
    return World(use_case=monitored(use_case, **SMALL), outside=outside, folder=tmp_path / "data")


def storm(world: World, outcome: str | None, weeks: int = STORM_WEEKS) -> list[int]:
    """Drifted weeks, one at a time, restarted every ten; the weeks that were answered by a retrain."""
    retrained = []
    for number in range(TRAINING_WEEKS, TRAINING_WEEKS + weeks):
        if number % 10 == 0:
            world.connect(Outside(world.outside.settings))  # all that is known is in the database
        world.score(number, shift=1.0)
        [found] = monitor.monitor_partitions(world.use_case, world.outside)
        claimed = retrain.claim_retrain(world.use_case, world.outside)
        if claimed and found.decision == "retrain":
            retrained.append(number)
        if claimed and outcome:
            retrain.finish_retrain(claimed["decision_id"], outcome, world.outside)
    return retrained


def test_a_storm_of_60_drifted_partitions_retrains_within_budget_and_cooldown(world: World) -> None:
    """The champion stays as drifted as it was: each retrained model is promoted and does not help."""
    retrained = storm(world, "promoted")
    assert 20 <= len(retrained) <= STORM_WEEKS // 2
    assert min(b - a for a, b in pairwise(retrained)) >= 2  # cooldown, 14 days
    for start in range(TRAINING_WEEKS, TRAINING_WEEKS + STORM_WEEKS):
        assert len([week for week in retrained if 7 * (week - start) in range(30)]) <= 2  # budget, 30 days


def test_refused_twice_the_breaker_opens(world: World) -> None:
    retrained = storm(world, "refused", weeks=16)
    assert retrained[2] - retrained[1] >= 8  # breaker, 56 days


def test_not_sure_twice_it_does_not_and_the_budget_holds(world: World) -> None:
    retrained = storm(world, "held", weeks=16)
    assert max(b - a for a, b in pairwise(retrained)) < 8
    for start in range(TRAINING_WEEKS, TRAINING_WEEKS + 16):
        assert len([week for week in retrained if 7 * (week - start) in range(30)]) <= 2


def test_while_a_retrain_is_never_finished_there_is_no_second(world: World) -> None:
    assert len(storm(world, None, weeks=12)) == 1
    assert len(world.rows("retrains")) == 1


def test_without_the_guards_the_same_storm_would_retrain_every_week(world: World) -> None:
    """The twin: it is the guards that hold the storm, not calm data."""
    world.use_case = monitored(
        world.use_case, limits=SMALL["limits"], cooldown_days=0, monthly_retrains=10_000, breaker_refusals=10_000
    )
    assert len(storm(world, "promoted", weeks=12)) == 11


def test_a_backlog_of_60_partitions_at_once_gives_one_retrain(world: World) -> None:
    for number in range(TRAINING_WEEKS, TRAINING_WEEKS + STORM_WEEKS):
        world.score(number, shift=1.0)
    found = [drift.decision for drift in monitor.monitor_partitions(world.use_case, world.outside)]
    assert len(found) == STORM_WEEKS
    assert found.count("retrain") == 1
    assert len(world.rows("retrains")) == 1


def pending(world: World) -> str:
    for number in (10, 11):
        world.score(number, shift=1.0)
    return monitor.monitor_partitions(world.use_case, world.outside)[-1].decision_id


def test_a_claim_takes_the_pending_decision_under_a_deterministic_run_id(world: World) -> None:
    assert retrain.claim_retrain(world.use_case, world.outside) is None
    decision_id = pending(world)
    claimed = retrain.claim_retrain(world.use_case, world.outside)
    assert claimed is not None
    assert (claimed["decision_id"], claimed["run_id"]) == (decision_id, f"retrain__{decision_id}")
    assert claimed["run_id"] == retrain_run_id(decision_id)
    assert world.rows("retrains")[0]["state"] == "running"


def test_an_orphaned_claim_is_handed_out_again_under_the_same_run_id_after_a_restart(world: World) -> None:
    pending(world)
    first = retrain.claim_retrain(world.use_case, world.outside)
    again = retrain.claim_retrain(world.use_case, Outside(world.outside.settings))
    assert first == again
    assert len(world.rows("retrains")) == 1


@pytest.mark.parametrize(("outcome", "state"), [("promoted", "done"), ("held", "done"), ("failed", "failed")])
def test_finishing_closes_once(world: World, outcome: str, state: str) -> None:
    decision_id = pending(world)
    retrain.claim_retrain(world.use_case, world.outside)
    assert retrain.finish_retrain(decision_id, outcome, world.outside)
    assert not retrain.finish_retrain(decision_id, "failed", world.outside)
    [row] = world.rows("retrains")
    assert (row["state"], row["outcome"]) == (state, outcome)
    assert retrain.claim_retrain(world.use_case, world.outside) is None
    assert retrain.find_retrain(world.use_case.name, world.outside) is None


def test_a_failed_retrain_whose_training_was_resumed_is_closed_by_its_end(world: World) -> None:
    decision_id = pending(world)
    retrain.claim_retrain(world.use_case, world.outside)
    assert retrain.finish_retrain(decision_id, "failed", world.outside)
    assert retrain.finish_retrain(decision_id, "promoted", world.outside)
    assert not retrain.finish_retrain(decision_id, "held", world.outside)
    [row] = world.rows("retrains")
    assert (row["state"], row["outcome"]) == ("done", "promoted")


def test_finishing_what_was_never_decided_is_an_error(world: World) -> None:
    with pytest.raises(ValueError, match="no decision"):
        retrain.finish_retrain("flights-20990101T0000", "promoted", world.outside)


def test_the_database_itself_refuses_a_second_retrain_in_flight(world: World) -> None:
    pending(world)
    world.score(12)
    monitor.monitor_partitions(world.use_case, world.outside)
    second = (
        "insert into retrains (decision_id, use_case, state) values ('flights-20130401T0000', 'flights', 'pending')"
    )
    with pytest.raises(psycopg2.errors.UniqueViolation):
        world.outside.warehouse.execute(second)
