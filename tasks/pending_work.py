"""Which steps have work waiting, found by few and cheap queries: `reconcile` repeats them every ten minutes."""

from collections.abc import Callable

from adapters.connect import Outside
from pipeline.spec import UseCase


def _find_unmonitored(use_case: UseCase, outside: Outside) -> object:
    """Partitions to be decided on, or a recalibration that was asked for."""
    from tasks.monitor.monitor import find_undecided
    from tasks.promote.recalibrate import find_asked

    return find_asked(use_case, outside) or find_undecided(use_case, outside)


def find_pending_verbs(use_case: UseCase, outside: Outside) -> list[str]:
    """The DAGs, by their verbs, that reconcile from the database and have something to do."""
    from tasks.build_features.build import pending_partitions
    from tasks.deploy.deploy import find_undeployed
    from tasks.score import find_unscored

    searches: dict[str, Callable[[UseCase, Outside], object]] = {
        "build_features": pending_partitions,
        "score": find_unscored,
        "monitor": _find_unmonitored,
        "deploy": find_undeployed,
    }
    with outside.warehouse.session():
        return [verb for verb, search in searches.items() if search(use_case, outside)]
