"""Feature datasets and models put in place without a build or a search: real stores, made-up rows."""

import hashlib
import io
import json
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import features
from adapters.connect import Outside
from adapters.registry import Registry, RunRecord
from models import bundle
from models.ensemble import Ensemble
from pipeline.handoffs import Candidate, Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.train.split import split


def dataset(outside: Outside, use_case: UseCase, table: pa.Table) -> Snapshot:
    """Keep a labelled table as a version of the use case's features: a DVC folder in S3 and a row in `snapshots`."""
    times = table.column("prediction_time")
    span = Interval(pc.min(times).as_py(), pc.max(times).as_py())
    partitions = {use_case.grid.key(part): part for part in use_case.grid.covering(span)}
    files, index = {}, {}
    for key, part in partitions.items():
        points = _between(table, "prediction_time", part).drop_columns(["label", "label_time"])
        labels = _between(table, "label_time", part).select(["entity_key", "event_time", "label", "label_time"])
        files[f"points/{key}.parquet"], files[f"labels/{key}.parquet"] = _parquet(points), _parquet(labels)
        inputs = hashlib.sha256(files[f"points/{key}.parquet"]).hexdigest()
        index[key] = {
            "start": part.start.isoformat(),
            "end": part.end.isoformat(),
            "inputs": inputs,
            "rows": points.num_rows,
        }
    files["index.json"] = json.dumps(index).encode()
    listing = [{"md5": _keep(outside, use_case, content), "relpath": path} for path, content in sorted(files.items())]
    version = _keep(outside, use_case, json.dumps(listing).encode(), ".dir")
    start, end = min(p.start for p in partitions.values()), max(p.end for p in partitions.values())
    outside.warehouse.execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " values (%s, %s, %s, %s, %s, %s, %s, %s)",
        (use_case.name, version, "0" * 40, start, end, len(index), table.num_rows, json.dumps(index)),
    )
    return Snapshot(
        use_case=use_case.name,
        version=version,
        git_revision="0" * 40,
        start=start,
        end=end,
        partitions=len(index),
        rows=0,
    )


def define(name: str) -> str:
    """Make a name a use case with the features of the flights; the digest of their definition."""
    features._DEFINITIONS[name] = features.definition("flights")
    return features.definition(name).digest()


def model(
    registry: Registry, use_case: UseCase, folder: Path, ensemble: Ensemble, *, key: str, cutoff, digest=None,
    definition="{}", recipe=None, as_of=None,
) -> str:  # fmt: skip
    """Register an ensemble that says it has learnt up to `cutoff`, from today's features or others; its version."""
    sha256 = bundle.write_bundle(
        folder / "bundle", ensemble, use_case=use_case.name, features_digest=digest or define(use_case.name),
        definition=definition, recipe=recipe.to_document() if recipe else {"key": key},
        data={
            "start": (cutoff - timedelta(days=365)).isoformat(), "cutoff": cutoff.isoformat(),
            **({"as_of": as_of.isoformat()} if as_of else {}),
        },
        metrics={}, versions={},
    )  # fmt: skip
    record = RunRecord(
        use_case=use_case.name, key=key, name=key, dataset_version="d", params={}, tags={}, metrics={}, curves={},
        artifacts=folder, bundle_sha256=sha256,
    )  # fmt: skip
    return registry.register(use_case.name, registry.log_run(record)).version


def forget_champion(registry: Registry, name: str) -> None:
    """Nobody is champion in the registry, which is shared by all tests of a session."""
    for alias in registry.aliases(name):
        registry._client.delete_registered_model_alias(name, alias)


def candidate(registry: Registry, use_case: UseCase, version: str, snapshot: Snapshot, as_of) -> Candidate:
    """What a refit as of a moment would hand on about a registered version."""
    known, moments = registry.version(use_case.name, version), split(use_case, as_of)
    return Candidate(
        use_case=use_case.name,
        model_version=version,
        run_id=known.run_id,
        bundle_uri=known.bundle_uri,
        bundle_sha256=known.bundle_sha256,
        snapshot_version=snapshot.version,
        as_of=as_of,
        cutoff=moments.cutoff,
        holdout_start=moments.holdout_start,
        holdout_end=moments.holdout_end,
        reason="planted",
    )


def _between(table: pa.Table, column: str, part: Interval) -> pa.Table:
    kind = table.schema.field(column).type
    last = pa.scalar(part.end - timedelta(microseconds=1), kind)
    return table.filter(
        pc.and_(pc.greater_equal(table[column], pa.scalar(part.start, kind)), pc.less_equal(table[column], last))
    )


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _keep(outside: Outside, use_case: UseCase, content: bytes, suffix: str = "") -> str:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + suffix
    outside.versions._store.put_named(
        f"{use_case.name}/files/md5/{md5[:2]}/{md5[2:]}", content, "application/octet-stream"
    )
    return md5
