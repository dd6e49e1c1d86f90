"""The champion recalibrated: a version that differs from it in one number, by a decision of monitoring.

Asked for in the transaction of that decision, done once, whoever tries again: the version is registered by the
decision's name, and the champion, the ledger's entry and the row's state change together, under the lock that decisions
take, too. A later decision supersedes it, and so does a rollback, another network that is champion by now, or a person
who switched recalibration off.
"""

import hashlib
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.connect import Outside
from models.recalibration import Recalibration
from pipeline.handoffs import Release
from pipeline.spec import UseCase
from tasks.common.ledger import (
    DROP_RECALIBRATION,
    OUTCOMES,
    Champion,
    LedgerAction,
    done_before,
    install,
    locked_champion,
    record,
    release_of,
)
from tasks.promote.promote import reconcile_aliases
from tasks.train.recalibration import (
    RECALIBRATED_AS_OF_TAG,
    RECALIBRATED_BY_TAG,
    RECALIBRATION_TAG,
    MeasuredIntercept,
)

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from adapters.registry import RunRecord, Version

ACTOR = "monitor"
_ASK = """
insert into recalibrations (decision_id, use_case, network_version, as_of, intercept, evidence, state)
values (%s, %s, %s, %s, %s, %s, 'pending')
"""
_PENDING = """
select decision_id, r.network_version, r.as_of, r.intercept, r.evidence, d.reasons
from recalibrations r join decisions d using (decision_id) where r.use_case = %s and r.state = 'pending'
"""
_LOCKED = """
select r.state, (select max(as_of) from decisions d where d.use_case = r.use_case) as decided_until
from recalibrations r where decision_id = %s for update of r
"""
_LATEST_WAY = """
select d.outcome from deployments d
left join recalibrations r on (r.use_case, r.model_version) = (d.use_case, d.version)
where d.use_case = %s and coalesce(r.network_version, d.version) = %s and d.outcome <> 'superseded'
order by d.position desc limit 1
"""
# The latest that was done, where it is what is in force.
_IN_FORCE = """
select decision_id from recalibrations r join champions c on (c.use_case, c.version) = (r.use_case, r.model_version)
where r.use_case = %s and r.state = 'done'
"""
_DONE = """
update recalibrations set state = 'done', model_version = %s, changed_at = now()
where decision_id = %s and state = 'pending'
"""


def supersede_recalibration(at: "cursor", use_case: UseCase) -> None:
    """What was asked for before, and is not done yet, will not be."""
    at.execute(DROP_RECALIBRATION, (use_case.name,))


def is_asked(use_case: UseCase, outside: Outside) -> bool:
    """Whether a recalibration is still to be made."""
    return bool(outside.warehouse.query(_PENDING, (use_case.name,)))


def ask_recalibration(  # noqa: PLR0917  # the order is that of the row
    at: "cursor",
    use_case: UseCase,
    decision_id: str,
    network_version: str,
    as_of: datetime,
    measured: MeasuredIntercept,
    snapshot_version: str,
) -> None:
    """Write, beside the decision, that the champion is to be recalibrated."""
    evidence = {**asdict(measured), "snapshot_version": snapshot_version}
    at.execute(
        _ASK,
        (decision_id, use_case.name, network_version, as_of, measured.fitted.value,
         json.dumps(evidence, allow_nan=False)),
    )  # fmt: skip


def find_release_in_force(use_case: UseCase, outside: Outside) -> Release | None:
    """The release of the recalibration that is champion now; None: what is was promoted, or put back."""
    with outside.warehouse.transaction() as at:
        at.execute(_IN_FORCE, (use_case.name,))
        row = at.fetchone()
        return done_before(at, _name_request(row[0])) if row else None


def recalibrate_champion(use_case: UseCase, outside: Outside) -> Release | None:
    """Make the version that was asked for, and put it in force; None: nothing was, or it is not wanted any more.

    Raises:
        ConnectionError: the registry is down; the champion is as it was, and the same call may succeed later.
        FencedOut: the same work was begun again meanwhile.
    """
    pending = outside.warehouse.query(_PENDING, (use_case.name,))
    if not pending:
        return None
    [asked] = pending
    if use_case.monitor.recalibration is None or _was_turned_away(use_case, asked["network_version"], outside):
        with outside.warehouse.transaction() as at:
            supersede_recalibration(at, use_case)
        return None
    reconcile_aliases(use_case, outside)
    from tasks.train.refit import register_once  # loads torch: not before there is something to make

    request = [asked["decision_id"], asked["network_version"], asked["intercept"]]
    key = hashlib.sha256(json.dumps(["recalibration", *request]).encode()).hexdigest()
    version = register_once(use_case, key, lambda folder: _make(use_case, asked, key, folder, outside), outside)

    def commit() -> Release | None:
        with outside.warehouse.transaction() as at:
            return _install(at, use_case, asked, version)

    release = outside.warehouse.retry_transaction(commit)
    if release is not None:
        reconcile_aliases(use_case, outside)
    return release


