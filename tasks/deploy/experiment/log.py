"""The tables of experiments: what was declared, what each look saw, how it ended."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import cursor

from adapters.warehouse import format_insert
from pipeline.online import Costs, ExperimentSettings
from pipeline.spec import UseCase
from tasks.common.ledger import current, record, release_of
from tasks.deploy.experiment.sample_ratio import KeyCount
from tasks.deploy.experiment.sequential import Conclusion, CostEstimate, ExperimentOutcome, TreatmentHealth

if TYPE_CHECKING:
    from adapters.alerts import Tier
    from adapters.connect import Outside

_EXPERIMENT = """
select experiment_id, use_case, control, treatment, settings, costs, started_at, outcome, reason, settled_at
from experiments where {}
"""
_NEXT = {
    ExperimentOutcome.TREATMENT_BETTER: "It saves money: promote it by the gate ({0}.train), which judges it on the"
    " batch's rows, too.",
    ExperimentOutcome.CONTROL_BETTER: "Nothing to do: the stable version goes on answering everyone.",
    ExperimentOutcome.UNDECIDED: "Nothing to do; if less would matter, declare more max_events or a smaller"
    " min_effect.",
    ExperimentOutcome.STOPPED_BY_GUARDRAIL: "Find out why before this version answers anyone again.",
    ExperimentOutcome.SAMPLE_RATIO_MISMATCH: "Nothing was concluded. Look for requests that one version failed and that"
    " were asked again as others, a filter that keeps one version's rows, and rows lost on their way (online_losses):"
    " docs/online.md.",
    ExperimentOutcome.STOPPED: "Nothing to do: nothing was concluded.",
    ExperimentOutcome.INTERRUPTED: "Nothing was concluded; start it again once the route is what it should be.",
}
_TIERS: dict[ExperimentOutcome, "Tier"] = {
    ExperimentOutcome.STOPPED_BY_GUARDRAIL: "critical",
    ExperimentOutcome.SAMPLE_RATIO_MISMATCH: "critical",
    ExperimentOutcome.INTERRUPTED: "warning",
    ExperimentOutcome.TREATMENT_BETTER: "warning",
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment. `outcome` is None while it runs; `settled_at` while it has the candidate's place."""

    experiment_id: str
    use_case: str
    control: str
    treatment: str
    settings: ExperimentSettings
    costs: Costs
    started_at: datetime
    outcome: ExperimentOutcome | None
    reason: str | None
    settled_at: datetime | None

    @property
    def greatest_cost(self) -> float:
        """What one decision can cost at most."""
        return max(self.costs.missed, self.costs.needless)

    def describe(self) -> str:
        """How it stands, in words."""
        subject = f"{self.use_case}: version {self.treatment} against {self.control}"
        if self.outcome is None:
            return f"{subject}: goes on"
        return f"{subject} ended as {self.outcome}: {self.reason}. {_NEXT[self.outcome].format(self.use_case)}"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a look sees: the health of the treatment, the keys that were answered and those of the compared events, the
    sums of both versions, and the estimate from them."""

    requests_until: datetime
    health: TreatmentHealth
    keys: tuple[Sequence[KeyCount], Sequence[KeyCount]]
    estimate: CostEstimate | None

    def facts(self) -> dict[str, Any]:
        """What makes two looks the same look."""
        estimate, answered = self.estimate, self.keys[0]
        return {
            **asdict(self.health),
            "control_keys": sum(count.keys - count.treated for count in answered),
            "treatment_keys": sum(count.treated for count in answered),
            "control_events": estimate.events[0] if estimate else 0,
            "treatment_events": estimate.events[1] if estimate else 0,
            "control_units": estimate.units[0] if estimate else 0,
            "treatment_units": estimate.units[1] if estimate else 0,
            "control_cost": estimate.costs[0] if estimate else 0.0,
            "treatment_cost": estimate.costs[1] if estimate else 0.0,
        }


def find_experiment(experiment_id: str, outside: "Outside") -> Experiment | None:
    """An experiment by its name."""
    return _one(_EXPERIMENT.format("experiment_id = %s"), experiment_id, outside)


def find_unsettled_experiment(use_case: UseCase, outside: "Outside") -> Experiment | None:
    """The one that runs, or has ended and not given the candidate's place back yet."""
    return _one(_EXPERIMENT.format("use_case = %s and settled_at is null"), use_case.name, outside)


def read_last_look(experiment: Experiment, outside: "Outside") -> dict[str, Any]:
    """The latest look's row."""
    [row] = outside.warehouse.query(
        "select * from experiment_looks where experiment_id = %s order by look desc limit 1",
        (experiment.experiment_id,),
    )
    return row


