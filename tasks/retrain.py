"""The life of a decision to retrain: pending -> running -> done | failed, in the database and so across restarts.

At most one is in flight per use case (a unique index holds it). The run that answers a decision has an id made from it,
so whoever starts it twice starts it once. A claim that nobody carried on is handed out again by the next `claim`; one
whose run died for good is closed by `abandon`.
"""

from datetime import timedelta
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
where decision_id = %s and state in ('pending', 'running')
"""
_ABANDONED = """
select decision_id from retrains where use_case = %s and state = 'running' and changed_at < now() - %s
"""


def run_id(decision_id: str) -> str:
    """The id of the training run that answers a decision."""
    return f"retrain__{decision_id}"


def claim(use_case: UseCase, outside: Outside) -> dict[str, Any] | None:
    """The decision to be answered now, marked as running; None if there is none.

    A decision already running is handed out again: its claimer may have died before it started the run, and if it did
    not, starting the same run id once more changes nothing.
    """
    found = outside.warehouse.fetch(_CLAIM, (use_case.name,))
    return found[0] if found else None


def in_flight(use_case: UseCase, outside: Outside) -> dict[str, Any] | None:
    """The retrain of a use case that is pending or running."""
    found = outside.warehouse.fetch(
        "select * from retrains where use_case = %s and state in ('pending', 'running')", (use_case.name,)
    )
    return found[0] if found else None


def finish(decision_id: str, outcome: str, outside: Outside) -> bool:
    """Close a decision with its release's outcome, or `failed`; False, and no change, where it is closed already."""
    state = "failed" if outcome == "failed" else "done"
    with outside.warehouse.transaction() as at:
        at.execute(_FINISH, (state, outcome, decision_id))
        changed = at.rowcount > 0
        if not changed:
            at.execute("select 1 from retrains where decision_id = %s", (decision_id,))
            if at.fetchone() is None:
                raise ValueError(f"there is no decision to retrain with the id {decision_id!r}")
    return changed


def abandon(use_case: UseCase, outside: Outside, *, older_than: timedelta) -> str | None:
    """Close as failed a retrain running for longer than any training takes, and tell people; its decision id.

    The one place where the clock counts: whether a run is alive is no matter of data time.
    """
    found = outside.warehouse.fetch(_ABANDONED, (use_case.name, older_than))
    for row in found:
        if finish(row["decision_id"], "failed", outside):
            outside.alerts.raise_alert(
                "warning",
                use_case.name,
                f"{use_case.name}.retrain.{row['decision_id']}",
                f"{use_case.name}: the retrain of {row['decision_id']} was given up",
                f"{run_id(row['decision_id'])} has been running for more than {older_than}; its training may be dead.",
            )
            return str(row["decision_id"])
    return None
