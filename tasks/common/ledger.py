"""Who is champion, now and at any data time, and the append-only record of how it came to be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg2.extensions import cursor

from adapters.connect import Outside
from pipeline.handoffs import Release, ReleaseOutcome
from pipeline.spec import UseCase


class LedgerAction(StrEnum):
    """What an entry about the champion records; the values are stored."""

    PROMOTE = "promote"
    HOLD = "hold"
    REFUSE = "refuse"
    NEED_MORE_DATA = "need-more-data"
    SUPERSEDED = "superseded"
    REJECT = "reject"
    ROLLBACK = "rollback"
    RECALIBRATE = "recalibrate"
    APPROVE = "approve"


OUTCOMES: Mapping[LedgerAction, ReleaseOutcome] = {
    LedgerAction.PROMOTE: ReleaseOutcome.PROMOTED,
    LedgerAction.HOLD: ReleaseOutcome.HELD,
    LedgerAction.REFUSE: ReleaseOutcome.REFUSED,
    LedgerAction.NEED_MORE_DATA: ReleaseOutcome.NEED_MORE_DATA,
    LedgerAction.SUPERSEDED: ReleaseOutcome.SUPERSEDED,
    LedgerAction.REJECT: ReleaseOutcome.REJECTED,
    LedgerAction.ROLLBACK: ReleaseOutcome.ROLLED_BACK,
    LedgerAction.RECALIBRATE: ReleaseOutcome.RECALIBRATED,
}
_CURRENT = """
select c.version, c.previous_version, c.revision, c.as_of, coalesce(r.network_version, c.version) as network_version
from champions c left join recalibrations r on (r.use_case, r.model_version) = (c.use_case, c.version)
where c.use_case = %s
"""
_CHAMPIONS = """
select l.model_version as version, l.evidence -> 'release' ->> 'previous_version' as previous_version, l.revision,
    l.as_of, coalesce(r.network_version, l.model_version) as network_version
from ledger l left join recalibrations r on (r.use_case, r.model_version) = (l.use_case, l.model_version)
where l.use_case = %s and l.action in ('promote', 'rollback', 'recalibrate') order by l.entry
"""
DROP_RECALIBRATION = (
    "update recalibrations set state = 'superseded', changed_at = now() where use_case = %s and state = 'pending'"
)
NETWORK = "select network_version from recalibrations where use_case = %s and model_version = %s"


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The model in force; `previous_version` is what a rollback would bring back.

    `network_version` is the version that was trained: itself, or what it is a recalibration of.
    """

    use_case: str
    version: str
    previous_version: str | None
    revision: int
    as_of: datetime
    network_version: str


def current(use_case: UseCase, outside: Outside) -> Champion | None:
    """The champion now; None before the first."""
    return _champion(use_case, outside.warehouse.query(_CURRENT, (use_case.name,)))


def load_champions(use_case: UseCase, outside: Outside) -> list[Champion]:
    """Every champion of the ledger, in the order in which they were put in force."""
    return [Champion(use_case=use_case.name, **row) for row in outside.warehouse.query(_CHAMPIONS, (use_case.name,))]


def champion_at(champions: Sequence[Champion], moment: datetime) -> Champion | None:
    """The one in force at a data time, by the ledger and so the same for ever after; None before the first."""
    return next((champion for champion in reversed(champions) if champion.as_of <= moment), None)


def find_birth(champions: Sequence[Champion], network_version: str) -> datetime:
    """The data time that a network was trained for: from then on it was first in force, whatever came later."""
    return min(champion.as_of for champion in champions if champion.network_version == network_version)


def find_judged_version(use_case: UseCase, version: str, outside: Outside) -> str:
    """The version by which a champion was judged: its twin of before it was fitted on all that was known, or itself.

    Of a recalibrated one it is that of what was trained.
    """
    version = find_network(use_case, version, outside)
    rows = outside.warehouse.query(
        "select evidence ->> 'judged_version' as judged from ledger where use_case = %s and action = 'promote'"
        " and model_version = %s order by entry desc limit 1",
        (use_case.name, version),
    )
    return rows[0]["judged"] or version if rows else version  # one of before was judged itself


def find_network(use_case: UseCase, version: str, outside: Outside) -> str:
    """The version that was trained, of which this one is a recalibration; or itself."""
    rows = outside.warehouse.query(NETWORK, (use_case.name, version))
    return str(rows[0]["network_version"]) if rows else version


def is_same_network(use_case: UseCase, version: str, other: str, outside: Outside) -> bool:
    """Whether two versions differ by a recalibration at most."""
    return find_network(use_case, version, outside) == find_network(use_case, other, outside)


def was_promoted(use_case: UseCase, version: str, outside: Outside) -> bool:
    """Whether the gate has let a version in, or what it is a recalibration of."""
    let_in = "select 1 from ledger where use_case = %s and model_version = %s and action in ('promote', 'recalibrate')"
    return bool(outside.warehouse.query(f"{let_in} limit 1", (use_case.name, version)))


def locked_champion(at: cursor, use_case: UseCase) -> Champion | None:
    """The champion, which nobody else can change until this transaction ends."""
    at.execute("select pg_advisory_xact_lock(hashtext('champion'), hashtext(%s))", (use_case.name,))
    at.execute(_CURRENT, (use_case.name,))
    return _champion(use_case, [dict(row) for row in at.fetchall()])


def install(at: cursor, after: Champion, before: Champion | None) -> None:
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


def champion_before(at: cursor, use_case: UseCase, version: str) -> str | None:
    """Who was champion before a version became it; None for the first."""
    at.execute(
        "select champion_version from ledger where use_case = %s and action in ('promote', 'recalibrate')"
        " and model_version = %s order by entry desc limit 1",
        (use_case.name, version),
    )
    row = at.fetchone()
    return row[0] if row else None


def record(
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
    """Append one entry; `changed` where it changed who serves."""
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
            json.dumps({**evidence, "release": plain(asdict(release))}, allow_nan=False),
            key,
        ),
    )


def done_before(at: cursor, key: str) -> Release | None:
    """What was done about a verdict or request before."""
    at.execute(
        "select evidence -> 'release' from ledger where verdict_id = %s and action = any(%s)",
        (key, list(OUTCOMES)),
    )
    row = at.fetchone()
    return Release(**{**row[0], "as_of": datetime.fromisoformat(row[0]["as_of"])}) if row else None


def release_of(use_case: UseCase, outcome: str, champion: Champion | None, as_of: datetime, actor: str) -> Release:
    """The release that says what was done, with the champion as it is afterwards."""
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


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, as JSON has them."""
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in values.items()}
