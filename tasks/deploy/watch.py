"""Looks at what answers online since the last look: errors, latency, wrong scores, degraded and lost answers.

What a rollback can mend is rolled back, once a deployment; everything else is an alert, which ends by itself when a
later look finds it well. An alert says the same as long as the problem is the same, so that people hear of it once: the
numbers of each look are in `online_watch`. A kill between two steps of a deployment has left the route, the server and
the table in disagreement: that is mended here, too, unless somebody is at it.
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from adapters.gateway import GatewayRecord
from adapters.warehouse import format_insert
from pipeline.online import Rollout
from pipeline.spec import UseCase
from serving.reasons import DegradedReason
from tasks.common.command import print_sentence
from tasks.deploy.auto_rollback import react_to_breach, resume_auto_rollback
from tasks.deploy.batch_scores import NO_SCORES, ScoreCheck
from tasks.deploy.canary import check_latest_answers, is_about_version, tally_traffic
from tasks.deploy.deploy import describe_obstacle, find_missing_part
from tasks.deploy.deployments import Deployment, find_serving_deployment
from tasks.deploy.judge import StageJudgement, StageResult, judge_stable
from tasks.deploy.online_alerts import OnlineTrouble, raise_online_alert, resolve_online_alert
from tasks.deploy.reconcile import reconcile_server
from tasks.deploy.server import require_endpoint, require_gateway

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
class WatchLook:
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


def watch_online(use_case: UseCase, outside: Outside) -> str:
    """Look once; one sentence about it."""
    if missing := find_missing_part(use_case, outside):
        return print_sentence(describe_obstacle(missing, use_case, None))
    reconciled = [*resume_auto_rollback(use_case, outside), *_reconcile(use_case, outside)]
    serving = find_serving_deployment(use_case, outside)
    if serving is None:
        return print_sentence(f"{use_case.name}: nothing answers yet")
    try:
        look, judgement, lost_before = _look_once(use_case, serving, outside)
    except ConnectionError as problem:
        raise_online_alert(
            use_case,
            outside,
            OnlineTrouble.GATEWAY,
            title="the gateway cannot be asked what it answered",
            body="clients may get no answer",
        )
        return print_sentence("; ".join((f"{use_case.name}: {problem}", *reconciled)))
    findings = [*reconciled, *_alert_about(use_case, serving, look, lost_before, outside)]
    if judgement.result is StageResult.BREACH:
        findings.append(react_to_breach(use_case, serving, judgement, outside))
    elif judgement.result is StageResult.PASS:
        resolve_online_alert(use_case, outside, OnlineTrouble.STABLE)
    outside.warehouse.execute(*format_insert("online_watch", {**asdict(look), "findings": findings}))
    outside.alerts.flush()
    return print_sentence(f"{use_case.name}: {judgement.reason}" + "".join(f"; {finding}" for finding in findings))


def _reconcile(use_case: UseCase, outside: Outside) -> list[str]:
    reconciled = reconcile_server(use_case, outside)
    if reconciled.failed:
        raise_online_alert(
            use_case,
            outside,
            OnlineTrouble.RECONCILE,
            title="the server or the route could not be put right",
            body="each look tries again; `findings` in online_watch says what is in the way",
        )
    else:
        resolve_online_alert(use_case, outside, OnlineTrouble.RECONCILE)
    return [*reconciled.changed, *reconciled.failed]


def _look_once(use_case: UseCase, serving: Deployment, outside: Outside) -> tuple[WatchLook, StageJudgement, int]:
    assert use_case.endpoint is not None
    assert serving.finished_at is not None
    rollout = use_case.endpoint.rollout
    [clock] = outside.warehouse.query("select clock_timestamp() as now")
    last = outside.warehouse.query(_LAST, (use_case.name,))
    now, since = clock["now"], last[0]["looked_at"] if last else clock["now"] - _FIRST_LOOK
    earliest = max(serving.finished_at, now - timedelta(minutes=rollout.hold_minutes))
    records = require_gateway(outside).records(use_case.name, earliest)
    checked = _check_answers(use_case, serving, max(since - _OVERLAP, serving.finished_at), outside)
    judged = choose_recent(records, serving.version, since, rollout)
    tally = tally_traffic(judged, checked, max_ms=rollout.max_p99_ms, forgiving=True)
    [counted] = outside.warehouse.query(_ANSWERS, (f"%{DegradedReason.STORE_SILENT}%", use_case.name, since))
    [losses] = outside.warehouse.query(_LOST, (use_case.name,))
    look = WatchLook(
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


def _check_answers(use_case: UseCase, serving: Deployment, since: datetime, outside: Outside) -> ScoreCheck:
    try:
        checked = check_latest_answers(use_case, serving.version, since, outside, most=_MOST_CHECKED)
    except (Corrupt, Missing) as problem:  # the server has its own copy, made before
        print(problem)
        raise_online_alert(
            use_case,
            outside,
            OnlineTrouble.BUNDLE,
            title=f"the stored bundle of version {serving.version} is not what was registered",
            body="what it answers cannot be checked, and it could not be loaded again",
        )
        return NO_SCORES
    if checked.answers:
        resolve_online_alert(use_case, outside, OnlineTrouble.BUNDLE)
    return checked


def choose_recent(records: list[GatewayRecord], version: str, since: datetime, rollout: Rollout) -> list[GatewayRecord]:
    """The stable version's requests since a moment, and earlier ones only as far as it takes to judge."""
    of_version = (r for r in records if r.version == version and r.slot == "stable" and is_about_version(r))
    ours = sorted(of_version, key=lambda record: record.at)
    fresh = [record for record in ours if record.at >= since]
    return fresh if len(fresh) >= rollout.canary_requests else ours[-rollout.canary_requests :]


