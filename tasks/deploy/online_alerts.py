"""What people are called about when online answers are not well, until a later look finds them well."""

from enum import StrEnum
from typing import TYPE_CHECKING

from pipeline.spec import UseCase

if TYPE_CHECKING:
    from adapters.alerts import Tier
    from adapters.connect import Outside


class OnlineTrouble(StrEnum):
    """What is the matter, as the end of the alert's fingerprint."""

    REVERTED = "deploy.reverted"
    STABLE = "watch.stable"
    GATEWAY = "watch.gateway"
    SERVER = "watch.server"
    RECONCILE = "watch.mending"
    BUNDLE = "watch.bundle"
    STORE = "watch.store"
    DEGRADED = "watch.degraded"
    LOST = "watch.lost"


def raise_online_alert(
    use_case: UseCase, outside: "Outside", trouble: OnlineTrouble, *, title: str, body: str, tier: "Tier" = "critical"
) -> None:
    """Tell people, with the runbook that helps."""
    runbook = "reverted-rollout" if trouble is OnlineTrouble.REVERTED else "degraded-answers"
    outside.alerts.raise_alert(
        tier,
        use_case.name,
        f"{use_case.name}.{trouble}",
        f"{use_case.name}: {title}",
        f"{body}\ndocs/runbooks/{runbook}.md",
    )


def resolve_online_alert(use_case: UseCase, outside: "Outside", trouble: OnlineTrouble) -> None:
    """It is over."""
    outside.alerts.resolve(f"{use_case.name}.{trouble}")
