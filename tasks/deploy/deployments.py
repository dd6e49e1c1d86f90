"""The table of deployments: which version is on its way to the server, which one answers, and how each way ended."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import cursor

from adapters.warehouse import format_insert
from pipeline.handoffs import Release
from pipeline.spec import UseCase
from tasks.common.ledger import record

if TYPE_CHECKING:
    from adapters.alerts import Tier
    from adapters.connect import Outside

_COLUMNS = (
    "deployment_id, request_id, use_case, kind, version, previous_version, revision, stage, outcome, archive_sha256,"
    " evidence, problem, actor, reason, as_of, started_at, stage_since, finished_at"
)
_AUTO_ROLLBACK = "revert-"  # and the deployment that is undone


class DeploymentKind(StrEnum):
    """By stages, or at once and back."""

    ROLLOUT = "rollout"
    ROLLBACK = "rollback"


class DeploymentStage(StrEnum):
    """Where a version is on its way."""

    PACKAGE = "package"
    GOLDEN = "golden"
    SHADOW = "shadow"
    CANARY = "canary"
    FULL = "full"
    DONE = "done"


class DeploymentOutcome(StrEnum):
    """How a way to the server ended."""

    FULL = "full"  # it answers everyone
    REFUSED = "refused"  # before a client's request came near it
    HELD = "held"  # too few requests to judge it by
    REVERTED = "reverted"  # it did badly
    SUPERSEDED = "superseded"  # another version is to answer


_TIERS: Mapping[DeploymentOutcome, "Tier"] = {
    DeploymentOutcome.REFUSED: "critical",
    DeploymentOutcome.REVERTED: "critical",
    DeploymentOutcome.HELD: "warning",
}


@dataclass(frozen=True, kw_only=True)
class DeploymentRequest:
    """Which version is to be brought to the server, after which change of champion, by whom, and why."""

    deployment_id: str
    request_id: str
    version: str
    revision: int
    as_of: datetime
    actor: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Deployment(DeploymentRequest):
    """One row: what was asked for, and the version's way to the server. `outcome` is None while it is under way."""

    use_case: str
    kind: DeploymentKind
    previous_version: str | None
    stage: DeploymentStage
    outcome: DeploymentOutcome | None
    archive_sha256: str | None
    evidence: Mapping[str, Any]
    problem: str | None
    started_at: datetime
    stage_since: datetime
    finished_at: datetime | None

    @property
    def request(self) -> DeploymentRequest:
        """What was asked for, without what came of it."""
        return DeploymentRequest(**{field.name: getattr(self, field.name) for field in fields(DeploymentRequest)})

    @property
    def is_auto_rollback(self) -> bool:
        """Whether the watch rolls back, which alone takes it up again."""
        return self.deployment_id.startswith(_AUTO_ROLLBACK)

    @property
    def auto_rollback_id(self) -> str:
        """What the watch's rollback of this deployment is called."""
        return f"{_AUTO_ROLLBACK}{self.deployment_id}"

    def is_for(self, request: DeploymentRequest) -> bool:
        """Whether it brings the same version after the same change of champion."""
        return (self.version, self.revision) == (request.version, request.revision)

    def describe(self) -> str:
        """What became of it, in words."""
        subject = f"{self.use_case}: version {self.version}"
        if self.outcome is None:
            return f"{subject} is on its way, at {self.stage}"
        if self.outcome is DeploymentOutcome.FULL:
            return f"{subject} answers everyone since {self.finished_at:%Y-%m-%d %H:%M} UTC"
        return f"{subject} was {self.outcome} at {self.stage}, {self.describe_rest()}: {self.problem}"

    def describe_rest(self) -> str:
        """What answers if this version does not."""
        return f"version {self.previous_version} answers" if self.previous_version else "nothing answers"


def find_deployment(deployment_id: str, outside: "Outside") -> Deployment | None:
    """A deployment by its name."""
    return _one("deployment_id = %s", (deployment_id,), outside)


def require_deployment(deployment_id: str, outside: "Outside") -> Deployment:
    """A deployment that was written before."""
    found = find_deployment(deployment_id, outside)
    assert found is not None
    return found


def find_deployment_of_request(use_case: UseCase, request_id: str, outside: "Outside") -> Deployment | None:
    """The deployment that a run began or took up last."""
    return _one("use_case = %s and request_id = %s", (use_case.name, request_id), outside)


def find_ongoing_deployment(use_case: UseCase, outside: "Outside") -> Deployment | None:
    """The one that is under way, or was when its process died."""
    return _one("use_case = %s and outcome is null", (use_case.name,), outside)


def find_serving_deployment(use_case: UseCase, outside: "Outside") -> Deployment | None:
    """The deployment that brought the version which answers everyone; None before the first."""
    return _one("use_case = %s and outcome = 'full'", (use_case.name,), outside, order="finished_at")


def find_version_before(serving: Deployment | None, version: str) -> str | None:
    """What answers without a version: the one that does now, or, where that is this very one, the one before it."""
    if serving is None:
        return None
    return serving.previous_version if serving.version == version else serving.version


