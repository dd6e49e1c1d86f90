"""Looks at what answers online since the last look: errors, latency, wrong scores, degraded and lost answers.

What a rollback can mend is rolled back, once a deployment; everything else is an alert, which ends by itself when a
later look finds it well. An alert says the same as long as the problem is the same, so that people hear of it once: the
numbers of each look are in `online_watch`. A kill between two steps of a deployment has left the route, the server and
the table in disagreement: that is mended here, too, unless somebody is at it.
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from adapters.errors import Corrupt, Missing
from pipeline.online import Rollout
from pipeline.spec import UseCase
from serving.reasons import DegradedReason
from tasks.deploy import canary, deployments, recompute
from tasks.deploy.deploy import nothing_to_deploy_to
from tasks.deploy.deployments import Deployment
from tasks.deploy.judge import Step, judge_stable
from tasks.deploy.mending import mend
from tasks.deploy.server import endpoint, gateway
from tasks.deploy.taking_back import alarm, react, take_up

if TYPE_CHECKING:
    from adapters.alerts import Tier
    from adapters.connect import Outside
    from adapters.gateway import Record

_FIRST_LOOK = timedelta(minutes=5)
_OVERLAP = timedelta(seconds=15)  # an answer may reach the log that much later
_MOST_CHECKED = 500  # answers computed again, a look
_DEGRADED_SHARE = 0.5  # some planes and airports are always unknown; most of them is a feed that stopped
_LAST = "select looked_at, lost from online_watch where use_case = %s order by looked_at desc limit 1"
_ANSWERS = """
select count(*) as answers, count(*) filter (where degraded) as degraded,
    count(*) filter (where exists (select from unnest(reasons) as r where r like %s)) as store_silent
from online_answers where use_case = %s and slot in ('stable', 'candidate') and answered_at >= %s
"""
_LOST = "select coalesce(sum(dropped + lost), 0)::bigint as lost from online_losses where use_case = %s"


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
    mended = [*take_up(use_case, outside), *_mended(use_case, outside)]
    serving = deployments.serving(use_case, outside)
    if serving is None:
        return _said(f"{use_case.name}: nothing answers yet")
    try:
        look, step, lost_before = _look(use_case, serving, outside)
    except ConnectionError as problem:
        title = "the gateway cannot be asked what it answered"
        alarm(use_case, outside, "watch.gateway", title=title, body="clients may get no answer", tier="critical")
        return _said("; ".join((f"{use_case.name}: {problem}", *mended)))
    findings = [*mended, *_tell(use_case, serving, look, lost_before, outside)]
    if step.answer == "breach":
        findings.append(react(use_case, serving, step, outside))
    elif step.answer == "pass":
        outside.alerts.resolve(f"{use_case.name}.watch.stable")
    _keep(look, findings, outside)
    outside.alerts.flush()
    return _said(f"{use_case.name}: {step.reason}" + "".join(f"; {finding}" for finding in findings))


def _mended(use_case: UseCase, outside: "Outside") -> list[str]:
    mended = mend(use_case, outside)
    if mended.failed:
        title = "the server or the route could not be put right"
        body = "each look tries again; `findings` in online_watch says what is in the way"
        alarm(use_case, outside, "watch.mending", title=title, body=body, tier="critical")
    else:
        outside.alerts.resolve(f"{use_case.name}.watch.mending")
    return [*mended.changed, *mended.failed]


def _look(use_case: UseCase, serving: Deployment, outside: "Outside") -> tuple[Look, Step, int]:
    assert use_case.endpoint is not None
    assert serving.finished_at is not None
    rollout = use_case.endpoint.rollout
    [clock] = outside.warehouse.query("select clock_timestamp() as now")
    last = outside.warehouse.query(_LAST, (use_case.name,))
    now, since = clock["now"], last[0]["looked_at"] if last else clock["now"] - _FIRST_LOOK
    earliest = max(serving.finished_at, now - timedelta(minutes=rollout.hold_minutes))
    judged = recent(gateway(outside).records(use_case.name, earliest), serving.version, since, rollout)
    since_full = max(since - _OVERLAP, serving.finished_at)
    checked = _checked(use_case, serving, since_full, outside)
    tally = canary.tally(judged, checked, max_ms=rollout.max_p99_ms, forgiving=True)
    [counted] = outside.warehouse.query(_ANSWERS, (f"%{DegradedReason.STORE_SILENT}%", use_case.name, since))
    [losses] = outside.warehouse.query(_LOST, (use_case.name,))
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


def _checked(use_case: UseCase, serving: Deployment, since: datetime, outside: "Outside") -> recompute.Checked:
    try:
        checked = canary.latest(use_case, serving.version, since, outside, most=_MOST_CHECKED)
    except (Corrupt, Missing) as problem:  # the server has its own copy, made before
        print(problem)
        title = f"the stored bundle of version {serving.version} is not what was registered"
        body = "what it answers cannot be checked, and it could not be loaded again"
        alarm(use_case, outside, "watch.bundle", title=title, body=body, tier="critical")
        return recompute.NOTHING
    if checked.answers:
        outside.alerts.resolve(f"{use_case.name}.watch.bundle")
    return checked


def recent(records: "list[Record]", version: str, since: datetime, rollout: Rollout) -> "list[Record]":
    """The stable version's requests since a moment, and earlier ones only as far as it takes to judge."""
    said = (r for r in records if r.version == version and r.slot == "stable" and canary.concerns(r))
    ours = sorted(said, key=lambda record: record.at)
    fresh = [record for record in ours if record.at >= since]
    return fresh if len(fresh) >= rollout.canary_requests else ours[-rollout.canary_requests :]


