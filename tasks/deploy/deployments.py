"""The table of deployments: which version is on its way to the server, which one answers, and how each way ended."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import cursor

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
TAKEN_BACK = "revert-"  # and the deployment that is undone
_ACTIONS = {
    "full": "deploy",
    "refused": "deploy-refused",
    "held": "deploy-held",
    "reverted": "deploy-reverted",
    "superseded": "deploy-superseded",
}
_TIERS: Mapping[str, "Tier"] = {"refused": "critical", "reverted": "critical", "held": "warning"}
_RUNBOOKS = {"refused": "reverted-rollout", "reverted": "reverted-rollout", "held": "held-rollout"}


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One row: a version's way to the server. `outcome` is None while it is under way."""

    deployment_id: str
    request_id: str | None
    use_case: str
    kind: str
    version: str
    previous_version: str | None
    revision: int
    stage: str
    outcome: str | None
    archive_sha256: str | None
    evidence: Mapping[str, Any]
    problem: str | None
    actor: str
    reason: str
    as_of: datetime
    started_at: datetime
    stage_since: datetime
    finished_at: datetime | None

    def sentence(self) -> str:
        """What became of it, in words."""
        said = f"{self.use_case}: version {self.version}"
        if self.outcome is None:
            return f"{said} is on its way, at {self.stage}"
        if self.outcome == "full":
            return f"{said} answers everyone since {self.finished_at:%Y-%m-%d %H:%M} UTC"
        stays = f"version {self.previous_version} answers" if self.previous_version else "nothing answers"
        return f"{said} was {self.outcome} at {self.stage}, {stays}: {self.problem}"


def of_id(deployment_id: str, outside: "Outside") -> Deployment | None:
    """A deployment by its name."""
    return _one("deployment_id = %s", (deployment_id,), outside)


def of_request(use_case: UseCase, request_id: str, outside: "Outside") -> Deployment | None:
    """The deployment that a run began or took up last."""
    return _one("use_case = %s and request_id = %s", (use_case.name, request_id), outside)


def in_flight(use_case: UseCase, outside: "Outside") -> Deployment | None:
    """The one that is under way, or was when its process died."""
    return _one("use_case = %s and outcome is null", (use_case.name,), outside)


def serving(use_case: UseCase, outside: "Outside") -> Deployment | None:
    """The deployment that brought the version which answers everyone; None before the first."""
    return _one("use_case = %s and outcome = 'full'", (use_case.name,), outside, order="finished_at")


def is_taken_back(deployment: Deployment | None) -> bool:
    """Whether this is a rollback by the watch, which alone takes it up again."""
    return deployment is not None and deployment.deployment_id.startswith(TAKEN_BACK)


def before(serving: Deployment | None, version: str) -> str | None:
    """What answers without a version: the one that does now, or, where that is this very one, the one before it."""
    if serving is None:
        return None
    return serving.previous_version if serving.version == version else serving.version


def answered(use_case: UseCase, revision: int, version: str, outside: "Outside") -> Deployment | None:
    """The last finished way of a version since it became champion; a superseded one counts for nothing."""
    where = "use_case = %s and revision = %s and version = %s and outcome <> 'superseded'"
    return _one(where, (use_case.name, revision, version), outside)


def open_row(at: cursor, values: Mapping[str, Any]) -> None:
    """Write the row of a deployment that begins; the index refuses a second one under way."""
    names = ", ".join(values)
    places = ", ".join(["%s"] * len(values))
    at.execute(f"insert into deployments ({names}) values ({places})", tuple(values.values()))  # noqa: S608  # ours


def change(at: cursor, deployment: Deployment, **values: Any) -> None:
    """Set columns of a deployment under way; `evidence` is added to what there is, by stage."""
    sets, params = [], []
    for name, value in values.items():
        sets.append(f"{name} = evidence || %s::jsonb" if name == "evidence" else f"{name} = %s")
        params.append(json.dumps(_plain(value), allow_nan=False) if name == "evidence" else value)
    if "stage" in values:
        sets.append("stage_since = now()")
    if values.get("outcome"):
        sets.append("finished_at = clock_timestamp()")
    statement = f"update deployments set {', '.join(sets)} where deployment_id = %s and outcome is null"  # noqa: S608
    at.execute(statement, (*params, deployment.deployment_id))
    assert at.rowcount == 1, f"{deployment.deployment_id} is finished already"


def finish(
    at: cursor,
    deployment: Deployment,
    outcome: str,
    outside: "Outside",
    *,
    problem: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> None:
    """End a deployment: its row, its entry in the ledger, its alert, all in the caller's transaction."""
    stage = {"stage": "done"} if outcome == "full" else {}
    change(at, deployment, outcome=outcome, problem=problem, evidence=evidence or {}, **stage)
    serves = deployment.version if outcome == "full" else deployment.previous_version
    release = Release(
        use_case=deployment.use_case,
        outcome=outcome,
        champion_version=serves,
        previous_version=deployment.previous_version,
        revision=deployment.revision,
        as_of=deployment.as_of,
        actor=deployment.actor,
    )
    record(
        at,
        _ACTIONS[outcome],
        release,
        model_version=deployment.version,
        before=deployment.previous_version,
        changed=False,
        reason=problem or deployment.reason,
        evidence={"deployment": deployment.deployment_id, "kind": deployment.kind, **_plain(evidence or {})},
        key=deployment.deployment_id,
    )
    _tell(at, deployment, outcome, problem, outside)


def _tell(at: cursor, deployment: Deployment, outcome: str, problem: str | None, outside: "Outside") -> None:
    """An alert where a version did not make it; what an earlier one said is over once another answers everyone."""
    fingerprint = f"{deployment.use_case}.deploy.{{}}".format
    if outcome == "full":
        for other in _TIERS:
            outside.alerts.resolve(fingerprint(other), at)
        outside.alerts.resolve(fingerprint("put-back"), at)
    if outcome == "full" and deployment.kind == "rollback":
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
        stays = f"version {deployment.previous_version} answers" if deployment.previous_version else "nothing answers"
        outside.alerts.record(
            at,
            tier=_TIERS[outcome],
            use_case=deployment.use_case,
            fingerprint=fingerprint(outcome),
            title=f"{deployment.use_case}: version {deployment.version} was {outcome} at {deployment.stage}; {stays}",
            body=f"{problem}\ndeployment {deployment.deployment_id}; docs/runbooks/{_RUNBOOKS[outcome]}.md",
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
    return Deployment(**rows[0]) if rows else None