def _was_turned_away(use_case: UseCase, network_version: str, outside: Outside) -> bool:
    """Whether clients were last spared a network: it is not to come back to them by another version."""
    rows = outside.warehouse.query(_LATEST_WAY, (use_case.name, network_version))
    return bool(rows) and rows[0]["outcome"] in {"refused", "held", "reverted"}


def _name_request(decision_id: str) -> str:
    return f"recalibrate-{decision_id}"


def _make(use_case: UseCase, asked: dict[str, Any], key: str, folder: Path, outside: Outside) -> "RunRecord":
    from adapters.registry import RunRecord
    from models.bundle import load_bundle, write_bundle
    from models.bundle_card import read_definition
    from models.ensemble import Ensemble
    from tasks.train.record import write_documents

    trained = outside.registry.version(use_case.name, asked["network_version"])
    stored = outside.registry.download_bundle(use_case.name, trained.version)
    bundle, evidence = load_bundle(stored, sha256=trained.bundle_sha256), asked["evidence"]
    sha256 = write_bundle(
        folder / "bundle",
        Ensemble(encoder=bundle.encoder, members=bundle.members, curves=()),
        use_case=use_case.name,
        features_digest=bundle.card["features"]["digest"],
        definition=read_definition(stored),
        recipe=bundle.card["recipe"],
        data=bundle.card["data"],
        metrics=bundle.card["metrics"],
        versions=bundle.card["versions"],
        recalibration=Recalibration(intercept=asked["intercept"]),
    )
    write_documents(
        folder,
        {
            "monitoring/profile.json": outside.registry.profile(use_case.name, trained.version),
            "recalibration.json": evidence,
            "use_case.json": use_case.model_dump(mode="json"),
        },
    )
    return RunRecord(
        use_case=use_case.name,
        key=key,
        name=f"{asked['as_of']:%Y-%m-%d} recalibration of version {trained.version}",
        dataset_version=evidence["snapshot_version"],
        params={"intercept": asked["intercept"], "network_version": trained.version},
        tags={
            **trained.tags,
            "windsock.recalibrated_by_code": outside.settings.code_sha,
            "windsock.decision_id": asked["decision_id"],
            RECALIBRATION_TAG: trained.version,
            RECALIBRATED_AS_OF_TAG: asked["as_of"].isoformat(),
            RECALIBRATED_BY_TAG: evidence["snapshot_version"],
        },
        metrics={
            "expected_gain": evidence["gain"],
            "intercept_standard_error": evidence["fitted"]["standard_error"],
            "recalibration_rows": float(evidence["fitted"]["rows"]),
        },
        curves={},
        artifacts=folder,
        bundle_sha256=sha256,
    )


def _install(at: "cursor", use_case: UseCase, asked: dict[str, Any], version: "Version") -> Release | None:
    champion, key = locked_champion(at, use_case), _name_request(asked["decision_id"])
    if done := done_before(at, key):
        return done
    at.execute(_LOCKED, (asked["decision_id"],))
    [(state, as_of)] = at.fetchall()  # what is decided on stays as it was scored
    if state != "pending":
        return None
    network = asked["network_version"]
    if champion is None or champion.network_version != network or champion.as_of > as_of:
        supersede_recalibration(at, use_case)
        return None
    after = Champion(
        use_case=use_case.name,
        version=version.version,
        # Back is to what was trained and, from there, to who was champion before: not through each recalibration.
        previous_version=network,
        revision=champion.revision + 1,
        as_of=as_of,
        network_version=network,
    )
    install(at, after, champion)
    at.execute(_DONE, (version.version, asked["decision_id"]))
    assert at.rowcount == 1, "it was pending, and is locked"
    release = release_of(use_case, OUTCOMES[LedgerAction.RECALIBRATE], after, as_of, ACTOR)
    record(
        at,
        LedgerAction.RECALIBRATE,
        release,
        model_version=version.version,
        before=champion.version,
        changed=True,
        reason=next(reason for reason in asked["reasons"] if reason.startswith("recalibrated")),
        evidence={"decision_id": asked["decision_id"], "network_version": network, "measured": asked["evidence"]},
        key=key,
    )
    return release
