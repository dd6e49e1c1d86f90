"""A gateway and a server made of dictionaries, in front of real models and a real warehouse: what a rollout needs.

Requests are answered at once; what a real server would log is in `online_answers` when the answer is out. A version can
be made to fail, to be slow, or to answer otherwise than its bundle.
"""

import atexit
import hashlib
import json
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg2
from psycopg2.extras import execute_values

from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from adapters.gateway import GatewayRecord, GatewayReply, Route
from adapters.model_store import Archive
from adapters.registry import folder_sha256
from pipeline.online import Rollout
from pipeline.spec import UseCase
from tasks.deploy import golden
from tasks.score import load_batch_predictor
from tests.serving.online import make_bundle, rows

_LOG = """
insert into online_answers (use_case, request_id, position, model_version, slot, client, entity_key, event_time,
    prediction_time, score, degraded, reasons, feature_as_of, feature_snapshot, feature_age_seconds, server_ms,
    request, features, answered_at) values %s on conflict do nothing
"""
EVENTS = 40
_NO_FEATURES = ("entity_key", "event_time", "prediction_time", "label", "label_time")
AS_OF = datetime(2013, 4, 1, tzinfo=UTC)
RULES = Rollout(
    golden_rows=32, tolerance=1e-5, max_p99_ms=60_000, max_error_share=0.02, shadow_requests=10, canary_share=0.5,
    canary_requests=10, hold_minutes=2,
)  # fmt: skip
TOO_SLOW_MS = 1.5 * RULES.max_p99_ms  # said, and never waited for: no busy machine is refused


def rolled_out(use_case: UseCase, **changes: Any) -> UseCase:
    """The shipped use case with a rollout for small traffic."""
    assert use_case.endpoint is not None
    rules = Rollout(**{**RULES.model_dump(), **changes})
    return use_case.model_copy(update={"endpoint": use_case.endpoint.model_copy(update={"rollout": rules})})


@dataclass
class Registry:
    """Stands in for MLflow, of which a rollout needs bundles."""

    folder: Path
    tampered: set[str] = field(default_factory=set)  # versions whose stored bundle was changed
    lost: set[str] = field(default_factory=set)  # versions whose bundle is not there

    def add(self, version: str, *, seed: int, digest: str | None = None) -> None:
        make_bundle(self.folder / version, seed=seed, digest=digest)

    def version(self, _use_case: str, version: str) -> Any:
        return SimpleNamespace(bundle_sha256=folder_sha256(self.folder / version))

    def download_bundle(self, _use_case: str, version: str) -> Path:
        if version in self.lost:
            raise Missing(f"nothing is stored for version {version}")
        if version in self.tampered:
            raise Corrupt(f"the bundle of version {version} has another digest")
        return self.folder / version


@dataclass
class Misbehaviour:
    """What a version does wrong."""

    off: float = 0.0  # added to each score
    fails: Callable[[int], bool] = field(default=lambda _number: False)  # by how many requests of clients it has had
    slow_ms: float = 0.0
    slow: Callable[[int], bool] = field(default=lambda _number: True)  # which ones, by the same number


