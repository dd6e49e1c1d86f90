"""The watch's own rollback: once a deployment, only where it helps, and gone on with where it was killed."""

import time
import uuid
from typing import TYPE_CHECKING

from adapters.errors import FencedOut
from pipeline.spec import UseCase
from tasks.common.ledger import current
from tasks.deploy import deployments
from tasks.deploy.deploy import Asked
from tasks.deploy.deployments import Deployment
from tasks.deploy.judge import Step, are_slow
from tasks.deploy.put_back import put_back
from tasks.deploy.server import Rejected, ask

if TYPE_CHECKING:
    from adapters.alerts import Tier
    from adapters.connect import Outside

_PROBES = 20
_PROBE = """
select request, features from online_answers where use_case = %s and slot = 'stable' order by answered_at desc limit %s
"""


def react(use_case: UseCase, serving: Deployment, step: Step, outside: "Outside") -> str:
    """Roll back where that mends it, else call a person."""
    if refusal := _no_use(use_case, serving, step, outside):
        why, detail = refusal
        title = f"version {serving.version} does not answer well"
        body = f"not rolled back: {why}; online_watch has the numbers of each look"
        alarm(use_case, outside, "watch.stable", title=title, body=body, tier="critical")
        return f"{step.reason}; not rolled back: {why}{detail}"
    champion = current(use_case, outside)
    assert champion is not None
    assert serving.previous_version is not None
    asked = Asked(
        deployment_id=f"{deployments.TAKEN_BACK}{serving.deployment_id}",
        request_id=f"{deployments.TAKEN_BACK}{serving.deployment_id}",
        version=serving.previous_version,
        revision=champion.revision,
        as_of=champion.as_of,
        actor="watch",
        reason=step.reason,
    )
    return _take_back(use_case, serving.version, asked, outside)


def _take_back(use_case: UseCase, bad: str, asked: Asked, outside: "Outside") -> str:
    """Put the version before back, and say what became of it."""
    try:
        ended = put_back(use_case, asked, outside)
    except FencedOut:  # somebody rolls back as well, who tells
        return f"version {bad} was to be taken back; somebody else is at it"
    except ConnectionError as problem:
        title = f"version {bad} does not answer well, and cannot be taken back yet"
        body = "the server or the gateway is not there; each look tries again"
        alarm(use_case, outside, "watch.stable", title=title, body=body, tier="critical")
        return f"{title}: {problem}"
    if ended.outcome == "full":
        body = f"{asked.reason}\n{ended.sentence()}"
        alarm(use_case, outside, "deploy.reverted", title=f"version {bad} was taken back", body=body, tier="critical")
    else:
        title = f"version {bad} does not answer well, and could not be taken back"
        alarm(use_case, outside, "watch.stable", title=title, body=ended.sentence(), tier="critical")
    return ended.sentence()


def _no_use(use_case: UseCase, serving: Deployment, step: Step, outside: "Outside") -> tuple[str, str] | None:
    """Why going back would not help, and how that showed; None where it would."""
    if serving.kind == "rollback":
        return "it was put back itself", ""
    if serving.previous_version in (None, serving.version):
        return "no other version answered before", ""
    tried = deployments.of_id(f"{deployments.TAKEN_BACK}{serving.deployment_id}", outside)
    if tried is not None and tried.outcome is not None:
        return "that was tried before", f": {tried.sentence()}"
    ongoing = deployments.in_flight(use_case, outside)
    if ongoing is not None and ongoing.kind == "rollback":
        return "a rollback is under way", ""
    return _unsound(use_case, str(serving.previous_version), step, outside)


def _unsound(use_case: UseCase, version: str, step: Step, outside: "Outside") -> tuple[str, str] | None:
    """What is wrong with a version when it is asked what was asked last; None: going back to it mends something."""
    assert use_case.endpoint is not None
    took = []
    for row in outside.warehouse.query(_PROBE, (use_case.name, _PROBES)):
        began = time.perf_counter()
        try:
            ask(use_case, version, [row["request"]], outside, request_id=f"probe-{uuid.uuid4()}", slot="probe")
        except (Rejected, ConnectionError) as problem:
            return f"version {version} does no better", f": {problem}"
        took.append((time.perf_counter() - began) * 1000)
    budget_ms = use_case.endpoint.rollout.max_p99_ms
    slow = sum(milliseconds > budget_ms for milliseconds in took[1:])  # the first may have to open connections
    if step.is_latency and are_slow(slow, len(took[1:])):
        return f"version {version} is too slow as well", f", {slow} of {len(took[1:])} probes"
    return None


def take_up(use_case: UseCase, outside: "Outside") -> list[str]:
    """Go on with a rollback of ours that was killed; nobody else does."""
    ongoing = deployments.in_flight(use_case, outside)
    if ongoing is None or not deployments.is_taken_back(ongoing):
        return []
    asked = Asked(**{name: getattr(ongoing, name) for name in Asked.__dataclass_fields__})
    return [_take_back(use_case, str(ongoing.previous_version), asked, outside)]


def alarm(use_case: UseCase, outside: "Outside", name: str, *, title: str, body: str, tier: "Tier") -> None:
    """Tell people, with the runbook that helps."""
    runbook = "reverted-rollout" if name == "deploy.reverted" else "degraded-answers"
    text = f"{body}\ndocs/runbooks/{runbook}.md"
    outside.alerts.raise_alert(tier, use_case.name, f"{use_case.name}.{name}", f"{use_case.name}: {title}", text)
