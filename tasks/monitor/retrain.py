"""The life of a decision to retrain: pending -> running -> done | failed, in the database and so across restarts.

At most one is in flight per use case (a unique index holds it). The run that answers a decision has an id made from it,
so whoever starts it twice starts it once. A claim whose claimer died is an orphan: the next `claim` hands it out again,
and whoever takes it waits for the run of that id and calls `finish`, also where that run died (`failed`).
"""

from typing import Any

from adapters.connect import Outside
from pipeline.spec import UseCase

_CLAIM = """
update retrains r set state = 'running', run_id = 'retrain__' || r.decision_id, changed_at = case
    when r.state = 'running' then r.changed_at else now() end
from decisions d where d.decision_id = r.decision_id and r.use_case = %s and r.state in ('pending', 'running')
returning d.decision_id, d.use_case, d.as_of, d.model_version, d.reasons, d.evidence, r.run_id, r.state
"""
_FINISH = """
update retrains set state = %s, outcome = %s, changed_at = now()
where decision_id = %s and (state in ('pending', 'running') or (state = 'failed' and %s <> 'failed'))
"""


def run_id(decision_id: str) -> str:
    """The id of the training run that answers a decision."""
    return f"retrain__{decision_id}"


def claim(use_case: UseCase, outside: Outside) -> dict[str, Any] | None:
    """The decision to be answered now, marked as running; None if there is none.

    A decision already running is handed out again: its claimer may have died before it started the run, and if it did
    not, starting the same run id once more changes nothing.
    """
    found = outside.warehouse.query(_CLAIM, (use_case.name,))
    return found[0] if found else None


def in_flight(use_case: UseCase, outside: Outside) -> dict[str, Any] | None:
    """The retrain of a use case that is pending or running."""
    found = outside.warehouse.query(
        "select * from retrains where use_case = %s and state in ('pending', 'running')", (use_case.name,)
    )
    return found[0] if found else None


def finish(decision_id: str, outcome: str, outside: Outside) -> bool:
    """Close a decision with its release's outcome, or `failed`; False, and no change, where it is closed already.

    A failed one is closed again by a training that was resumed and came to an end.
    """
    state = "failed" if outcome == "failed" else "done"
    with outside.warehouse.transaction() as at:
        at.execute(_FINISH, (state, outcome, decision_id, state))
        changed = at.rowcount > 0
        if not changed:
            at.execute("select 1 from retrains where decision_id = %s", (decision_id,))
            if at.fetchone() is None:
                raise ValueError(f"there is no decision to retrain with the id {decision_id!r}")
    return changed
