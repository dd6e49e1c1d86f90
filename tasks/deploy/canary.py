"""What one version answered to real requests: by the gateway's records, and by the prediction log."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from tasks.deploy.batch_scores import NO_SCORES, ScoreCheck, check_scores
from tasks.deploy.judge import TrafficTally, compute_p99
from tasks.score import load_batch_predictor

if TYPE_CHECKING:
    from adapters.connect import Outside
    from adapters.gateway import GatewayRecord
    from pipeline.spec import UseCase
    from serving.predictor import Predictor
    from tasks.deploy.deployments import Deployment

_SERVER_ERROR = 500
_NOT_OURS = ("client", "overload")  # went away by itself; was turned away at the gateway
_OVERLAP = timedelta(seconds=15)  # an answer may reach the log that much later than others
_MOST_AT_ONCE = 20_000
_NEW = """
select request_id, position, entity_key, event_time, score, features, answered_at from online_answers
where use_case = %s and model_version = %s and slot = %s and answered_at >= %s order by answered_at limit %s
"""
_LATEST = """
select request_id, score, features from online_answers
where use_case = %s and model_version = %s and slot = %s and answered_at >= %s order by answered_at desc limit %s
"""


class AnswerChecker:
    """Computes each logged answer of a version again from its features, once, as it comes."""

    def __init__(
        self,
        deployment: "Deployment",
        slot: str,
        outside: "Outside",
        *,
        load_predictor: "Callable[[], Predictor]",
    ) -> None:
        self._deployment, self._slot, self._outside = deployment, slot, outside
        self._load_predictor = load_predictor
        self._since = deployment.stage_since
        self._seen: set[tuple[Any, ...]] = set()
        self._total = NO_SCORES

    def check(self) -> ScoreCheck:
        """What all of the stage's answers so far came to."""
        d = self._deployment
        rows = self._outside.warehouse.query(_NEW, (d.use_case, d.version, self._slot, self._since, _MOST_AT_ONCE))
        fresh = [row for row in rows if _key(row) not in self._seen]
        if fresh:  # a model is not loaded for nothing
            self._seen.update(map(_key, fresh))
            checked = check_scores(self._load_predictor(), fresh)
            self._total = ScoreCheck(
                answers=len(self._seen),
                requests=len({request_id for request_id, *_ in self._seen}),
                max_difference=max(self._total.max_difference or 0.0, checked.max_difference or 0.0),
            )
            self._since = max(self._since, fresh[-1]["answered_at"] - _OVERLAP)
        return self._total


def _key(row: "Mapping[str, Any]") -> tuple[Any, ...]:
    return row["request_id"], row["position"], row["entity_key"], row["event_time"]


def is_about_version(record: "GatewayRecord") -> bool:
    """Whether a record says anything about the version: one that the client or the gateway ended does not."""
    return record.cause not in _NOT_OURS


def is_failure(record: "GatewayRecord", *, forgiving: bool) -> bool:
    """Whether the version is to blame: a request that was refused (4xx) was answered.

    Args:
        record: of the gateway.
        forgiving: count what the client saw; else also what it was spared, by a retry or by the static answer.
    """
    spared = record.retries > 0 and not forgiving
    return record.status >= _SERVER_ERROR or record.status <= 0 or record.static or spared


def check_latest_answers(
    use_case: "UseCase", version: str, since: datetime, outside: "Outside", *, most: int
) -> ScoreCheck:
    """The latest logged answers of the stable version since a moment, computed again from their features."""
    rows = outside.warehouse.query(_LATEST, (use_case.name, version, "stable", since, most))
    return check_scores(load_batch_predictor(use_case, version, outside), rows) if rows else NO_SCORES


def tally_traffic(
    records: Iterable["GatewayRecord"], checked: ScoreCheck, *, max_ms: float, forgiving: bool = False
) -> TrafficTally:
    """Records of one version, each once however often the gateway's memory was read, and what its log gave.

    The budget is for one event a request; lists and explanations may take longer, and so may what was tried twice.
    """
    each = {(record.request_id, record.at): record for record in records if is_about_version(record)}.values()
    durations_ms = [r.milliseconds for r in each if r.verb == "predict" and not r.is_list and not r.retries]
    return TrafficTally(
        requests=len(each),
        errors=sum(is_failure(record, forgiving=forgiving) for record in each),
        p99_ms=compute_p99(durations_ms),
        timed=len(durations_ms),
        slow=sum(milliseconds > max_ms for milliseconds in durations_ms),
        checked=checked.requests,
        max_difference=checked.max_difference,
    )
