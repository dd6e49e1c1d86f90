"""The life of a decision to retrain: pending -> running -> done | failed, in the database and so across restarts.

At most one is in flight per use case (a unique index holds it). The run that answers a decision has an id made from it,
so whoever starts it twice starts it once. A claim whose claimer died is handed out again by the next `claim_retrain`;
whoever takes it waits for the run of that id and calls `finish_retrain`, also where that run died.
"""

from typing import Any

from adapters.connect import Outside
from pipeline.handoffs import retrain_run_id
from pipeline.spec import UseCase
from tasks.monitor.observed import RetrainState

TRAINING_FAILED = "failed"  # outcome of a retrain whose training came to no release

_IN_FLIGHT = "select decision_id from retrains where use_case = %s and state in ('pending', 'running')"
_CLAIM = """
update retrains r set state = 'running', run_id = %s || r.decision_id, changed_at = case
    when r.state = 'running' then r.changed_at else now() end
from decisions d where d.decision_id = r.decision_id and r.use_case = %s and r.state in ('pending', 'running')
returning d.decision_id, d.use_case, d.as_of, d.model_version, d.reasons, d.evidence, r.run_id, r.state, r.challenger
"""
_FINISH = """
update retrains set state = %s, outcome = %s, changed_at = now()
where decision_id = %s and (state in ('pending', 'running') or (state = 'failed' and %s <> 'failed'))
"""


def find_retrain(use_case_name: str, outside: Outside) -> dict[str, str] | None:
    """The id of the decision whose retrain is in flight, pending or running; None if there is none."""
    return next(iter(outside.warehouse.query(_IN_FLIGHT, (use_case_name,))), None)


def claim_retrain(use_case: UseCase, outside: Outside) -> dict[str, Any] | None:
    """The decision to be answered now, marked as running; None if there is none.

    A decision already running is handed out again: its claimer may have died before it started the run, and if it did
    not, starting the same run id once more changes nothing.
    """
    return next(iter(outside.warehouse.query(_CLAIM, (retrain_run_id(""), use_case.name))), None)


def finish_retrain(decision_id: str, outcome: str, outside: Outside) -> bool:
    """Close a decision with the outcome of its release, or TRAINING_FAILED; False, and no change, where it was closed.

    A failed one is closed again by a training that was resumed and came to an end.
    """
    state = RetrainState.FAILED if outcome == TRAINING_FAILED else RetrainState.DONE
    with outside.warehouse.transaction() as at:
        at.execute(_FINISH, (state, outcome, decision_id, state))
        if at.rowcount > 0:
            return True
        at.execute("select 1 from retrains where decision_id = %s", (decision_id,))
        if at.fetchone() is None:
            raise ValueError(f"there is no decision to retrain with the id {decision_id!r}")
    return False