def _tell(use_case: UseCase, serving: Deployment, look: Look, lost_before: int, outside: "Outside") -> list[str]:
    """Alerts about what no rollback mends; those that no longer hold are over."""
    assert use_case.endpoint is not None
    outside.alerts.resolve(f"{use_case.name}.watch.gateway")
    found: dict[str, tuple[str, str] | None] = {}  # what is the matter, and how much
    if look.answers:  # without an answer nothing is known: neither better nor worse
        silent, degraded = look.store_silent / look.answers, look.degraded / look.answers
        limit = use_case.endpoint.rollout.max_error_share
        without, poor = "answers do without features", f"more than {_DEGRADED_SHARE:.0%} of the answers are degraded"
        found["store"] = (without, f"{silent:.0%}") if silent > limit else None
        found["degraded"] = (poor, f"{degraded:.0%}") if degraded > _DEGRADED_SHARE else None
    if look.lost > lost_before:
        found["lost"] = ("answers are not in the prediction log", f"{look.lost - lost_before} more")
    elif look.answers:
        found["lost"] = None
    found["server"] = _server_trouble(use_case, serving, outside)
    for name, said in found.items():
        if said is None:
            outside.alerts.resolve(f"{use_case.name}.watch.{name}")
        else:
            body = "until a look finds it well; online_watch has the numbers of each look"
            tier: Tier = "critical" if name == "server" else "warning"
            alarm(use_case, outside, f"watch.{name}", title=said[0], body=body, tier=tier)
    return [": ".join(said) for said in found.values() if said]


def _server_trouble(use_case: UseCase, serving: Deployment, outside: "Outside") -> tuple[str, str] | None:
    try:
        ready = endpoint(outside).versions(use_case.name).get(serving.version)
    except ConnectionError as problem:
        return "the server does not say what it runs", str(problem)
    return None if ready else ("what answers has no worker that is ready", f"version {serving.version}")


def _keep(look: Look, findings: list[str], outside: "Outside") -> None:
    values: dict[str, Any] = {**asdict(look), "findings": findings}
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    statement = f"insert into online_watch ({names}) values ({places})"  # noqa: S608  # our names
    outside.warehouse.execute(statement, tuple(values.values()))


def _said(sentence: str) -> str:
    print(sentence)  # a task's log is its standard output
    return sentence
