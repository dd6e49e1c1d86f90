"""Who serves: a compare-and-swap in Postgres with an append-only ledger; the registry's aliases are its mirror.

The `champions` row and the ledger entry commit in one transaction under one advisory lock per use case. MLflow lets the
last writer of an alias win and cannot take part in a transaction, so aliases are set afterwards from the row, under the
same lock, and read back; a kill in between is mended by the next call. With MLflow down nothing is begun.
"""

import hashlib
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from psycopg2.extensions import cursor

from adapters.connect import Outside
from pipeline.handoffs import RefittedWinner, Release, ReleaseOutcome, Verdict, VerdictAnswer
from pipeline.spec import UseCase
from tasks.common.ledger import (
    DROP_RECALIBRATION,
    NETWORK,
    OUTCOMES,
    Champion,
    LedgerAction,
    champion_before,
    current,
    done_before,
    install,
    locked_champion,
    plain,
    record,
    release_of,
)

__all__ = ["Champion", "current", "promote", "reconcile_aliases", "resolve", "roll_back_champion", "will_promote"]

_NOBODY = {"", "anonymous", "none", "null", "unknown"}


def resolve(verdict: Verdict, champion: Champion | None, *, approved: bool | None) -> tuple[LedgerAction, str]:
    """The ledger action that follows from a verdict, and its reason. Pure."""
    because = "; ".join(verdict.reasons)
    if verdict.answer != VerdictAnswer.PROMOTE:
        return LedgerAction(verdict.answer), because
    if approved is False or (verdict.needs_approval and approved is None):
        refusal = "nobody approved it" if approved is None else "not approved"
        return LedgerAction.REJECT, f"{refusal}; the gate said: {because}"
    network = champion.network_version if champion else None  # however often it was recalibrated meanwhile
    if network != verdict.champion_version:
        judged = f"version {verdict.champion_version}" if verdict.champion_version else "no champion"
        return LedgerAction.SUPERSEDED, f"judged against {judged}, but version {network} serves now: judge it again"
    was_recalibrated = champion is not None and champion.version != champion.network_version
    if champion and verdict.as_of < champion.as_of and not was_recalibrated:
        return LedgerAction.SUPERSEDED, f"asked for as of {verdict.as_of}, but the champion is as of {champion.as_of}"
    return LedgerAction.PROMOTE, because


def promote(
    use_case: UseCase,
    verdict: Verdict,
    outside: Outside,
    *,
    actor: str,
    approved: bool | None = None,
    dry_run: bool = False,
    refitted: RefittedWinner | None = None,
) -> Release:
    """Follow a verdict, once: called again, it answers the same and writes nothing.

    Args:
        use_case: whose champion it is.
        verdict: of `tasks.promote.evaluate.judge_candidate`.
        outside: the outside world.
        actor: who or what acts; whoever approved, where approval is needed.
        approved: what that person said; None when nobody was asked. An approval that expired is a False.
        dry_run: write nothing.
        refitted: of `tasks.promote.winner.refit_winner`. None: the winner is promoted as it was judged.

    Raises:
        ValueError: approval without a name, a verdict of another use case, or a refit of another version.
        ConnectionError: the registry is down; the champion is as it was, and the same call may succeed later.
    """
    verdict = _checked(use_case, verdict, actor=actor, approved=approved)
    if dry_run:
        return release_of(use_case, ReleaseOutcome.DRY_RUN, current(use_case, outside), verdict.as_of, actor)
    if refitted is not None and refitted.judged_version != verdict.candidate_version:
        raise ValueError(f"version {refitted.judged_version} was refitted, {verdict.candidate_version} was judged")
    reconcile_aliases(use_case, outside)
    if verdict.answer == VerdictAnswer.PROMOTE:
        version = refitted.promoted_version if refitted else verdict.candidate_version
        outside.registry.version(use_case.name, version)  # raises unless it is registered

    def commit() -> Release:
        with outside.warehouse.transaction() as at:
            return _follow(at, use_case, verdict, refitted, actor=actor, approved=approved)

    release = outside.warehouse.retry_transaction(commit)
    if release.outcome == ReleaseOutcome.PROMOTED:
        reconcile_aliases(use_case, outside)
    return release


def will_promote(
    use_case: UseCase, verdict: Verdict, outside: Outside, *, actor: str, approved: bool | None = None
) -> bool:
    """Whether following a verdict now would promote: nothing is trained for what would not.

    Raises:
        ValueError: as `promote`.
    """
    verdict = _checked(use_case, verdict, actor=actor, approved=approved)
    action, _ = resolve(verdict, current(use_case, outside), approved=approved)
    return action == LedgerAction.PROMOTE


