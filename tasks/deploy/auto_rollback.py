"""The watch's own rollback: once a deployment, only where it helps, and gone on with where it was killed."""

import time
import uuid
from dataclasses import dataclass
from enum import StrEnum

from adapters.connect import Outside
from adapters.errors import FencedOut
from pipeline.spec import UseCase
from tasks.common.ledger import current
from tasks.deploy import deployments
from tasks.deploy.deployments import Deployment, DeploymentKind, DeploymentOutcome, DeploymentRequest
from tasks.deploy.judge import StageJudgement, is_too_slow
from tasks.deploy.online_alerts import OnlineTrouble, raise_online_alert
from tasks.deploy.rollback import roll_back_route
from tasks.deploy.server import VersionRejected, ask_version

_PROBES = 20
_PROBE = """
select request, features from online_answers where use_case = %s and slot = 'stable' order by answered_at desc limit %s
"""


class NoRollback(StrEnum):
    """Why going back would not help, in words; `{}` is the version before."""

    IS_ROLLBACK = "it was put back itself"
    NOTHING_BEFORE = "no other version answered before"
    TRIED = "that was tried before"
    UNDER_WAY = "a rollback is under way"
    FAILS_TOO = "version {} does no better"
    SLOW_TOO = "version {} is too slow as well"


@dataclass(frozen=True)
class RollbackRefusal:
    """Why there is no rollback, and how that showed."""

    reason: NoRollback
    detail: str = ""


def react_to_breach(use_case: UseCase, serving: Deployment, judgement: StageJudgement, outside: Outside) -> str:
    """Roll back where that helps, else call a person; what was done, in a sentence."""
    if refusal := _find_refusal(use_case, serving, judgement, outside):
        why = refusal.reason.format(serving.previous_version)
        raise_online_alert(
            use_case,
            outside,
            OnlineTrouble.STABLE,
            title=f"version {serving.version} does not answer well",
            body=f"not rolled back: {why}; online_watch has the numbers of each look",
        )
        return f"{judgement.reason}; not rolled back: {why}{refusal.detail}"
    champion = current(use_case, outside)
    assert champion is not None
    assert serving.previous_version is not None
    request = DeploymentRequest(
        deployment_id=serving.auto_rollback_id,
        request_id=serving.auto_rollback_id,
        version=serving.previous_version,
        revision=champion.revision,
        as_of=champion.as_of,
        actor="watch",
        reason=judgement.reason,
    )
    return _roll_back(use_case, serving.version, request, outside)


def resume_auto_rollback(use_case: UseCase, outside: Outside) -> list[str]:
    """Go on with a rollback of ours that was killed; nobody else does."""
    ongoing = deployments.find_ongoing_deployment(use_case, outside)
    if ongoing is None or not ongoing.is_auto_rollback:
        return []
    return [_roll_back(use_case, str(ongoing.previous_version), ongoing.request, outside)]


def _roll_back(use_case: UseCase, bad: str, request: DeploymentRequest, outside: Outside) -> str:
    """Put the version before back, and say what became of it."""
    try:
        ended = roll_back_route(use_case, request, outside)
    except FencedOut:  # somebody rolls back as well, who tells
        return f"version {bad} was to be taken back; somebody else is at it"
    except ConnectionError as problem:
        title = f"version {bad} does not answer well, and cannot be taken back yet"
        body = "the server or the gateway is not there; each look tries again"
        raise_online_alert(use_case, outside, OnlineTrouble.STABLE, title=title, body=body)
        return f"{title}: {problem}"
    if ended.outcome is DeploymentOutcome.FULL:
        raise_online_alert(
            use_case,
            outside,
            OnlineTrouble.REVERTED,
            title=f"version {bad} was taken back",
            body=f"{request.reason}\n{ended.describe()}",
        )
    else:
        raise_online_alert(
            use_case,
            outside,
            OnlineTrouble.STABLE,
            title=f"version {bad} does not answer well, and could not be taken back",
            body=ended.describe(),
        )
    return ended.describe()


def _find_refusal(
    use_case: UseCase, serving: Deployment, judgement: StageJudgement, outside: Outside
) -> RollbackRefusal | None:
    """Why going back would not help; None where it would."""
    if serving.kind is DeploymentKind.ROLLBACK:
        return RollbackRefusal(NoRollback.IS_ROLLBACK)
    if serving.previous_version in (None, serving.version):
        return RollbackRefusal(NoRollback.NOTHING_BEFORE)
    tried = deployments.find_deployment(serving.auto_rollback_id, outside)
    if tried is not None and tried.outcome is not None:
        return RollbackRefusal(NoRollback.TRIED, f": {tried.describe()}")
    ongoing = deployments.find_ongoing_deployment(use_case, outside)
    if ongoing is not None and ongoing.kind is DeploymentKind.ROLLBACK:
        return RollbackRefusal(NoRollback.UNDER_WAY)
    return _probe_version(use_case, str(serving.previous_version), judgement, outside)


def _probe_version(
    use_case: UseCase, version: str, judgement: StageJudgement, outside: Outside
) -> RollbackRefusal | None:
    """What is wrong with a version when it is asked what was asked last; None: going back to it helps."""
    assert use_case.endpoint is not None
    durations_ms = []
    for row in outside.warehouse.query(_PROBE, (use_case.name, _PROBES)):
        began = time.perf_counter()
        try:
            ask_version(use_case, version, [row["request"]], outside, request_id=f"probe-{uuid.uuid4()}", slot="probe")
        except (VersionRejected, ConnectionError) as problem:
            return RollbackRefusal(NoRollback.FAILS_TOO, f": {problem}")
        durations_ms.append((time.perf_counter() - began) * 1000)
    budget_ms, timed = use_case.endpoint.rollout.max_p99_ms, durations_ms[1:]  # the first may have to open connections
    slow = sum(milliseconds > budget_ms for milliseconds in timed)
    if judgement.is_latency and is_too_slow(slow, len(timed)):
        return RollbackRefusal(NoRollback.SLOW_TOO, f", {slow} of {len(timed)} probes")
    return None
