"""Who serves: a compare-and-swap in Postgres with an append-only ledger; the registry's aliases are its mirror.

The `champions` row and the ledger entry commit in one transaction under one advisory lock per use case. MLflow lets the
last writer of an alias win and cannot take part in a transaction, so aliases are set afterwards from the row, under the
same lock, and read back; a kill in between is mended by the next call. With MLflow down nothing is begun.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import cursor

from pipeline.handoffs import Release, Verdict
from pipeline.spec import UseCase

if TYPE_CHECKING:
    from adapters.connect import Outside

OUTCOMES: Mapping[str, str] = {
    "promote": "promoted",
    "hold": "held",
    "need-more-data": "need-more-data",
    "superseded": "superseded",
    "reject": "rejected",
    "rollback": "rolled-back",
}
_NOBODY = {"", "anonymous", "none", "null", "unknown"}


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The model in force; `previous_version` is what a rollback would bring back."""

    use_case: str
    version: str
    previous_version: str | None
    revision: int
    as_of: datetime


def resolve(verdict: Verdict, champion: Champion | None, *, approved: bool | None) -> tuple[str, str]:
    """The ledger action that follows from a verdict, and its reason. Pure."""
    because = "; ".join(verdict.reasons)
    if verdict.answer != "promote":
        return verdict.answer, because
    if approved is False or (verdict.needs_approval and approved is None):
        return "reject", f"not approved{' in time' if approved is None else ''}; the gate said: {because}"
    version = champion.version if champion else None
    if version != verdict.champion_version:
        judged = f"version {verdict.champion_version}" if verdict.champion_version else "no champion"
        return "superseded", f"judged against {judged}, but version {version} serves now: judge it again"
    if champion and verdict.as_of < champion.as_of:
        return "superseded", f"asked for as of {verdict.as_of}, but the champion is as of {champion.as_of}"
    return "promote", because


def promote(
    use_case: UseCase,
    verdict: Verdict,
    outside: "Outside",
    *,
    actor: str,
    approved: bool | None = None,
    dry_run: bool = False,
) -> Release:
    """Follow a verdict, once: called again, it answers the same and writes nothing.

    Args:
        use_case: whose champion it is.
        verdict: of `tasks.evaluate.judge`.
        outside: the outside world.
        actor: who or what acts; whoever approved, where approval is needed.
        approved: what that person said; None when nobody was asked or nobody answered.
        dry_run: write nothing.

    Raises:
        ValueError: approval without a name, or a verdict of another use case.
        ConnectionError: the registry is down; the champion is as it was, and the same call may succeed later.
    """
    verdict = _checked(use_case, verdict, actor=actor, approved=approved)
    if dry_run:
        return _release(use_case, "dry-run", current(use_case, outside), verdict.as_of, actor)
    reconcile_aliases(use_case, outside)
    if verdict.answer == "promote":
        outside.registry.version(use_case.name, verdict.candidate_version)  # it is there, or nothing happens

    def commit() -> Release:
        with outside.warehouse.transaction() as at:
            return _follow(at, use_case, verdict, actor=actor, approved=approved)

    release = outside.warehouse.retrying(commit)
    if release.outcome == "promoted":
        reconcile_aliases(use_case, outside)
    return release


def rollback(
    use_case: UseCase, outside: "Outside", *, actor: str, reason: str, as_of: datetime, request_id: str | None = None
) -> Release:
    """Put the previous champion back, from data time `as_of` on.

    Asking again with the same `request_id` (without one: the same as_of, actor and reason) answers the same and does
    nothing, so that a retried task does not go back twice. After it, the previous champion is the one before that.

    Raises:
        ValueError: there is no previous champion, no name or reason, or `as_of` lies before the champion's.
        ConnectionError: the registry is down; the champion is as it was.
    """
    if actor.strip().lower() in _NOBODY or not reason.strip():
        raise ValueError(f"a rollback needs a named person and a reason, got {actor!r} and {reason!r}")
    key = f"rollback-{_digest(use_case.name, *([request_id] if request_id else [as_of.isoformat(), actor, reason]))}"
    reconcile_aliases(use_case, outside)

    def commit() -> Release:
        with outside.warehouse.transaction() as at:
            return _put_back(at, use_case, actor=actor, reason=reason, as_of=as_of, key=key)

    release = outside.warehouse.retrying(commit)
    reconcile_aliases(use_case, outside)
    return release