def roll_back_champion(
    use_case: UseCase, outside: Outside, *, actor: str, reason: str, as_of: datetime, request_id: str | None = None
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
            return _restore_previous(at, use_case, actor=actor, reason=reason, as_of=as_of, key=key)

    release = outside.warehouse.retry_transaction(commit)
    reconcile_aliases(use_case, outside)
    return release


def reconcile_aliases(use_case: UseCase, outside: Outside) -> bool:
    """Make the registry's aliases say what the `champions` row says; whether they had to be changed."""
    with outside.warehouse.transaction() as at:
        champion = locked_champion(at, use_case)
        if champion is None:
            return False
        wanted = {"champion": champion.version, "previous_champion": champion.previous_version}
        if outside.registry.aliases(use_case.name) == {name: v for name, v in wanted.items() if v is not None}:
            return False
        outside.registry.set_aliases(use_case.name, champion.version, champion.previous_version)
    return True


def _checked(use_case: UseCase, verdict: Verdict, *, actor: str, approved: bool | None) -> Verdict:
    """The verdict, needing approval whenever the use case's risk says so, whatever the verdict claims."""
    if verdict.use_case != use_case.name:
        raise ValueError(f"the verdict is about {verdict.use_case}, not {use_case.name}")
    if not actor.strip():
        raise ValueError("the ledger names who acted: actor is empty")
    needs_approval = verdict.answer == VerdictAnswer.PROMOTE and (verdict.needs_approval or use_case.risk == "high")
    if needs_approval and approved and (actor.strip().lower() in _NOBODY or actor.startswith("nobody")):
        raise ValueError(
            f"approved by {actor!r}: high risk needs a named person. In Airflow, give people users of their own"
            " (simple_auth_manager_all_admins records everyone as Anonymous), then clear this task"
        )
    return replace(verdict, needs_approval=needs_approval)


def _follow(
    at: cursor,
    use_case: UseCase,
    verdict: Verdict,
    refitted: RefittedWinner | None,
    *,
    actor: str,
    approved: bool | None,
) -> Release:
    champion = locked_champion(at, use_case)
    if done := done_before(at, verdict.verdict_id):
        return done
    action, reason = resolve(verdict, champion, approved=approved)
    before = champion.version if champion else None
    after, version, as_of = champion, verdict.candidate_version, verdict.as_of
    evidence: dict[str, Any] = {"verdict": plain(asdict(verdict))}
    if refitted is not None:
        evidence |= {"judged_version": version, "refitted": asdict(refitted)}
    if action == LedgerAction.PROMOTE:
        if refitted is not None:
            version, reason = refitted.promoted_version, f"{reason}; {_describe_refit(refitted)}"
        as_of = max(as_of, champion.as_of) if champion else as_of  # it may have been recalibrated since
        after = Champion(
            use_case=use_case.name,
            version=version,
            previous_version=before,
            revision=champion.revision + 1 if champion else 1,
            as_of=as_of,
            network_version=version,
        )
        install(at, after, champion)
    release = release_of(use_case, OUTCOMES[action], after, as_of, actor)
    for each in [LedgerAction.APPROVE, action] if verdict.needs_approval and approved else [action]:
        record(
            at,
            each,
            release,
            model_version=version if each == action else verdict.candidate_version,
            before=before,
            changed=each == LedgerAction.PROMOTE,
            reason=reason,
            evidence=evidence,
            key=verdict.verdict_id,
        )
    return release


def _describe_refit(refitted: RefittedWinner) -> str:
    if refitted.reasons:
        return f"as it was judged, for its refit was turned down: {'; '.join(refitted.reasons)}"
    return f"version {refitted.judged_version} was judged, and refitted on all that was known"


def _restore_previous(at: cursor, use_case: UseCase, *, actor: str, reason: str, as_of: datetime, key: str) -> Release:
    champion = locked_champion(at, use_case)
    if done := done_before(at, key):
        return done
    if champion is None or champion.previous_version is None:
        raise ValueError(f"{use_case.name} has no previous champion to go back to")
    if as_of < champion.as_of:
        raise ValueError(f"version {champion.version} is champion from {champion.as_of} on, not yet at {as_of}")
    restored = champion.previous_version
    at.execute(NETWORK, (use_case.name, restored))
    trained = at.fetchone()
    after = Champion(
        use_case=use_case.name,
        version=restored,
        previous_version=champion_before(at, use_case, restored),
        revision=champion.revision + 1,
        as_of=as_of,
        network_version=trained[0] if trained else restored,
    )
    install(at, after, champion)
    at.execute(DROP_RECALIBRATION, (use_case.name,))
    release = release_of(use_case, OUTCOMES[LedgerAction.ROLLBACK], after, as_of, actor)
    record(
        at,
        LedgerAction.ROLLBACK,
        release,
        model_version=restored,
        before=champion.version,
        changed=True,
        reason=reason,
        evidence={},
        key=key,
    )
    return release


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
