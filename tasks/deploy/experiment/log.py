"""The tables of experiments: what was declared, what each look saw, how it ended; and the events it is judged by."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from psycopg2.extensions import cursor

from pipeline.online import Costs, Experiment
from pipeline.spec import UseCase
from tasks.common.ledger import current, record, release_of
from tasks.deploy.experiment.sequential import Estimate, Events, Health, Verdict, cost_of, units

if TYPE_CHECKING:
    from adapters.alerts import Tier
    from adapters.connect import Outside

_TRIAL = """
select experiment_id, use_case, control, treatment, settings, costs, started_at, outcome, reason, settled_at
from experiments where {}
"""
# An event asked twice counts by its first answer, with the share that was in force then.
_EVENTS = """
with asked as (
    select distinct on (entity_key, event_time)
        entity_key, event_time, request_id, entity_id, model_version, decision, answered_at
    from online_answers
    where use_case = %(use_case)s and answered_at >= %(started_at)s and slot in ('stable', 'candidate')
        and model_version in (%(control)s, %(treatment)s)
    order by entity_key, event_time, answered_at, request_id, position)
select asked.entity_key, request_id, entity_id, model_version = %(treatment)s as treated, decision, label, share
from asked join outcomes o on o.use_case = %(use_case)s
    and (o.entity_key, o.event_time) = (asked.entity_key, asked.event_time)
join lateral (
    select share from experiment_looks where experiment_id = %(experiment_id)s and routed_at <= answered_at
    order by look desc limit 1) in_force on true
where decision is not null
"""
_ANSWERS = """
select count(*) as answers, count(*) filter (where degraded) as degraded from online_answers
where use_case = %s and answered_at >= %s and slot = 'candidate' and model_version = %s
"""
_NEXT = {
    "treatment-better": "It saves money: promote it by the gate ({0}.train), which judges it on the batch's rows, too.",
    "control-better": "Nothing to do: the stable version goes on answering everyone.",
    "undecided": "Nothing to do; if less would matter, declare more max_events or a smaller min_effect.",
    "stopped-by-guardrail": "Find out why before this version answers anyone again.",
    "stopped": "Nothing to do: nothing was concluded.",
    "interrupted": "Nothing was concluded; start it again once the route is what it should be.",
}
_TIERS: dict[str, "Tier"] = {
    "stopped-by-guardrail": "critical",
    "interrupted": "warning",
    "treatment-better": "warning",
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One experiment. `outcome` is None while it runs; `settled_at` while it has the candidate's place."""

    experiment_id: str
    use_case: str
    control: str
    treatment: str
    settings: Experiment
    costs: Costs
    started_at: datetime
    outcome: str | None
    reason: str | None
    settled_at: datetime | None

    @property
    def greatest_cost(self) -> float:
        """What one decision can cost at most."""
        return max(self.costs.missed, self.costs.needless)

    def sentence(self) -> str:
        """How it stands, in words."""
        said = f"{self.use_case}: version {self.treatment} against {self.control}"
        if self.outcome is None:
            return f"{said}: goes on"
        return f"{said} ended as {self.outcome}: {self.reason}. {_NEXT[self.outcome].format(self.use_case)}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a look sees: the health of the treatment, the sums of both versions, and the estimate from them."""

    requests_until: datetime
    health: Health
    found: Estimate | None

    def facts(self) -> dict[str, Any]:
        """What makes two looks the same look."""
        found = self.found
        return {
            **asdict(self.health),
            "control_events": found.events[0] if found else 0,
            "treatment_events": found.events[1] if found else 0,
            "control_units": found.units[0] if found else 0,
            "treatment_units": found.units[1] if found else 0,
            "control_cost": found.costs[0] if found else 0.0,
            "treatment_cost": found.costs[1] if found else 0.0,
        }


def of_id(experiment_id: str, outside: "Outside") -> Trial | None:
    """An experiment by its name."""
    return _one(_TRIAL.format("experiment_id = %s"), experiment_id, outside)


def unsettled(use_case: UseCase, outside: "Outside") -> Trial | None:
    """The one that runs, or has ended and not given the candidate's place back yet."""
    return _one(_TRIAL.format("use_case = %s and settled_at is null"), use_case.name, outside)


def last_look(trial: Trial, outside: "Outside") -> dict[str, Any]:
    """The latest look's row."""
    [row] = outside.warehouse.query(
        "select * from experiment_looks where experiment_id = %s order by look desc limit 1", (trial.experiment_id,)
    )
    return row


def events(trial: Trial, outside: "Outside") -> Events:
    """The events with a known outcome, from one moment of the database."""
    with outside.warehouse.transaction(snapshot=True) as at:
        rows = outside.warehouse.copy_out(at.mogrify(_EVENTS, vars(trial)).decode(), at=at)
    label, decision = (rows.column(name).to_numpy() for name in ("label", "decision"))
    return Events(
        treated=rows.column("treated").to_numpy().astype(bool),
        cost=cost_of(label, decision.astype(bool), missed=trial.costs.missed, needless=trial.costs.needless),
        share=rows.column("share").to_numpy().astype(np.float64),
        unit=units(*(_numbered(rows, name) for name in ("entity_key", "request_id", "entity_id"))),
    )


