"""What one version answered to real requests: by the gateway's records, and by the prediction log."""

from collections.abc import Iterable
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


def failed(record: "Record") -> bool:
    """Whether the server is to blame: a request that was refused (4xx) was answered."""
    return record.status >= _SERVER_ERROR or record.status <= 0


def logged(
    use_case: "UseCase",
    version: str,
    slots: Iterable[str],
    since: datetime,
    outside: "Outside",
    *,
    batch: "Predictor",
    most: int = _MOST_CHECKED,
) -> recompute.Checked:
    """The logged answers of a version since a moment, computed again from their features."""
    rows = outside.warehouse.fetch(_LOGGED, (use_case.name, version, list(slots), since, most))
    return recompute.check(batch, rows)


def tally(records: Iterable["Record"], checked: recompute.Checked) -> Tally:
    """Records of one version, each request once however often the ring was read, and what its log gave."""
    each = {record.request_id: record for record in records}.values()
    return Tally(
        requests=len(each),
        errors=sum(failed(record) for record in each),
        p99_ms=p99([record.milliseconds for record in each]),
        checked=checked.requests,
        max_difference=checked.max_difference,
    )
