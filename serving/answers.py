"""What goes out: the requests of one TorchServe batch, answered by one lookup and one prediction, and logged."""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from features.feature_rows import FeatureRows
from serving.reasons import DegradedReason
from serving.request import ParsedRequest, Refusal, RequestReader

if TYPE_CHECKING:
    from models.attribution import Attributions
    from serving.lookup import FeatureLookup, LookedUpFeatures
    from serving.predictor import Predictor

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_MAX_CHARACTERS = 100  # of a name that came in a header


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What a deployment decides beside the model; it travels in the archive."""

    use_case: str
    version: str
    title: str
    kind: str
    bundle_sha256: str
    lead_minutes: int
    threshold: float | None  # of the probability from which the decision is yes; None: nothing is decided
    max_events: int
    store_timeout_ms: int
    max_feature_age_hours: float

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "ServingOptions":
        """Read and check.

        Raises:
            ValueError: naming what is missing or too much.
        """
        if wrong := sorted({field.name for field in fields(cls)} ^ set(document)):
            raise ValueError(f"options of an archive: missing or unknown: {', '.join(wrong)}")
        return cls(**document)

    @property
    def lead(self) -> timedelta:
        return timedelta(minutes=self.lead_minutes)


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """One HTTP request of a batch."""

    body: bytes | bytearray
    request_id: str
    slot: str = "direct"
    client: str = "direct"
    entity: str | None = None  # X-Entity-Id, by which the gateway chose the slot
    explain: bool = False
    schema: bool = False  # wants the schema, with `X-Windsock-Ask: openapi`: the server hands on no ?query


@dataclass(frozen=True, kw_only=True)
class InferenceReply:
    """What is sent back."""

    status: int
    body: bytes
    events: int = 0
    degraded: int = 0


def read_inference_request(body: bytes | bytearray | None, headers: Mapping[str, str]) -> InferenceRequest:
    """A request from what TorchServe hands over; what the gateway would have added is made up where it is absent."""
    named = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    return InferenceRequest(
        body=b"" if body is None else body,
        request_id=_name(named.get("x-request-id")) or str(uuid.uuid4()),
        slot=_name(named.get("x-windsock-slot")) or "direct",
        client=_name(named.get("x-windsock-client")) or "direct",
        entity=_name(named.get("x-entity-id")),
        schema=named.get("x-windsock-ask") == "openapi",
        explain=named.get("explain", "").lower() == "true",  # TorchServe's own, on the path /explanations
    )


def _name(value: str | None) -> str | None:
    return value if value and len(value) <= _MAX_CHARACTERS and value.isprintable() else None


class Answerer:
    """One model's answers. One thread; `log` is called before any answer of its batch is returned."""

    def __init__(
        self,
        *,
        options: ServingOptions,
        reader: RequestReader,
        lookup: "FeatureLookup",
        predictor: "Predictor",
        explain: "Callable[[pa.Table], Attributions]",
        log: Callable[[list[dict[str, Any]]], object],
    ) -> None:
        self._options = options
        self._reader = reader
        self._lookup = lookup
        self._predictor = predictor
        self._explain = explain
        self._log = log
        self.lookup_seconds = 0.0  # of the last batch

    def answer(self, calls: Sequence[InferenceRequest]) -> list[InferenceReply]:
        """One reply a call, in their order; a call that cannot be read is refused, and the others do not notice."""
        began = time.perf_counter()
        self.lookup_seconds = 0.0
        bodies = [self._parse(one) for one in calls]
        parsed = [(one, body) for one, body in zip(calls, bodies, strict=True) if isinstance(body, ParsedRequest)]
        answered = iter(self._answer_parsed(parsed, began) if parsed else ())
        return [
            InferenceReply(status=400, body=json.dumps(body.to_document()).encode())
            if isinstance(body, Refusal)
            else next(answered)
            for body in bodies
        ]

    def _parse(self, one: InferenceRequest) -> ParsedRequest | Refusal:
        try:
            return self._reader.read(one.body, explain=one.explain)
        except Refusal as refusal:
            return refusal

    def _answer_parsed(
        self, parsed: Sequence[tuple[InferenceRequest, ParsedRequest]], began: float
    ) -> list[InferenceReply]:
        before = time.perf_counter()
        looked_up = self._lookup.look_up(self._reader.list_events([row for _, body in parsed for row in body.rows]))
        self.lookup_seconds = time.perf_counter() - before
        answers = self._answers(parsed, looked_up, self._predictor.predict_rows(looked_up.rows))
        replies, first = [], 0
        for one, body in parsed:
            documents = [self._document(answer) for answer in answers[first : first + len(body.rows)]]
            if one.explain:
                self._add_explanations(documents, looked_up.features.slice(first, len(documents)))
            replies.append(_encode_reply(documents, is_list=body.is_list))
            first += len(documents)
        server_ms = (time.perf_counter() - began) * 1000
        self._log([answer | {"server_ms": server_ms} for answer in answers])
        return replies

    def _answers(
        self,
        parsed: Sequence[tuple[InferenceRequest, ParsedRequest]],
        looked_up: "LookedUpFeatures",
        scores: NDArray[np.float64],
    ) -> list[dict[str, Any]]:
        """An answer an event, as it is logged."""
        options, rows = self._options, looked_up.rows
        said = zip(scores.tolist(), *self._bounds(scores), strict=True)
        origin = [(one, position, event) for one, body in parsed for position, event in enumerate(body.events)]
        as_of = None if looked_up.as_of is None else (looked_up.as_of - _EPOCH) // _MICROSECOND
        of_batch = {
            "use_case": options.use_case,
            "model_version": options.version,
            "feature_as_of": None if looked_up.as_of is None else looked_up.as_of.isoformat(),
            "feature_snapshot": looked_up.snapshot,
            "feature_changes": looked_up.changes,
            "answered_at": datetime.now(UTC).isoformat(),
        }
        answers = []
        each = zip(_list_features(rows), origin, said, strict=True)
        for place, (features, (one, position, event), (score, lower, upper)) in enumerate(each):
            prediction_time = rows.prediction_times[place]
            age_seconds = None if as_of is None else max(0, prediction_time - as_of) / 1_000_000
            reasons = [*looked_up.problems[place], *self._stale(age_seconds)]
            answers.append(
                of_batch
                | {
                    "request_id": one.request_id,
                    "position": position,
                    "slot": one.slot,
                    "client": one.client,
                    "entity_id": one.entity,
                    "entity_key": rows.entity_keys[place],
                    "event_time": _show_moment(rows.event_times[place]),
                    "prediction_time": _show_moment(prediction_time),
                    "score": score,
                    "lower": lower,
                    "upper": upper,
                    "decision": None if options.threshold is None else score >= options.threshold,
                    "degraded": bool(reasons),
                    "reasons": reasons,
                    "feature_age_seconds": age_seconds,
                    "request": event,
                    "features": features,
                }
            )
        return answers

    def _bounds(self, scores: NDArray[np.float64]) -> Sequence[list[float] | list[None]]:
        """Lower and upper bounds of answers [n]; None each, where the model has no interval."""
        interval = self._predictor.interval
        if interval is None:
            return [None] * len(scores), [None] * len(scores)
        return [bound.tolist() for bound in interval.bounds(scores)]

    def _stale(self, age_seconds: float | None) -> tuple[str, ...]:
        limit = self._options.max_feature_age_hours
        if age_seconds is None or age_seconds <= limit * 3600:
            return ()
        return (DegradedReason.HISTORY_STALE.format(age_hours=age_seconds / 3600, limit_hours=limit),)

    def _document(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        score: dict[str, Any] = (
            {"probability": answer["score"]}
            if self._options.kind == "binary"
            else {"value": answer["score"], "lower": answer["lower"], "upper": answer["upper"]}
        )
        shown = {name: answer[name] for name in _SHOWN}
        return {**score, **shown, "known_until": answer["feature_as_of"]}

    def _add_explanations(self, rows: list[dict[str, Any]], table: pa.Table) -> None:
        explained = self._explain(table)
        for row, values in zip(rows, explained.values.tolist(), strict=True):
            row["baseline"] = explained.baseline
            row["attributions"] = dict(zip(explained.names, values, strict=True))


_SHOWN = (
    "request_id",
    "model_version",
    "decision",
    "entity_key",
    "event_time",
    "prediction_time",
    "feature_age_seconds",
    "degraded",
    "reasons",
)


def _list_features(rows: FeatureRows) -> list[dict[str, Any]]:
    """What answers were computed from, a value a feature."""
    names = (*rows.numeric, *rows.categorical)
    both = zip(rows.numbers.tolist(), rows.texts, strict=True)
    return [dict(zip(names, [*numbers, *texts], strict=True)) for numbers, texts in both]


def _show_moment(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()


def _encode_reply(rows: list[dict[str, Any]], *, is_list: bool) -> InferenceReply:
    return InferenceReply(
        status=200,
        body=orjson.dumps(rows if is_list else rows[0]),
        events=len(rows),
        degraded=sum(row["degraded"] for row in rows),
    )
