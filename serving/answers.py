"""What goes out: the requests of one TorchServe batch, answered by one lookup and one prediction, and logged."""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.prediction_log import FEATURE, LOGGED, LOGGED_SCHEMA
from serving.reasons import DegradedReason
from serving.request import ParsedRequest, Refusal, RequestReader

if TYPE_CHECKING:
    from models.attribution import Attributions
    from serving.lookup import FeatureLookup, LookedUpFeatures
    from serving.predictor import Predictor

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
        log: Callable[[pa.Table], object],
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
        looked_up = self._lookup.features(self._reader.table([row for _, body in parsed for row in body.rows]))
        self.lookup_seconds = time.perf_counter() - before
        table = looked_up.features
        columns = self._columns(parsed, looked_up, self._predictor.predict(table))
        documents = [self._document(values) for values in zip(*(columns[name] for name in _SHOWN), strict=True)]
        replies, first = [], 0
        for one, body in parsed:
            rows = documents[first : first + len(body.rows)]
            if one.explain:
                self._add_explanations(rows, table.slice(first, len(rows)))
            replies.append(_encode_reply(rows, is_list=body.is_list))
            first += len(rows)
        columns["server_ms"] = [(time.perf_counter() - began) * 1000] * table.num_rows
        self._log(_log_table(columns, table))
        return replies

    def _columns(
        self,
        parsed: Sequence[tuple[InferenceRequest, ParsedRequest]],
        looked_up: "LookedUpFeatures",
        scores: NDArray[np.float64],
    ) -> dict[str, list[Any]]:
        options, table = self._options, looked_up.features
        origin = [(one, position, event) for one, body in parsed for position, event in enumerate(body.events)]
        moments: list[datetime] = table["prediction_time"].to_pylist()
        ages = [_age_seconds(moment, looked_up.as_of) for moment in moments]
        reasons = [[*why, *self._stale(age)] for why, age in zip(looked_up.problems, ages, strict=True)]
        rows = table.num_rows
        return {
            "use_case": [options.use_case] * rows,
            "request_id": [one.request_id for one, _, _ in origin],
            "position": [position for _, position, _ in origin],
            "model_version": [options.version] * rows,
            "slot": [one.slot for one, _, _ in origin],
            "client": [one.client for one, _, _ in origin],
            "entity_id": [one.entity for one, _, _ in origin],
            "entity_key": table["entity_key"].to_pylist(),
            "event_time": table["event_time"].to_pylist(),
            "prediction_time": moments,
            "score": scores.tolist(),
            "decision": [
                None if options.threshold is None else score >= options.threshold for score in scores.tolist()
            ],
            "degraded": [bool(why) for why in reasons],
            "reasons": reasons,
            "feature_as_of": [looked_up.as_of] * rows,
            "feature_snapshot": [looked_up.snapshot] * rows,
            "feature_changes": [looked_up.changes] * rows,
            "feature_age_seconds": ages,
            "request": [json.dumps(event) for _, _, event in origin],
            "answered_at": [datetime.now(UTC)] * rows,
        }

    def _stale(self, age_seconds: float | None) -> tuple[str, ...]:
        limit = self._options.max_feature_age_hours
        if age_seconds is None or age_seconds <= limit * 3600:
            return ()
        return (DegradedReason.HISTORY_STALE.format(age_hours=age_seconds / 3600, limit_hours=limit),)

    def _document(self, values: tuple[Any, ...]) -> dict[str, Any]:
        row = dict(zip(_SHOWN, values, strict=True))
        row["event_time"] = row["event_time"].isoformat()
        row["prediction_time"] = row["prediction_time"].isoformat()
        known_until = row.pop("feature_as_of")
        row["known_until"] = None if known_until is None else known_until.isoformat()
        return {"probability" if self._options.kind == "binary" else "value": row.pop("score"), **row}

    def _add_explanations(self, rows: list[dict[str, Any]], table: pa.Table) -> None:
        explained = self._explain(table)
        for row, values in zip(rows, explained.values.tolist(), strict=True):
            row["baseline"] = explained.baseline
            row["attributions"] = dict(zip(explained.names, values, strict=True))


_SHOWN = (
    "request_id",
    "model_version",
    "score",
    "decision",
    "entity_key",
    "event_time",
    "prediction_time",
    "feature_age_seconds",
    "feature_as_of",
    "degraded",
    "reasons",
)


def _log_table(columns: Mapping[str, list[Any]], features: pa.Table) -> pa.Table:
    """A batch as it is logged: the answers, and beside them what they were computed from."""
    answers = {field.name: pa.array(columns[field.name], field.type) for field in LOGGED_SCHEMA}
    return pa.table(answers | {FEATURE + name: features[name] for name in features.column_names if name not in LOGGED})


def _age_seconds(moment: datetime, as_of: datetime | None) -> float | None:
    return None if as_of is None else max(0.0, (moment - as_of).total_seconds())


def _encode_reply(rows: list[dict[str, Any]], *, is_list: bool) -> InferenceReply:
    return InferenceReply(
        status=200,
        body=json.dumps(rows if is_list else rows[0]).encode(),
        events=len(rows),
        degraded=sum(row["degraded"] for row in rows),
    )