@dataclass
class Room:
    """The endpoint and the gateway in one; `events` are what can be asked."""

    use_case: UseCase
    outside: Outside
    registry: Registry
    folder: Path
    registered: dict[str, Archive] = field(default_factory=dict)
    bad: dict[str, Misbehaviour] = field(default_factory=dict)
    now: Route = field(default_factory=lambda: Route(None, None, 0.0))
    routes: list[Route] = field(default_factory=list)
    seen: list[GatewayRecord] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    default: str | None = None  # what the server would answer with where no version is named
    tamper: Callable[[Archive], None] = field(default=lambda _archive: None)
    on_route: Callable[[Route], None] = field(default=lambda _route: None)
    logging: bool = True
    reachable: bool = True

    def __post_init__(self) -> None:
        self.table = rows(EVENTS, seed=9)
        keys = zip(self.table["entity_key"].to_pylist(), self.table["event_time"].to_pylist(), strict=True)
        self.events = [{"key": key, "at": at.isoformat()} for key, at in keys]
        self._place = {event["key"]: number for number, event in enumerate(self.events)}
        self._scores: dict[str, np.ndarray] = {}
        self._asked: Counter[str] = Counter()
        self._log_to = psycopg2.connect(self.outside.settings.warehouse_dsn)
        self._log_to.autocommit = True

    # what the endpoint's adapter does

    @property
    def store(self) -> "Room":
        """The model store is here, too."""
        return self

    def archive(self, bundle: Path, *, use_case: str, version: str, bundle_sha256: str, options: Any) -> Archive:
        path = self.folder / f"{version}.mar"
        path.write_text(json.dumps({"bundle": str(bundle), "sha256": bundle_sha256, "options": dict(options)}))
        archive = Archive(use_case=use_case, version=version, path=path, sha256=_sha256(path))
        self.tamper(archive)
        return archive

    def register(self, archive: Archive, **_options: int) -> None:
        self._require_reachable()
        if _sha256(archive.path) != archive.sha256:
            raise ValueError(f"{archive.path} was changed")
        self.registered[archive.version] = archive
        self.default = self.default or archive.version

    def versions(self, _use_case: str) -> dict[str, bool]:
        self._require_reachable()
        return dict.fromkeys(self.registered, True)

    def retire(self, _use_case: str, version: str) -> None:
        if version == self.default and len(self.registered) > 1:
            raise ValueError(f"version {version} is the default")
        self.registered.pop(version, None)
        self.default = None if version == self.default else self.default
        self.retired.append(version)

    def make_default(self, _use_case: str, version: str) -> None:
        if version not in self.registered:
            raise ValueError(f"version {version} is not there")
        self.default = version

    def ask(self, *arguments: Any, **named: Any) -> Any:
        """The endpoint's question has a version, the gateway's has none."""
        return self._direct(*arguments, **named) if len(arguments) == 3 else self._through(*arguments, **named)

    def _direct(self, _use_case: str, version: str, events: list[Any], *, request_id: str, slot: str) -> Any:
        self._require_reachable()
        status, answers, _ = self._answer(version, events, request_id, slot)
        if status != 200:
            raise ConnectionError("the server answered 500")
        return answers

    # what the gateway's adapter does

    def route(self, _use_case: str) -> Route:
        return self.now

    def set_route(self, _use_case: str, route: Route) -> None:
        self._require_reachable()
        self.now = route
        self.routes.append(route)
        self.on_route(route)

    def set_fallback(self, _use_case: str, _probability: float | None) -> None:
        pass

    def publish_openapi(self, _use_case: str, text: str) -> None:
        self.published = json.loads(text)

    def records(self, _use_case: str, since: datetime) -> list[GatewayRecord]:
        self._require_reachable()
        return [record for record in self.seen if record.at >= since]

    def _through(self, _use_case: str, event: Any) -> GatewayReply:
        number = len(self.seen)
        is_canary = self.now.candidate is not None and (number * 7919) % 100 < self.now.share * 100
        slot, version = ("candidate", self.now.candidate) if is_canary else ("stable", self.now.stable)
        assert version is not None
        request_id = f"r{number}-{secrets.token_hex(4)}"
        status, answers, took_ms = self._answer(version, [event], request_id, slot)
        record = GatewayRecord(
            request_id=request_id, use_case=self.use_case.name, client="test", slot=slot, version=version,
            status=status, milliseconds=took_ms, at=datetime.now(UTC),
        )  # fmt: skip
        self.seen.append(record)
        return GatewayReply(status, {}, answers[0] if answers else {"error": "failed"})

    def traffic(self, requests: int) -> None:
        """Clients ask, one event a request."""
        for number in range(requests):
            self._through(self.use_case.name, self.events[number % EVENTS])

    def _require_reachable(self) -> None:
        if not self.reachable:
            raise ConnectionError("nothing there")

    def _answer(self, version: str, events: list[Any], request_id: str, slot: str) -> tuple[int, list[Any], float]:
        if version not in self.registered:
            return 503, [], 1.0
        bad = self.bad.get(version, Misbehaviour())
        if slot in {"stable", "candidate"}:
            self._asked[version] += 1
            if bad.fails(self._asked[version]):
                return 500, [], 1.0
        if version not in self._scores:
            self._scores[version] = load_batch_predictor(self.use_case, version, self.outside).predict(self.table)
        places = [self._place[event["key"]] for event in events]
        scores = self._scores[version][places] + bad.off
        if self.logging:
            answered = zip(range(len(events)), events, self.table.take(places).to_pylist(), scores, strict=True)
            with self._log_to.cursor() as at:
                execute_values(at, _LOG, [self._logged(version, request_id, slot, *each) for each in answered])
        answers = [
            {"request_id": request_id, "model_version": version, "probability": float(score), "reasons": []}
            for score in scores
        ]
        return 200, answers, 5.0 + bad.slow_ms * bad.slow(self._asked[version])

    def _logged(self, version: str, request_id: str, slot: str, *answered: Any) -> tuple[Any, ...]:
        position, event, point, score = answered
        features = {name: _plain(value) for name, value in point.items() if name not in _NO_FEATURES}
        return (
            self.use_case.name, request_id, position, version, slot, "test", point["entity_key"], point["event_time"],
            point["prediction_time"], float(score), False, [], AS_OF, "s", 0.0, 1.0, json.dumps(event),
            json.dumps(features), datetime.now(UTC),
        )  # fmt: skip


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _bundles() -> dict[str, Path]:
    """Three versions that answer differently, made once."""
    folder = Path(tempfile.mkdtemp(prefix="windsock-bundles-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for seed in (1, 2, 3):
        make_bundle(folder / str(seed), seed=seed)
    return {str(seed): folder / str(seed) for seed in (1, 2, 3)}


def open_room(use_case: UseCase, outside: Outside, folder: Path, monkeypatch: Any) -> Room:
    """Two versions, none of them champion; golden rows are the room's own."""
    (folder / "store").mkdir(parents=True)
    registry = Registry(folder)
    for version, made in _bundles().items():
        shutil.copytree(made, folder / version)
    room = Room(use_case, outside, registry, folder / "store")
    outside.__dict__.update(registry=registry, endpoint=room, gateway=room)
    monkeypatch.setattr(golden, "choose_golden_rows", lambda _use_case, _definition, _outside, wanted: (
        room.table.slice(0, wanted), room.events[:wanted]
    ))  # fmt: skip
    return room


def crown(outside: Outside, use_case: UseCase, version: str, before: str | None, revision: int) -> None:
    """Make a version champion, as the gate would."""
    with outside.warehouse.transaction() as at:
        at.execute(
            "insert into champions (use_case, revision, version, previous_version, as_of) values (%s, %s, %s, %s, %s)"
            " on conflict (use_case) do update set revision = excluded.revision, version = excluded.version,"
            " previous_version = excluded.previous_version, as_of = excluded.as_of",
            (use_case.name, revision, version, before, AS_OF + timedelta(days=7 * revision)),
        )
        at.execute(
            "insert into ledger (use_case, action, model_version, champion_version, revision, as_of, actor, reason,"
            " evidence) values (%s, 'promote', %s, %s, %s, %s, 'test', 'test', '{}')",
            (use_case.name, version, before, revision, AS_OF + timedelta(days=7 * revision)),
        )
