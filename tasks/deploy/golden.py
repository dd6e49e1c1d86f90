"""Real rows, asked as a client would ask them: the server must look up and compute what training and batch have."""

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adapters.connect import Outside
from adapters.retrying import retry_call
from features import FeatureSet
from features.offline_requests import load_past_requests, to_request
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from serving.reasons import DegradedReason
from tasks.build_features import dataset
from tasks.build_features.learnt_features import load_learnt_definition, load_learnt_points
from tasks.build_features.manifest import clean_files
from tasks.deploy.judge import GoldenTally, compute_p99
from tasks.deploy.server import ask_version, measure_bounds_difference, read_score
from tasks.score import load_batch_predictor

if TYPE_CHECKING:
    from models.interval import ConformalInterval

SLOT = "golden"
_MOST_AT_ONCE = 64  # history that nobody asked for yet takes its time
_TRIES, _PAUSE_SECONDS = 10, 1.2  # the server leaves a silent store alone for a second
_STATE = "select since, as_of, snapshot_version from online_state where use_case = %s and definition = %s"


class FeaturesNotReady(ConnectionError):  # noqa: N818  # says what the matter is
    """The online features are not there, which says nothing about the version; the same call may succeed later."""


def ask_golden_rows(use_case: UseCase, version: str, outside: Outside) -> tuple[GoldenTally, dict[str, Any]]:
    """How a registered version answers real rows, all of them in lists and then one by one; and one of the events.

    Raises:
        VersionRejected: it refused a row, or fails on it.
        FeaturesNotReady: there are no online features, or their store does not answer.
        ConnectionError: the server is not there.
    """
    assert use_case.endpoint is not None
    rollout = use_case.endpoint.rollout
    definition = load_learnt_definition(use_case, version, outside)
    points, events = choose_golden_rows(use_case, definition, outside, rollout.golden_rows)
    if not events:
        return GoldenTally(rows=0, wanted=rollout.golden_rows, max_difference=0, worst="", p99_ms=0), {}
    predictor = load_batch_predictor(use_case, version, outside)
    batch, interval = predictor.predict(points), predictor.interval
    size = min(use_case.endpoint.max_events, _MOST_AT_ONCE)
    chunks = (events[start : start + size] for start in range(0, len(events), size))
    listed = [answer for chunk in chunks for answer in _ask(use_case, version, chunk, outside)[0]]
    alone = [_ask(use_case, version, [event], outside) for event in events]
    single = [answer for answers, _ in alone for answer in answers]
    differences = np.max([_measure_differences(answers, batch, interval) for answers in (listed, single)], axis=0)
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    tally = GoldenTally(
        rows=len(events),
        wanted=rollout.golden_rows,
        max_difference=float(differences[worst]),
        worst=f"{points['entity_key'][worst]} at {points['event_time'][worst]}",
        p99_ms=compute_p99([took_ms for _, took_ms in alone]) or 0.0,
    )
    return tally, events[0]


def _measure_differences(
    answers: list[dict[str, Any]], batch: NDArray[np.float64], interval: "ConformalInterval | None"
) -> NDArray[np.float64]:
    """How far each answer [n] is from the batch's score [n], or its bounds from what batch makes of the score."""
    scores = np.array([read_score(answer) for answer in answers])
    return np.maximum(np.abs(scores - batch), [measure_bounds_difference(answer, interval) for answer in answers])


def choose_golden_rows(
    use_case: UseCase, definition: FeatureSet, outside: Outside, wanted: int
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Feature rows that the online store answers exactly, spread evenly over them, and the requests that ask for them.

    Raises:
        FeaturesNotReady: no online features were made by this definition.
    """
    state = outside.warehouse.query(_STATE, (use_case.name, definition.digest()))
    if not state:
        raise FeaturesNotReady(
            f"{use_case.name} has no online features by this definition yet: run {use_case.name}.build_features"
        )
    snapshot = dataset.find_snapshot(state[0]["snapshot_version"], use_case, outside)
    kept = Interval(state[0]["since"].astimezone(UTC), state[0]["as_of"].astimezone(UTC))
    points = load_learnt_points(definition, snapshot.version, use_case, outside, start=kept.start, end=kept.end)
    by_key = rebuild_requests(use_case, snapshot, outside, kept, definition)
    keys = zip(points["entity_key"].to_pylist(), points["event_time"].to_pylist(), strict=True)
    known = [(place, by_key[key]) for place, key in enumerate((k, t.astimezone(UTC)) for k, t in keys) if key in by_key]
    spread = [known[i] for i in np.unique(np.linspace(0, len(known) - 1, min(wanted, len(known))).astype(int))]
    return points.take([place for place, _ in spread]), [event for _, event in spread]


def rebuild_requests(
    use_case: UseCase, snapshot: Snapshot, outside: Outside, interval: Interval, definition: FeatureSet
) -> dict[tuple[str, datetime], dict[str, Any]]:
    """What a client would have sent for each row, by the row's key, from the clean objects the snapshot was made of."""
    tables = clean_files(snapshot, interval, outside, definition)
    rows = load_past_requests(definition, tables, interval, use_case.time.lead).to_pylist()
    return {(row["entity_key"], row["event_time"].replace(tzinfo=UTC)): to_request(definition, row) for row in rows}


def _ask(
    use_case: UseCase, version: str, events: list[dict[str, Any]], outside: Outside
) -> tuple[list[dict[str, Any]], float]:
    """Answers on looked-up features, and the milliseconds they took.

    A store that was slow once is asked again: its silence is not the version's.
    """
    silent = DegradedReason.STORE_SILENT

    def ask_once() -> tuple[list[dict[str, Any]], float]:
        began = time.perf_counter()
        answers = ask_version(use_case, version, events, outside, request_id=f"golden-{uuid.uuid4()}", slot=SLOT)
        took_ms = (time.perf_counter() - began) * 1000
        if any(silent in reason for answer in answers for reason in answer["reasons"]):
            raise FeaturesNotReady(f"{use_case.name}: {silent}, which says nothing about version {version}")
        return answers, took_ms

    return retry_call(ask_once, errors=FeaturesNotReady, attempts=_TRIES, pause_seconds=_PAUSE_SECONDS)