def find_finished_deployment(use_case: UseCase, revision: int, version: str, outside: "Outside") -> Deployment | None:
    """The last finished way of a version since it became champion; a superseded one counts for nothing."""
    return _one(
        "use_case = %s and revision = %s and version = %s and outcome <> 'superseded'",
        (use_case.name, revision, version),
        outside,
    )


def insert_deployment(at: cursor, values: Mapping[str, Any]) -> None:
    """Write the row of a deployment that begins; the index refuses a second one under way."""
    at.execute(*format_insert("deployments", values))


def update_deployment(at: cursor, deployment: Deployment, **values: Any) -> None:
    """Set columns of a deployment under way; `evidence` is added to what there is, by stage."""
    if "evidence" in values:
        values["evidence"] = json.dumps(_plain(values["evidence"]), allow_nan=False)
    sets = [f"{name} = evidence || %s::jsonb" if name == "evidence" else f"{name} = %s" for name in values]
    if "stage" in values:
        sets.append("stage_since = now()")
    if values.get("outcome"):
        sets.append("finished_at = clock_timestamp()")
    statement = f"update deployments set {', '.join(sets)} where deployment_id = %s and outcome is null"  # noqa: S608
    at.execute(statement, (*values.values(), deployment.deployment_id))
    assert at.rowcount == 1, f"{deployment.deployment_id} is finished already"


def finish_deployment(
    at: cursor,
    deployment: Deployment,
    outcome: DeploymentOutcome,
    outside: "Outside",
    *,
    problem: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> None:
    """End a deployment: its row, its entry in the ledger, its alert, all in the caller's transaction."""
    is_full = outcome is DeploymentOutcome.FULL
    stage = {"stage": DeploymentStage.DONE} if is_full else {}
    update_deployment(at, deployment, outcome=outcome, problem=problem, evidence=evidence or {}, **stage)
    record(
        at,
        "deploy" if is_full else f"deploy-{outcome}",
        Release(
            use_case=deployment.use_case,
            outcome=outcome,
            champion_version=deployment.version if is_full else deployment.previous_version,
            previous_version=deployment.previous_version,
            revision=deployment.revision,
            as_of=deployment.as_of,
            actor=deployment.actor,
        ),
        model_version=deployment.version,
        before=deployment.previous_version,
        changed=False,
        reason=problem or deployment.reason,
        evidence={"deployment": deployment.deployment_id, "kind": deployment.kind, **_plain(evidence or {})},
        key=deployment.deployment_id,
    )
    _alert_about(at, deployment, outcome, problem, outside)


def _alert_about(
    at: cursor, deployment: Deployment, outcome: DeploymentOutcome, problem: str | None, outside: "Outside"
) -> None:
    """An alert where a version did not make it; what an earlier one said is over once another answers everyone."""
    fingerprint = f"{deployment.use_case}.deploy.{{}}".format
    if outcome is DeploymentOutcome.FULL:
        for other in (*_TIERS, "put-back"):
            outside.alerts.resolve(fingerprint(other), at)
    if outcome is DeploymentOutcome.FULL and deployment.kind is DeploymentKind.ROLLBACK:
        outside.alerts.record(
            at,
            tier="warning",
            use_case=deployment.use_case,
            fingerprint=fingerprint("put-back"),
            title=f"{deployment.use_case}: version {deployment.version} answers again,"
            f" not {deployment.previous_version}",
            body=f"{deployment.reason} ({deployment.actor})\ndocs/runbooks/reverted-rollout.md",
        )
    if outcome in _TIERS:
        runbook = "held-rollout" if outcome is DeploymentOutcome.HELD else "reverted-rollout"
        outside.alerts.record(
            at,
            tier=_TIERS[outcome],
            use_case=deployment.use_case,
            fingerprint=fingerprint(outcome),
            title=f"{deployment.use_case}: version {deployment.version} was {outcome} at {deployment.stage};"
            f" {deployment.describe_rest()}",
            body=f"{problem}\ndeployment {deployment.deployment_id}; docs/runbooks/{runbook}.md",
        )


def _plain(value: Any) -> Any:
    """The same as JSON has it: no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | None) else str(value)


def _one(where: str, params: tuple[Any, ...], outside: "Outside", *, order: str = "position") -> Deployment | None:
    query = f"select {_COLUMNS} from deployments where {where} order by {order} desc limit 1"  # noqa: S608  # our texts
    rows = outside.warehouse.query(query, params)
    return _read_row(rows[0]) if rows else None


def _read_row(row: Mapping[str, Any]) -> Deployment:
    read = {
        "request_id": row["request_id"] or row["deployment_id"],
        "kind": DeploymentKind(row["kind"]),
        "stage": DeploymentStage(row["stage"]),
        "outcome": DeploymentOutcome(row["outcome"]) if row["outcome"] else None,
    }
    return Deployment(**{**row, **read})