def _alert_about(
    use_case: UseCase, serving: Deployment, look: WatchLook, lost_before: int, outside: Outside
) -> list[str]:
    """Alerts about what no rollback mends; those that no longer hold are over."""
    assert use_case.endpoint is not None
    resolve_online_alert(use_case, outside, OnlineTrouble.GATEWAY)
    troubles: dict[OnlineTrouble, tuple[str, str] | None] = {}  # what is the matter, and how much
    if look.answers:  # without an answer nothing is known: neither better nor worse
        silent, degraded = look.store_silent / look.answers, look.degraded / look.answers
        max_silent = use_case.endpoint.rollout.max_error_share
        without, poor = "answers do without features", f"more than {_DEGRADED_SHARE:.0%} of the answers are degraded"
        troubles[OnlineTrouble.STORE] = (without, f"{silent:.0%}") if silent > max_silent else None
        troubles[OnlineTrouble.DEGRADED] = (poor, f"{degraded:.0%}") if degraded > _DEGRADED_SHARE else None
    if look.lost > lost_before:
        troubles[OnlineTrouble.LOST] = ("answers are not in the prediction log", f"{look.lost - lost_before} more")
    elif look.answers:
        troubles[OnlineTrouble.LOST] = None
    troubles[OnlineTrouble.SERVER] = _find_server_trouble(use_case, serving, outside)
    for trouble, what in troubles.items():
        if what is None:
            resolve_online_alert(use_case, outside, trouble)
        else:
            raise_online_alert(
                use_case,
                outside,
                trouble,
                title=what[0],
                body="until a look finds it well; online_watch has the numbers of each look",
                tier="critical" if trouble is OnlineTrouble.SERVER else "warning",
            )
    return [": ".join(what) for what in troubles.values() if what]


def _find_server_trouble(use_case: UseCase, serving: Deployment, outside: Outside) -> tuple[str, str] | None:
    try:
        ready = require_endpoint(outside).versions(use_case.name).get(serving.version)
    except ConnectionError as problem:
        return "the server does not say what it runs", str(problem)
    return None if ready else ("what answers has no worker that is ready", f"version {serving.version}")
