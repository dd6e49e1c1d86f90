"""What is measured: real flights, features of them, a model trained on them for a minute, and our servers around it."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import features
from adapters.connect import Outside
from infra.local.stack import Stack
from infra.local.stream import source_admin_dsn
from infra.replay import flights_source
from infra.replay.live_source import LiveSource
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY, read_settings
from pipeline.spec import UseCase, use_cases
from tasks.build_features import build, dataset, online_features
from tasks.deploy.golden import choose_golden_rows
from tasks.ingest import land, validate
from tasks.stream.prepare_source import prepare_source

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = ("postgres", "s3", "torchserve", "gateway")
WEEKS = 7  # four of history, and enough to train on
ROWS = 2000  # different events that are asked about
UNLIMITED = "1000000"  # requests a second: the limiter counts, and stops nobody here
VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class World:
    """A running stack with a model that no version is registered of yet."""

    stack: Stack
    outside: Outside
    use_case: UseCase
    bundle: Path
    sha256: str
    events: list[dict[str, Any]]
    points: "pa.Table"  # the events' features, as batch has them

    @property
    def options(self) -> Mapping[str, Any]:
        """What a deployment puts into the archive beside the bundle."""
        endpoint = self.use_case.endpoint
        assert endpoint is not None
        return {
            "title": self.use_case.title,
            "kind": self.use_case.target.kind,
            "lead_minutes": self.use_case.time.lead_minutes,
            "threshold": 1 / 6,
            "max_events": endpoint.max_events,
            "store_timeout_ms": endpoint.store_timeout_ms,
            "max_feature_age_hours": endpoint.max_feature_age_hours,
        }

    def register(self, version: str) -> None:
        """Bring the model to the server under a version, as a rollout does; the gateway does not send anybody there."""
        endpoint, server = self.use_case.endpoint, self.outside.endpoint
        assert endpoint is not None
        assert server is not None
        archive = server.store.archive(
            self.bundle,
            use_case=self.use_case.name,
            version=version,
            bundle_sha256=self.sha256,
            options=self.options,
        )
        server.register(
            archive,
            batch_size=endpoint.batch_size,
            max_batch_delay_ms=endpoint.max_batch_delay_ms,
            workers=endpoint.workers,
        )

    def retire(self, version: str) -> None:
        """Take a version out of the server."""
        assert self.outside.endpoint is not None
        self.outside.endpoint.retire(self.use_case.name, version)

    def send_everybody_to(self, version: str) -> None:
        """From now on the gateway asks this version."""
        from adapters.gateway import Route

        assert self.outside.gateway is not None
        self.outside.gateway.set_route(self.use_case.name, Route(stable=version))


@contextmanager
def opened(folder: Path | None, *, is_followed: bool = False) -> Iterator[World]:
    """A world in this folder, which is kept and used again; without one in a folder that is deleted.

    One that is followed has a source that holds no more than what is ingested, and a stream.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield from _world(folder, is_followed=is_followed)
        return
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as made:
        Path(made).chmod(0o755)  # PostgreSQL runs as nobody where this runs as root
        yield from _world(Path(made), is_followed=is_followed)


def _world(folder: Path, *, is_followed: bool) -> Iterator[World]:
    stack = Stack(folder / "home")
    try:
        print(f"the stack starts in {stack.folder}", flush=True)
        stack.start((*PARTS, "stream") if is_followed else PARTS)
        environment = stack.environment()
        if "WINDSOCK_GATEWAY_URL" not in environment:
            raise ValueError("there is no gateway here: install HAProxy (`apt-get install haproxy`) and run this again")
        outside = Outside(read_settings(environment))
        use_case = use_cases(REPOSITORY / "params.yaml")["flights"]
        if is_followed:
            LiveSource(outside.source, flights_source.FLIGHTS_SOURCE).open(ingested_interval(use_case).end)
            assert outside.settings.follower_dsn is not None
            prepare_source(use_case, source_admin_dsn(stack.home()), outside.settings.follower_dsn)
        else:
            flights_source.load_flights(outside.settings.source_dsn)
        _ingest(use_case, outside)
        points, events = choose_golden_rows(use_case, features.definition(use_case.name), outside, ROWS)
        sha256 = _bundle(use_case, outside, folder / "bundle")
        yield World(
            stack=stack,
            outside=outside,
            use_case=use_case,
            bundle=folder / "bundle",
            sha256=sha256,
            events=events,
            points=points,
        )
    finally:
        stack.stop()


def ingested_interval(use_case: UseCase) -> Interval:
    """The weeks that are history."""
    first = use_case.grid.partition(str(use_case.grid.first)).start
    return Interval(first, first + WEEKS * timedelta(days=use_case.grid.days))


def _ingest(use_case: UseCase, outside: Outside) -> None:
    """History in the lake, features of it, and the online store; nothing where it is there."""
    if dataset.latest_snapshot(use_case, outside) is None:
        print(f"{WEEKS} weeks of flights are ingested, and features made of them", flush=True)
        for week in use_case.grid.covering(ingested_interval(use_case)):
            validate.validate_batch(use_case, land.land_partition(use_case, week, outside), outside)
        build.build_snapshot(use_case, outside)
    if (snapshot := online_features.find_unreached_snapshot(use_case, outside)) is not None:
        online_features.refresh_store(use_case, snapshot, outside)


def _bundle(use_case: UseCase, outside: Outside, folder: Path) -> str:
    """Three members, as a champion has; a few epochs are enough to be of its shape."""
    import torch

    import features
    from models import bundle
    from models.ensemble import Recipe, fit_ensemble

    definition = features.definition(use_case.name)
    if folder.exists() and json.loads((folder / "card.json").read_text())["features"]["digest"] == definition.digest():
        return bundle.digest_bundle(folder)
    snapshot = dataset.latest_snapshot(use_case, outside)
    assert snapshot is not None
    table = dataset.load_rows(
        snapshot.version, use_case, outside, start=snapshot.start, end=snapshot.end, known_by=snapshot.end
    )
    print(f"three members are trained on {table.num_rows} rows", flush=True)
    recipe = Recipe(
        kind=use_case.target.kind,
        numeric=definition.numeric,
        categorical=definition.categorical,
        network="mlp",
        hidden_units=128,
        layers=2,
        dropout=0.1,
        learning_rate=0.002,
        weight_decay=0.01,
        label_smoothing=0.0,
        batch_rows=1024,
        schedule_epochs=3,
        epochs=3,
        seeds=(0, 1, 2),
        threads=2,
    )
    return bundle.write_bundle(
        folder,
        fit_ensemble(recipe, table, torch.device("cpu")),
        use_case=use_case.name,
        features_digest=definition.digest(),
        definition="{}",
        recipe=recipe.to_document(),
        data={"snapshot_version": snapshot.version},
        metrics={},
        versions={},
    )
