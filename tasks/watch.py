"""Looks at what answers online since the last look: errors, latency, wrong scores, degraded and lost answers.

What a rollback can mend is rolled back, once a deployment; everything else is an alert, which ends by itself when a
later look finds it well. A kill between two steps of a deployment has left the route, the server and the table in
disagreement: that is mended here, too, unless somebody is at it.
"""

import time
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline.online import Rollout
from pipeline.spec import UseCase
from tasks import canary, deployments
from tasks.deploy import Asked, nothing_to_deploy_to
from tasks.deployments import Deployment
from tasks.ledger import current
from tasks.mending import mend
from tasks.rollout import Step, judge_stable, p99
from tasks.server import STORE_SILENT, Rejected, ask, endpoint, gateway

if TYPE_CHECKING:
    from adapters.alerts import Tier
    from adapters.connect import Outside
    from adapters.gateway import Record

_FIRST_LOOK = timedelta(minutes=5)
_OVERLAP = timedelta(seconds=15)  # an answer may reach the log that much later
_MOST_CHECKED = 500  # answers computed again, a look
_DEGRADED_SHARE = 0.5  # some planes and airports are always unknown; most of them is a feed that stopped
_PROBES = 20
_LAST = "select looked_at, lost from online_watch where use_case = %s order by looked_at desc limit 1"
_ANSWERS = """
select count(*) as answers, count(*) filter (where degraded) as degraded,
    count(*) filter (where exists (select from unnest(reasons) as r where r like %s)) as store_silent
from online_answers where use_case = %s and slot in ('stable', 'candidate') and answered_at >= %s
"""
_LOST = "select coalesce(sum(dropped + lost), 0)::bigint as lost from online_losses where use_case = %s"
_PROBE = """
select request, features from online_answers where use_case = %s and slot = 'stable' order by answered_at desc limit %s
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look, as the table keeps it."""

    use_case: str
    looked_at: datetime
    model_version: str | None
    requests: int
    errors: int
    p99_ms: float | None
    answers: int
    degraded: int
    store_silent: int
    checked: int
    max_difference: float | None
    lost: int


def watch(use_case: UseCase, outside: "Outside") -> str:
    """Look once; one sentence about it."""
    if said := nothing_to_deploy_to(use_case, None, outside):
        return _said(said)
    mended = mend(use_case, outside)
    serving = deployments.serving(use_case, outside)
    if serving is None:
        return _said(f"{use_case.name}: nothing answers yet")
    try:
        look, step, lost_before = _look(use_case, serving, outside)
    except ConnectionError as problem:
        title = "the gateway cannot be asked what it answered"
        _alarm(use_case, outside, "watch.gateway", title=title, body=str(problem), tier="critical")
        return _said(f"{use_case.name}: {problem}")
    findings = [*mended, *_tell(use_case, serving, look, lost_before, outside)]
    if step.answer == "breach":
        findings.append(_react(use_case, serving, step, look.p99_ms, outside))
    elif step.answer == "pass":
        outside.alerts.resolve(f"{use_case.name}.watch.stable")
    _keep(look, findings, outside)
    outside.alerts.flush()
    return _said(f"{use_case.name}: {step.reason}" + "".join(f"; {finding}" for finding in findings))


def _look(use_case: UseCase, serving: Deployment, outside: "Outside") -> tuple[Look, Step, int]:
    assert use_case.endpoint is not None
    assert serving.finished_at is not None
    rollout = use_case.endpoint.rollout
    [clock] = outside.warehouse.fetch("select clock_timestamp() as now")
    last = outside.warehouse.fetch(_LAST, (use_case.name,))
    now, since = clock["now"], last[0]["looked_at"] if last else clock["now"] - _FIRST_LOOK
    earliest = max(serving.finished_at, now - timedelta(minutes=rollout.hold_minutes))
    judged = recent(gateway(outside).records(use_case.name, earliest), serving.version, since, rollout)
    since_full = max(since - _OVERLAP, serving.finished_at)
    checked = canary.latest(use_case, serving.version, since_full, outside, most=_MOST_CHECKED)
    tally = canary.tally(judged, checked, forgiving=True)
    [counted] = outside.warehouse.fetch(_ANSWERS, (f"%{STORE_SILENT}%", use_case.name, since))
    [losses] = outside.warehouse.fetch(_LOST, (use_case.name,))
    look = Look(
        use_case=use_case.name,
        looked_at=now,
        model_version=serving.version,
        requests=tally.requests,
        errors=tally.errors,
        p99_ms=tally.p99_ms,
        checked=checked.answers,
        max_difference=checked.max_difference,
        lost=losses["lost"],
        **counted,
    )
    return look, judge_stable(rollout, tally), last[0]["lost"] if last else 0


def recent(records: "list[Record]", version: str, since: datetime, rollout: Rollout) -> "list[Record]":
    """The stable version's requests since a moment, and earlier ones only as far as it takes to judge."""
    ours = sorted((r for r in records if r.version == version and r.slot == "stable"), key=lambda record: record.at)
    fresh = [record for record in ours if record.at >= since]
    return fresh if len(fresh) >= rollout.canary_requests else ours[-rollout.canary_requests :]


