"""What one version answered to real requests: by the gateway's records, and by the prediction log."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from tasks import recompute
from tasks.rollout import Tally, p99

if TYPE_CHECKING:
    from adapters.connect import Outside
    from adapters.gateway import Record
    from pipeline.spec import UseCase
    from serving.predictor import Predictor

_SERVER_ERROR = 500
_MOST_CHECKED = 5000  # answers, the latest
_LOGGED = """
select request_id, score, features from online_answers
where use_case = %s and model_version = %s and slot = any(%s) and answered_at >= %s order by answered_at desc limit %s
"""


def failed(record: "Record", *, forgiving: bool) -> bool:
    """Whether the version is to blame: a request that was refused (4xx) was answered.

    Args:
        record: of the gateway.
        forgiving: count what the client saw; else also what it was spared, by a retry or by the static answer.
    """
    spared = record.retries > 0 and not forgiving
    return record.status >= _SERVER_ERROR or record.status <= 0 or record.static or spared


def logged(
    use_case: "UseCase",
    version: str,
    slots: Iterable[str],
    since: datetime,
    outside: "Outside",
    *,
    batch: "Callable[[], Predictor]",
    most: int = _MOST_CHECKED,
) -> recompute.Checked:
    """The logged answers of a version since a moment, computed again from their features by its batch path."""
    rows = outside.warehouse.fetch(_LOGGED, (use_case.name, version, list(slots), since, most))
    return recompute.check(batch(), rows) if rows else recompute.NOTHING  # a model is not loaded for nothing


def tally(records: Iterable["Record"], checked: recompute.Checked, *, forgiving: bool = False) -> Tally:
    """Records of one version, each once however often the gateway's memory was read, and what its log gave."""
    each = {(record.request_id, record.at): record for record in records}.values()
    return Tally(
        requests=len(each),
        errors=sum(failed(record, forgiving=forgiving) for record in each),
        p99_ms=p99([record.milliseconds for record in each]),
        checked=checked.requests,
        max_difference=checked.max_difference,
    )