def current(use_case: UseCase, outside: "Outside") -> Champion | None:
    """The champion now; None before the first."""
    return _champion(use_case, outside.warehouse.fetch(_CURRENT, (use_case.name,)))


def champion_for(use_case: UseCase, moment: datetime, outside: "Outside") -> Champion | None:
    """The champion in force at a data time, by the ledger, so the same whenever it is asked; None before the first."""
    return _champion(use_case, outside.warehouse.fetch(_IN_FORCE, (use_case.name, moment)))


def reconcile_aliases(use_case: UseCase, outside: "Outside") -> bool:
    """Make the registry's aliases say what the `champions` row says; whether they had to be changed."""
    with outside.warehouse.transaction() as at:
        champion = _locked_champion(at, use_case)
        if champion is None:
            return False
        wanted = {"champion": champion.version, "previous_champion": champion.previous_version}
        if outside.registry.aliases(use_case.name) == {name: v for name, v in wanted.items() if v is not None}:
            return False
        outside.registry.set_aliases(use_case.name, champion.version, champion.previous_version)
    return True


_CURRENT = "select version, previous_version, revision, as_of from champions where use_case = %s"
_IN_FORCE = """
select model_version as version, evidence -> 'release' ->> 'previous_version' as previous_version, revision, as_of
from ledger where use_case = %s and action in ('promote', 'rollback') and as_of <= %s order by entry desc limit 1
"""


def _checked(use_case: UseCase, verdict: Verdict, *, actor: str, approved: bool | None) -> Verdict:
    """The verdict, needing approval whenever the use case's risk says so, whatever the verdict claims."""
    if verdict.use_case != use_case.name:
        raise ValueError(f"the verdict is about {verdict.use_case}, not {use_case.name}")
    if not actor.strip():
        raise ValueError("the ledger names who acted: actor is empty")
    needs_approval = verdict.answer == "promote" and (verdict.needs_approval or use_case.risk == "high")
    if needs_approval and approved and (actor.strip().lower() in _NOBODY or actor.startswith("nobody")):
        raise ValueError(
            f"approved by {actor!r}: high risk needs a named person. In Airflow, give people users of their own"
            " (simple_auth_manager_all_admins records everyone as Anonymous), then clear this task"
        )
    return Verdict(**{**vars(verdict), "needs_approval": needs_approval})


def _follow(at: cursor, use_case: UseCase, verdict: Verdict, *, actor: str, approved: bool | None) -> Release:
    champion = _locked_champion(at, use_case)
    done = _done(at, verdict.verdict_id)
    if done is not None:
        return done
    action, reason = resolve(verdict, champion, approved=approved)
    before = champion.version if champion else None
    after = champion
    if action == "promote":
        after = Champion(
            use_case=use_case.name,
            version=verdict.candidate_version,
            previous_version=before,
            revision=champion.revision + 1 if champion else 1,
            as_of=verdict.as_of,
        )
        _install(at, after, champion)
    release = _release(use_case, OUTCOMES[action], after, verdict.as_of, actor)
    actions = ["approve", action] if verdict.needs_approval and approved else [action]
    for each in actions:
        _record(
            at,
            each,
            release,
            model_version=verdict.candidate_version,
            before=before,
            changed=each == "promote",
            reason=reason,
            evidence={"verdict": _json(asdict(verdict))},
            key=verdict.verdict_id,
        )
    return release