def _tell(use_case: UseCase, serving: Deployment, look: Look, lost_before: int, outside: "Outside") -> list[str]:
    """Alerts about what no rollback mends; those that no longer hold are over."""
    assert use_case.endpoint is not None
    outside.alerts.resolve(f"{use_case.name}.watch.gateway")
    found: dict[str, str | None] = {}
    if look.answers:  # without an answer nothing is known: neither better nor worse
        silent, degraded = look.store_silent / look.answers, look.degraded / look.answers
        limit = use_case.endpoint.rollout.max_error_share
        found["store"] = f"{silent:.0%} of the answers did without features" if silent > limit else None
        found["degraded"] = f"{degraded:.0%} of the answers are degraded" if degraded > _DEGRADED_SHARE else None
    if look.lost > lost_before:
        found["lost"] = f"{look.lost - lost_before} answers are not in the prediction log"
    elif look.answers:
        found["lost"] = None
    found["server"] = _server_trouble(use_case, serving, outside)
    for name, said in found.items():
        if said is None:
            outside.alerts.resolve(f"{use_case.name}.watch.{name}")
        else:
            body = f"since the last look, at {look.looked_at:%Y-%m-%d %H:%M} UTC"
            tier: Tier = "critical" if name == "server" else "warning"
            _alarm(use_case, outside, f"watch.{name}", title=said, body=body, tier=tier)
    return [said for said in found.values() if said]


def _server_trouble(use_case: UseCase, serving: Deployment, outside: "Outside") -> str | None:
    try:
        ready = endpoint(outside).versions(use_case.name).get(serving.version)
    except ConnectionError as problem:
        return str(problem)
    return None if ready else f"version {serving.version} has no worker that is ready"


def _react(use_case: UseCase, serving: Deployment, step: Step, p99_ms: float | None, outside: "Outside") -> str:
    """Roll back where that mends it, else call a person."""
    from tasks.put_back import put_back

    if refusal := _no_use(use_case, serving, p99_ms, outside):
        text = f"{step.reason}; not rolled back: {refusal}"
        title = f"version {serving.version} does not answer well"
        _alarm(use_case, outside, "watch.stable", title=title, body=text, tier="critical")
        return text
    champion = current(use_case, outside)
    assert champion is not None
    assert serving.previous_version is not None
    asked = Asked(
        deployment_id=f"revert-{serving.deployment_id}",
        request_id=f"revert-{serving.deployment_id}",
        version=serving.previous_version,
        revision=champion.revision,
        as_of=champion.as_of,
        actor="watch",
        reason=step.reason,
    )
    sentence = put_back(use_case, asked, outside).sentence()
    title = f"version {serving.version} was taken back: {step.reason}"
    _alarm(use_case, outside, "deploy.reverted", title=title, body=sentence, tier="critical")
    return sentence


def _no_use(use_case: UseCase, serving: Deployment, p99_ms: float | None, outside: "Outside") -> str | None:
    """Why going back would not help; None where it would."""
    if serving.kind == "rollback":
        return "it was put back itself"
    if serving.previous_version in (None, serving.version):
        return "no other version answered before"
    if deployments.of_id(f"revert-{serving.deployment_id}", outside) is not None:
        return "that was tried before"
    if deployments.in_flight(use_case, outside) is not None:
        return "a deployment is under way"
    return _unsound(use_case, str(serving.previous_version), p99_ms, outside)


def _unsound(use_case: UseCase, version: str, p99_ms: float | None, outside: "Outside") -> str | None:
    """What is wrong with a version when it is asked what was asked last; None: going back to it mends something."""
    assert use_case.endpoint is not None
    took = []
    for row in outside.warehouse.fetch(_PROBE, (use_case.name, _PROBES)):
        began = time.perf_counter()
        try:
            ask(use_case, version, [row["request"]], outside, request_id=f"probe-{uuid.uuid4()}", slot="probe")
        except (Rejected, ConnectionError) as problem:
            return f"version {version} does no better: {problem}"
        took.append((time.perf_counter() - began) * 1000)
    budget_ms = use_case.endpoint.rollout.max_p99_ms
    slowest = p99(took[1:]) or 0.0  # the first may have to open connections
    if (p99_ms or 0.0) > budget_ms and slowest > budget_ms:
        return f"version {version} is too slow as well, {slowest:.0f} ms"
    return None


def _keep(look: Look, findings: list[str], outside: "Outside") -> None:
    values: dict[str, Any] = {**asdict(look), "findings": findings}
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    statement = f"insert into online_watch ({names}) values ({places})"  # noqa: S608  # our names
    outside.warehouse.fetch(statement, tuple(values.values()))


def _alarm(use_case: UseCase, outside: "Outside", name: str, *, title: str, body: str, tier: "Tier") -> None:
    runbook = "reverted-rollout" if name == "deploy.reverted" else "degraded-answers"
    text = f"{body}\ndocs/runbooks/{runbook}.md"
    outside.alerts.raise_alert(tier, use_case.name, f"{use_case.name}.{name}", f"{use_case.name}: {title}", text)


def _said(sentence: str) -> str:
    print(sentence)  # a task's log is its standard output
    return sentence
