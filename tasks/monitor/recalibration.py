"""Whether the champion is to be recalibrated: what is measured of it, and how it came to be in force."""

import logging
from datetime import datetime

from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from pipeline.spec import UseCase
from tasks.build_features.learnt_features import UncomputableFeatures
from tasks.common.ledger import Champion, current
from tasks.train.recalibration import MeasuredIntercept, measure_intercept

logger = logging.getLogger(__name__)


def measure_champion(
    use_case: UseCase, champion: Champion, snapshot_version: str, as_of: datetime, outside: Outside
) -> MeasuredIntercept | None:
    """How far a champion's answers are off on average, by the labels known at a data time.

    None where answers stay as they were trained, where another network is champion by now, and where its bundle, or the
    clean data of weeks ago that an older definition reads, cannot be had any more.
    """
    if use_case.monitor.recalibration is None:
        return None
    now = current(use_case, outside)
    if now is None or now.network_version != champion.network_version:
        return None
    try:
        return measure_intercept(use_case, now.version, snapshot_version, as_of, outside)
    except (Missing, Corrupt, UncomputableFeatures) as error:
        logger.warning("version %s cannot be recalibrated: %s", now.version, error)
        return None


def find_latest_rollback(use_case: UseCase, as_of: datetime, outside: Outside) -> datetime | None:
    """The data time from which on a rollback held, the latest by now; None: there was none."""
    return _find_latest(use_case, as_of, ["rollback"], outside)


def find_latest_switch(use_case: UseCase, as_of: datetime, outside: Outside) -> datetime | None:
    """From which data time on another champion was in force than before: a first one replaced nobody."""
    return _find_latest(use_case, as_of, ["promote", "rollback"], outside)


def _find_latest(use_case: UseCase, as_of: datetime, actions: list[str], outside: Outside) -> datetime | None:
    [row] = outside.warehouse.query(
        "select max(as_of) as latest from ledger where use_case = %s and as_of <= %s and action = any(%s)"
        " and champion_version is not null",
        (use_case.name, as_of, actions),
    )
    latest: datetime | None = row["latest"]
    return latest
