"""Standing challengers: who was held, not being surely better, is judged again on the days that have come since.

Evidence adds up: none of the rows from the challenger's holdout on was learnt by it, or by the champion's judged twin.
Each look is a use of the same holdout, so that the chance of a loss that is allowed is shared among them (decision 38).
A challenger stands until another one is judged, or the champion is another network, and for a few looks at most; not
where a look at it failed, or features/ has changed since. What wins is refitted on all that is known by then, as every
winner.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import features
from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from models.bundle_card import read_card
from pipeline.handoffs import Candidate
from pipeline.spec import UseCase
from tasks.train.split import split

logger = logging.getLogger(__name__)

MOST_LOOKS = 4  # the first one included: after it the allowed chance is a sixteenth
# What was judged last, and how often; recalibrations and deployments say nothing of a challenger.
_LATEST = """
select l.action, l.model_version, l.as_of, l.evidence -> 'verdict' ->> 'champion_version' as champion,
    (select count(*) from ledger h where h.use_case = l.use_case and h.model_version = l.model_version
        and h.action = 'hold') as looks,
    exists (select from retrains r where r.use_case = l.use_case and r.challenger = l.model_version
        and r.state = 'failed') as has_failed
from ledger l where l.use_case = %s
    and l.action in ('promote', 'rollback', 'hold', 'refuse', 'need-more-data', 'superseded', 'reject')
order by l.entry desc limit 1
"""


@dataclass(frozen=True, kw_only=True)
class StandingChallenger:
    """A version that was held at a data time, after so many looks at it."""

    version: str
    held_at: datetime
    looks: int


def find_standing(
    use_case: UseCase, network_version: str, as_of: datetime, outside: Outside
) -> StandingChallenger | None:
    """Who stands against a champion's network at a data time; None: nobody, or it cannot be judged again."""
    rows = outside.warehouse.query(_LATEST, (use_case.name,))
    oldest = as_of - MOST_LOOKS * timedelta(days=use_case.grid.days)
    found = choose_standing(rows[0], network_version, oldest, as_of) if rows else None
    if found is None:
        return None
    try:
        card = read_card(outside.registry.download_bundle(use_case.name, found.version))
    except (Missing, Corrupt) as error:
        logger.warning("challenger %s cannot be judged again: %s", found.version, error)
        return None
    return found if _is_of_today(use_case, card) else None


def choose_standing(
    latest: Mapping[str, Any], network_version: str, oldest: datetime, as_of: datetime
) -> StandingChallenger | None:
    """Whether what was judged last stands at a data time, held since and not before another. Pure."""
    is_held = latest["action"] == "hold" and latest["champion"] == network_version and not latest["has_failed"]
    if not is_held or latest["looks"] >= MOST_LOOKS or not oldest <= latest["as_of"] < as_of:
        return None
    return StandingChallenger(version=latest["model_version"], held_at=latest["as_of"], looks=latest["looks"])


def _is_of_today(use_case: UseCase, card: Mapping[str, Any]) -> bool:
    """Whether a model learnt today's features: those of another definition are not in the dataset."""
    return bool(card["features"]["digest"] == features.definition(use_case.name).digest())


def load_challenger(  # noqa: PLR0917  # the order is that of a refit: what, from what, when, why
    use_case: UseCase,
    version: str,
    snapshot_version: str,
    as_of: datetime,
    reason: str,
    decision_id: str | None,
    outside: Outside,
) -> Candidate:
    """A held version as the candidate of a later data time: its holdout goes on until then.

    Raises:
        ValueError: there is no such version, it learnt other features, or it was trained for a later data time.
        Missing, Corrupt: its bundle is not there, or is not the one that was registered.
    """
    known = outside.registry.version(use_case.name, version)
    card = read_card(outside.registry.download_bundle(use_case.name, version))
    moments = split(use_case, datetime.fromisoformat(card["data"]["as_of"]).astimezone(UTC))
    until = split(use_case, as_of).holdout_end
    if not _is_of_today(use_case, card):
        raise ValueError(f"version {version} learnt other features than are defined now: train a model")
    if until < moments.holdout_end:
        raise ValueError(f"version {version} was trained for {card['data']['as_of']}, after {as_of:%Y-%m-%d}")
    return Candidate(
        use_case=use_case.name,
        model_version=version,
        run_id=known.run_id,
        bundle_uri=known.bundle_uri,
        bundle_sha256=known.bundle_sha256,
        snapshot_version=snapshot_version,
        as_of=as_of,
        cutoff=moments.cutoff,
        holdout_start=moments.holdout_start,
        holdout_end=until,
        reason=reason,
        decision_id=decision_id,
    )