def write_start(at: cursor, experiment: Experiment, outside: "Outside", use_case: UseCase, *, actor: str) -> None:
    """The experiment's row, look 0 and the ledger's entry, in the caller's transaction."""
    at.execute(
        "insert into experiments (experiment_id, use_case, control, treatment, settings, costs, started_by, started_at)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s)",
        (experiment.experiment_id, experiment.use_case, experiment.control, experiment.treatment,
         experiment.settings.model_dump_json(), experiment.costs.model_dump_json(), actor, experiment.started_at),
    )  # fmt: skip
    write_look(
        at,
        experiment,
        number=0,
        observation=Observation(
            requests_until=experiment.started_at,
            health=TreatmentHealth(requests=0, errors=0, answers=0, degraded=0),
            keys=((), ()),
            estimate=None,
        ),
        conclusion=Conclusion(outcome=None, reason="started", low=None, high=None),
        share=experiment.settings.share,
        routed=False,
    )
    _write_ledger(at, experiment, use_case, outside, actor=actor)


def write_look(
    at: cursor,
    experiment: Experiment,
    *,
    number: int,
    observation: Observation,
    conclusion: Conclusion,
    share: float,
    routed: bool,
) -> None:
    """One look's row; `routed` where the gateway needs no change for it."""
    values = {
        "experiment_id": experiment.experiment_id,
        "look": number,
        "requests_until": observation.requests_until,
        **observation.facts(),
        "difference": observation.estimate.difference if observation.estimate else None,
        "error": observation.estimate.error if observation.estimate else None,
        "low": conclusion.low,
        "high": conclusion.high,
        "decision": conclusion.outcome or "continue",
        "reason": conclusion.reason,
        "share": share,
        "routed_at": datetime.now(UTC) if routed else None,
    }
    at.execute(*format_insert("experiment_looks", values))


def write_end(
    at: cursor,
    experiment: Experiment,
    outside: "Outside",
    use_case: UseCase,
    *,
    outcome: ExperimentOutcome,
    reason: str,
    actor: str,
) -> None:
    """The outcome, its entry in the ledger and its alert, in the caller's transaction."""
    at.execute(
        "update experiments set outcome = %s, reason = %s, ended_by = %s, ended_at = clock_timestamp()"
        " where experiment_id = %s and outcome is null",
        (outcome, reason, actor, experiment.experiment_id),
    )
    assert at.rowcount == 1, f"{experiment.experiment_id} has ended already"
    ended = replace(experiment, outcome=outcome, reason=reason)
    _write_ledger(at, ended, use_case, outside, actor=actor)
    outside.alerts.record(
        at,
        tier=_TIERS.get(outcome, "info"),
        use_case=experiment.use_case,
        fingerprint=f"{experiment.use_case}.experiment.{experiment.experiment_id}",
        title=f"{experiment.use_case}: the experiment of version {experiment.treatment} against {experiment.control}"
        f" ended: {outcome}",
        body=f"{ended.describe()}\nexperiment {experiment.experiment_id}",
    )


def _write_ledger(at: cursor, experiment: Experiment, use_case: UseCase, outside: "Outside", *, actor: str) -> None:
    """The ledger's entry about a start, or an end once there is an outcome, with the look it rests on."""
    at.execute(
        "select to_jsonb(l) from experiment_looks l where experiment_id = %s order by look desc limit 1",
        (experiment.experiment_id,),
    )
    [(look,)] = at.fetchall()
    champion = current(use_case, outside)
    as_of = champion.as_of if champion else experiment.started_at  # nothing changes about the champion
    record(
        at,
        "experiment-end" if experiment.outcome else "experiment-start",
        release_of(use_case, experiment.outcome or "experiment", champion, as_of, actor),
        model_version=experiment.treatment,
        before=experiment.control,
        changed=False,
        reason=experiment.reason or f"compared with version {experiment.control}",
        evidence={
            "experiment": experiment.experiment_id,
            "settings": experiment.settings.model_dump(),
            "costs": experiment.costs.model_dump(),
            "look": look,
        },
        key=experiment.experiment_id,
    )


def _one(query: str, key: str, outside: "Outside") -> Experiment | None:
    rows = outside.warehouse.query(query, (key,))
    if not rows:
        return None
    row = rows[0]
    read = {
        "settings": ExperimentSettings(**row["settings"]),
        "costs": Costs(**row["costs"]),
        "outcome": ExperimentOutcome(row["outcome"]) if row["outcome"] else None,
    }
    return Experiment(**(row | read))