def answers(trial: Trial, outside: "Outside") -> tuple[int, int]:
    """How often the treatment answered, outcome or not, and how often degraded."""
    [row] = outside.warehouse.query(_ANSWERS, (trial.use_case, trial.started_at, trial.treatment))
    return row["answers"], row["degraded"]


def write_start(at: cursor, trial: Trial, outside: "Outside", use_case: UseCase, *, actor: str) -> None:
    """The experiment's row, look 0 and the ledger's entry, in the caller's transaction."""
    at.execute(
        "insert into experiments (experiment_id, use_case, control, treatment, settings, costs, started_by, started_at)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s)",
        (trial.experiment_id, trial.use_case, trial.control, trial.treatment, trial.settings.model_dump_json(),
         trial.costs.model_dump_json(), actor, trial.started_at),
    )  # fmt: skip
    nothing = Seen(
        requests_until=trial.started_at, health=Health(requests=0, errors=0, answers=0, degraded=0), found=None
    )
    begun = Verdict(decision="continue", reason="started", low=None, high=None)
    write_look(at, trial, number=0, seen=nothing, verdict=begun, share=trial.settings.share, routed=False)
    _enter(at, trial, use_case, outside, actor=actor)


def write_look(
    at: cursor, trial: Trial, *, number: int, seen: Seen, verdict: Verdict, share: float, routed: bool
) -> None:
    """One look's row; `routed` where the gateway needs no change for it."""
    values = {
        "experiment_id": trial.experiment_id,
        "look": number,
        "requests_until": seen.requests_until,
        **seen.facts(),
        "difference": seen.found.difference if seen.found else None,
        "error": seen.found.error if seen.found else None,
        **asdict(verdict),
        "share": share,
        "routed_at": datetime.now(UTC) if routed else None,
    }
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    at.execute(f"insert into experiment_looks ({names}) values ({places})", tuple(values.values()))  # noqa: S608  # ours


def write_end(
    at: cursor, trial: Trial, outside: "Outside", use_case: UseCase, *, outcome: str, reason: str, actor: str
) -> None:
    """The outcome, its entry in the ledger and its alert, in the caller's transaction."""
    at.execute(
        "update experiments set outcome = %s, reason = %s, ended_by = %s, ended_at = clock_timestamp()"
        " where experiment_id = %s and outcome is null",
        (outcome, reason, actor, trial.experiment_id),
    )
    assert at.rowcount == 1, f"{trial.experiment_id} has ended already"
    ended = Trial(**(vars(trial) | {"outcome": outcome, "reason": reason}))
    _enter(at, ended, use_case, outside, actor=actor)
    outside.alerts.record(
        at,
        tier=_TIERS.get(outcome, "info"),
        use_case=trial.use_case,
        fingerprint=f"{trial.use_case}.experiment.{trial.experiment_id}",
        title=f"{trial.use_case}: the experiment of version {trial.treatment} against {trial.control} ended: {outcome}",
        body=f"{ended.sentence()}\nexperiment {trial.experiment_id}",
    )


def _enter(at: cursor, trial: Trial, use_case: UseCase, outside: "Outside", *, actor: str) -> None:
    """The ledger's entry about a start, or an end once there is an outcome, with the look it rests on."""
    at.execute(
        "select to_jsonb(l) from experiment_looks l where experiment_id = %s order by look desc limit 1",
        (trial.experiment_id,),
    )
    [(look,)] = at.fetchall()
    champion = current(use_case, outside)
    as_of = champion.as_of if champion else trial.started_at  # nothing changes about the champion
    declared = {"settings": trial.settings.model_dump(), "costs": trial.costs.model_dump()}
    record(
        at,
        "experiment-end" if trial.outcome else "experiment-start",
        release_of(use_case, trial.outcome or "experiment", champion, as_of, actor),
        model_version=trial.treatment,
        before=trial.control,
        changed=False,
        reason=trial.reason or f"compared with version {trial.control}",
        evidence={"experiment": trial.experiment_id, **declared, "look": look},
        key=trial.experiment_id,
    )


def _numbered(rows: pa.Table, name: str) -> Any:
    """The distinct values of a column, numbered from 0; -1 where there is none."""
    indices = rows.column(name).combine_chunks().dictionary_encode().indices
    return indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp)


def _one(query: str, key: str, outside: "Outside") -> Trial | None:
    rows = outside.warehouse.query(query, (key,))
    if not rows:
        return None
    blocks = {"settings": Experiment(**_plain(rows[0]["settings"])), "costs": Costs(**_plain(rows[0]["costs"]))}
    return Trial(**(rows[0] | blocks))


def _plain(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(value) if isinstance(value, str) else value
    return found
