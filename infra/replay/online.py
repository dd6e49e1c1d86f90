"""The online server at the end of a replay: one request and its answer, and how training, batch and online agree."""

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from adapters.connect import Outside
from adapters.gateway import Gateway
from adapters.retrying import retry_call, wait_until
from features import FeatureSet
from infra.replay.state import ReplayError
from pipeline.spec import UseCase
from serving.reasons import DegradedReason
from tasks.build_features.learnt_features import load_learnt_definition
from tasks.common import ledger
from tasks.deploy.golden import choose_golden_rows
from tasks.deploy.server import read_score
from tasks.score import load_batch_predictor

if TYPE_CHECKING:
    from serving.predictor import Predictor

ROWS = 1000
LOGGED_WITHIN_SECONDS = 30.0
_POLL_SECONDS = 0.2
_EVENTS_AT_ONCE = 50
_ATTEMPTS = 10
_STORE_REST_SECONDS = 1.0  # so long the server leaves a silent store alone
_LOGGED = """
select request_id, position, features from online_answers where use_case = %s and request_id like %s
"""
_ANSWERED = """
select model_version, slot, count(*) as answers, avg(degraded::int) as degraded, max(feature_age_seconds) as oldest,
    percentile_cont(0.99) within group (order by server_ms) as p99_ms
from online_answers where use_case = %s and slot in ('stable', 'candidate') group by 1, 2 order by 1, 2
"""


class _StoreSilentError(ReplayError):
    """The feature store did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The same real events through every door. Differences are the largest over all rows (and features)."""

    rows: int
    version: str
    features_compared: int
    numbers_difference: float
    categories_differing: int
    score_difference: float
    degraded: int

    def holds(self, tolerance: float) -> bool:
        """Whether online says what training and batch say."""
        largest = np.max([self.numbers_difference, self.score_difference])  # a NaN stays one, and is within nothing
        return bool(self.rows > 0 and not self.categories_differing and largest <= tolerance)


@dataclass(frozen=True, kw_only=True)
class OnlineSummary:
    """What the report shows of the online server."""

    request: dict[str, Any]
    answer: dict[str, Any]
    parity: Parity
    answered: list[dict[str, Any]]


def summarise_online(use_case: UseCase, outside: Outside, *, rows: int = ROWS) -> OnlineSummary | None:
    """Ask real events of the latest partitions through the gateway, and compare; None without a gateway or a champion.

    Raises:
        ReplayError: the gateway answers with something else than answers, or the answers do not reach the warehouse.
    """
    if outside.gateway is None or use_case.endpoint is None:
        return None
    champion = ledger.current(use_case, outside)
    if champion is None:
        return None
    definition = load_learnt_definition(use_case, champion.version, outside)
    points, events = choose_golden_rows(use_case, definition, outside, rows)
    answers, keys = _ask_events(use_case, outside.gateway, events)
    online = _load_logged(use_case, outside, keys)
    batch = load_batch_predictor(use_case, answers[0]["model_version"], outside)
    return OnlineSummary(
        request=events[0],
        answer=answers[0],
        parity=_compare(definition, batch, points, online, answers),
        answered=outside.warehouse.query(_ANSWERED, (use_case.name,)),
    )


def _ask_events(
    use_case: UseCase, gateway: Gateway, events: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[tuple[str, int]]]:
    """Every event's answer, and the request and position under which it is logged."""
    name = f"parity-{uuid.uuid4().hex}"
    answers: list[dict[str, Any]] = []
    keys: list[tuple[str, int]] = []
    for first in range(0, len(events), _EVENTS_AT_ONCE):
        chunk = events[first : first + _EVENTS_AT_ONCE]
        chunk_answers, request_id = _ask_patiently(use_case, gateway, chunk, f"{name}-{first}")
        answers += chunk_answers
        keys += [(request_id, position) for position in range(len(chunk_answers))]
    return answers, keys


def _ask_patiently(
    use_case: UseCase, gateway: Gateway, events: list[dict[str, Any]], name: str
) -> tuple[list[dict[str, Any]], str]:
    """Ask again where the store was silent: history nobody asked for yet may take longer than an answer may."""
    request_ids = (f"{name}-{attempt}" for attempt in range(_ATTEMPTS))

    def ask() -> tuple[list[dict[str, Any]], str]:
        request_id = next(request_ids)
        reply = gateway.ask(use_case.name, events, request_id=request_id)
        if reply.status != 200 or not isinstance(reply.body, list):
            raise ReplayError(f"{len(events)} events were answered with {reply.status}: {str(reply.body)[:300]}")
        if any(DegradedReason.STORE_SILENT in answer["reasons"] for answer in reply.body):
            raise _StoreSilentError(f"the feature store did not answer {len(events)} events in {_ATTEMPTS} attempts")
        return reply.body, request_id

    return retry_call(ask, errors=_StoreSilentError, attempts=_ATTEMPTS, pause_seconds=_STORE_REST_SECONDS)


def _load_logged(use_case: UseCase, outside: Outside, keys: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """The features each answer was computed from, as they reached the warehouse."""
    name = keys[0][0].rsplit("-", 2)[0]
    logged: dict[tuple[str, int], dict[str, Any]] = {}

    def is_complete() -> bool:
        rows = outside.warehouse.query(_LOGGED, (use_case.name, f"{name}-%"))
        logged.update({(row["request_id"], row["position"]): row["features"] for row in rows})
        return logged.keys() >= set(keys)

    # They come within a second of the answer.
    if not wait_until(is_complete, within_seconds=LOGGED_WITHIN_SECONDS, every_seconds=_POLL_SECONDS):
        raise ReplayError(
            f"{len(set(keys) - logged.keys())} of {len(keys)} answers did not reach the warehouse in"
            f" {LOGGED_WITHIN_SECONDS:.0f} s: the shipper's log"
        )
    return [logged[key] for key in keys]


def _compare(
    definition: FeatureSet,
    batch: "Predictor",
    points: pa.Table,
    online: list[dict[str, Any]],
    answers: list[dict[str, Any]],
) -> Parity:
    numbers = max(_largest(points[name], [row.get(name) for row in online]) for name in definition.numeric)
    categories = sum(
        batch != row.get(name)
        for name in definition.categorical
        for batch, row in zip(points[name].to_pylist(), online, strict=True)
    )
    scores = np.array([read_score(answer) for answer in answers])
    return Parity(
        rows=len(answers),
        version=answers[0]["model_version"],
        features_compared=len(definition.numeric) + len(definition.categorical),
        numbers_difference=numbers,
        categories_differing=categories,
        score_difference=float(np.max(np.abs(batch.predict(points) - scores))),
        degraded=sum(answer["degraded"] for answer in answers),
    )


def _largest(batch: pa.ChunkedArray, online: list[float | None]) -> float:
    """Largest difference of one feature; infinite where one has a value and the other has none."""
    left, right = (np.array(values, np.float64) for values in (batch.to_pylist(), online))  # None becomes NaN
    if not np.array_equal(np.isnan(left), np.isnan(right)):
        return float("inf")
    return float(np.nanmax(np.abs(left - right), initial=0.0))
