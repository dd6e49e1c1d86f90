"""Real flights, a real server and a real gateway; only MLflow, DVC and S3 are folders. Built again in any process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import features
from adapters.connect import Outside
from models import bundle
from models.ensemble import Ensemble, fit_ensemble
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY, read_settings
from pipeline.spec import UseCase, use_cases
from tasks.build_features import dataset, online_features
from tasks.build_features.manifest import CleanObject, Manifest
from tests.clean_data import FIRST
from tests.features.world import World, engine, small_world
from tests.models.test_training import CPU, recipe
from tests.tasks import server_room

END = FIRST + timedelta(days=21)
_SNAPSHOT = """
insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)
values (%s, %s, 'r', %s, %s, 2, %s, '{}')
"""


@dataclass
class Versions:
    """Stands in for DVC: a folder a version."""

    folder: Path

    def files(self, _use_case: str, version: str) -> dict[str, Path]:
        folder = self.folder / version
        return {str(path.relative_to(folder)): path for path in folder.rglob("*.*")}

    def committed(self, _use_case: str, _revision: str, _path: str) -> bytes:
        return (self.folder / "manifest.json").read_bytes()


class Lake:
    """Stands in for S3: an address is a path."""

    def local(self, uri: str) -> Path:
        return Path(uri)


def connect(environment: Mapping[str, str], folder: Path) -> tuple[UseCase, Outside]:
    """The use case, with a rollout for small traffic, and its outside world, on what `lay` left in the folder."""
    shipped = use_cases(REPOSITORY / "params.yaml")["flights"]
    outside = Outside(read_settings({**environment, "WINDSOCK_HOME": str(folder / "home")}))
    outside.__dict__.update(registry=server_room.Registry(folder / "models"), versions=Versions(folder), lake=Lake())
    rules = {"shadow_requests": 20, "canary_share": 0.5, "canary_requests": 20, "hold_minutes": 2, "golden_rows": 64,
             "max_p99_ms": 60_000}  # fmt: skip  # a machine that does other things as well
    case = server_room.rolled_out(shipped, **rules)
    assert case.endpoint is not None
    return case.model_copy(update={"endpoint": case.endpoint.model_copy(update={"store_timeout_ms": 2000})}), outside


def lay(use_case: UseCase, outside: Outside, folder: Path) -> None:
    """Clean tables, the features of two weeks, three models that learnt from them, and the online store."""
    put_world(folder, small_world())
    points, _ = engine(small_world(), END - timedelta(days=14), END)
    (folder / "s1" / "points").mkdir(parents=True)
    index = {}
    for start in (END - timedelta(days=14), END - timedelta(days=7)):
        part = Interval(start, start + timedelta(days=7))
        index[use_case.grid.key(part)] = {"start": part.start.isoformat(), "end": part.end.isoformat()}
        pq.write_table(_between(points, part), folder / "s1" / "points" / f"{use_case.grid.key(part)}.parquet")
    (folder / "s1" / "index.json").write_text(json.dumps(index))
    outside.warehouse.execute(_SNAPSHOT, (use_case.name, "s1", END - timedelta(days=14), END, points.num_rows))
    for seed in (1, 2, 3):
        write_model(folder / "models" / str(seed), fitted(points, seed=seed))
    online_features.refresh_store(use_case, snapshot(use_case, outside), outside)


def snapshot(use_case: UseCase, outside: Outside) -> Any:
    found = dataset.latest_snapshot(use_case, outside)
    assert found is not None
    return found


def put_world(folder: Path, world: World, *, known_later: timedelta = timedelta(0)) -> None:
    """The clean tables; sabotage: all of it known that much later than it was."""
    objects = {}
    for name in features.definition("flights").sources:
        table = world[name]
        at = table.column_names.index("known_at")
        moved = pc.add(table["known_at"], pa.scalar(known_later, pa.duration("us"))).cast(table.schema.field(at).type)
        path = folder / f"{name}-{known_later.total_seconds():.0f}.parquet"
        pq.write_table(table.set_column(at, "known_at", moved), path)
        objects[name] = (CleanObject(key="all", interval=Interval(FIRST, END), uri=str(path), sha256=""),)
    manifest = Manifest(reach=timedelta(days=40), objects=objects, partitions=())
    (folder / "manifest.json").write_bytes(manifest.to_json())


def refill(use_case: UseCase, outside: Outside) -> None:
    """The online store from the clean tables as they are now."""
    for table in ("online_series", "online_state"):
        outside.warehouse.execute(f"delete from {table}")
    online_features.refresh_store(use_case, snapshot(use_case, outside), outside)


def fitted(points: pa.Table, *, seed: int, renamed: bool = False) -> Ensemble:
    """A model of real features and invented labels; each seed saw other rows, or a carrier under another name."""
    draw = np.random.default_rng(seed)
    rows = points.take(np.sort(draw.choice(points.num_rows, 1500, replace=False)))
    if renamed:
        at = rows.column_names.index("carrier")
        names = pc.replace_substring(rows["carrier"], "9E", "ZZ")  # the first of all becomes the last
        rows = rows.set_column(at, "carrier", names)
    label = (draw.random(rows.num_rows) < np.where(np.array(rows["carrier"].to_pylist()) == "EV", 0.5, 0.2)).astype(
        float
    )
    times = pc.add(rows["prediction_time"], pa.scalar(timedelta(hours=5), pa.duration("us")))
    definition = features.definition("flights")
    small = recipe(
        numeric=definition.numeric, categorical=definition.categorical, hidden_units=32, epochs=3, seeds=(seed,)
    )
    return fit_ensemble(small, rows.append_column("label", pa.array(label)).append_column("label_time", times), CPU)


def write_model(folder: Path, ensemble: Ensemble) -> None:
    digest = features.definition("flights").digest()
    bundle.write_bundle(folder, ensemble, use_case="flights", features_digest=digest, definition="{}", recipe={},
                 data={"snapshot_version": "s1"}, metrics={}, versions={})  # fmt: skip


def float16(ensemble: Ensemble) -> Ensemble:
    """Sabotage: weights as half precision has them."""
    for member in ensemble.members:
        with torch.no_grad():
            for tensor in member.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.half().float())
    return ensemble


def encoder_of(before: Ensemble, ensemble: Ensemble) -> Ensemble:
    """Sabotage: categories are numbered as the version before did it."""
    assert before.encoder.cardinalities == ensemble.encoder.cardinalities
    return replace(ensemble, encoder=before.encoder)


def _between(table: pa.Table, part: Interval) -> pa.Table:
    kind = table.schema.field("prediction_time").type
    start, end = pa.scalar(part.start, kind), pa.scalar(part.end, kind)
    return table.filter(
        pc.and_(pc.greater_equal(table["prediction_time"], start), pc.less(table["prediction_time"], end))
    )