def _put_back(at: cursor, use_case: UseCase, *, actor: str, reason: str, as_of: datetime, key: str) -> Release:
    champion = _locked_champion(at, use_case)
    done = _done(at, key)
    if done is not None:
        return done
    if champion is None or champion.previous_version is None:
        raise ValueError(f"{use_case.name} has no previous champion to go back to")
    if as_of < champion.as_of:
        raise ValueError(f"version {champion.version} is champion from {champion.as_of} on, not yet at {as_of}")
    restored = champion.previous_version
    after = Champion(
        use_case=use_case.name,
        version=restored,
        previous_version=_champion_before(at, use_case, restored),
        revision=champion.revision + 1,
        as_of=as_of,
    )
    _install(at, after, champion)
    release = _release(use_case, OUTCOMES["rollback"], after, as_of, actor)
    _record(
        at,
        "rollback",
        release,
        model_version=restored,
        before=champion.version,
        changed=True,
        reason=reason,
        evidence={},
        key=key,
    )
    return release


def _locked_champion(at: cursor, use_case: UseCase) -> Champion | None:
    """The champion, which nobody else can change until this transaction ends."""
    at.execute("select pg_advisory_xact_lock(hashtext('champion'), hashtext(%s))", (use_case.name,))
    at.execute(_CURRENT, (use_case.name,))
    return _champion(use_case, [dict(row) for row in at.fetchall()])


def _install(at: cursor, after: Champion, before: Champion | None) -> None:
    """Swap the row, comparing its revision: the lock makes this certain, the comparison makes it checked."""
    at.execute(
        "insert into champions as c (use_case, revision, version, previous_version, as_of) values (%s, %s, %s, %s, %s)"
        " on conflict (use_case) do update set revision = excluded.revision, version = excluded.version,"
        " previous_version = excluded.previous_version, as_of = excluded.as_of, changed_at = now()"
        " where c.revision = %s",
        (
            after.use_case,
            after.revision,
            after.version,
            after.previous_version,
            after.as_of,
            before.revision if before else None,
        ),
    )
    assert at.rowcount == 1, f"{after.use_case}: the champion changed under the lock"


def _champion_before(at: cursor, use_case: UseCase, version: str) -> str | None:
    at.execute(
        "select champion_version from ledger where use_case = %s and action = 'promote' and model_version = %s"
        " order by entry desc limit 1",
        (use_case.name, version),
    )
    row = at.fetchone()
    return row[0] if row else None


def _record(
    at: cursor,
    action: str,
    release: Release,
    *,
    model_version: str,
    before: str | None,
    changed: bool,
    reason: str,
    evidence: dict[str, Any],
    key: str,
) -> None:
    at.execute(
        "insert into ledger (use_case, action, model_version, champion_version, revision, as_of, actor, reason,"
        " evidence, verdict_id) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            release.use_case,
            action,
            model_version,
            before,
            release.revision if changed else None,
            release.as_of,
            release.actor,
            reason,
            json.dumps({**evidence, "release": _json(asdict(release))}, allow_nan=False),
            key,
        ),
    )


def _done(at: cursor, key: str) -> Release | None:
    """What was done about a verdict or request before."""
    at.execute(
        "select evidence -> 'release' from ledger where verdict_id = %s and action = any(%s)", (key, list(OUTCOMES))
    )
    row = at.fetchone()
    return Release(**{**row[0], "as_of": datetime.fromisoformat(row[0]["as_of"])}) if row else None


def _release(use_case: UseCase, outcome: str, champion: Champion | None, as_of: datetime, actor: str) -> Release:
    return Release(
        use_case=use_case.name,
        outcome=outcome,
        champion_version=champion.version if champion else None,
        previous_version=champion.previous_version if champion else None,
        revision=champion.revision if champion else 0,
        as_of=as_of,
        actor=actor,
    )


def _champion(use_case: UseCase, rows: list[dict[str, Any]]) -> Champion | None:
    return Champion(use_case=use_case.name, **rows[0]) if rows else None


def _json(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in values.items()}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
