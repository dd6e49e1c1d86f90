"""Brings a use case's feature dataset up to date with its clean data: exactly the partitions whose inputs changed.

Reconciled from `batches`, so it does not matter what woke it or in what order data came. A partition can be made once
all its own tables are clean. Its inputs are the clean objects inside its history, the feature definition and the
parameters that matter; their digest says whether it must be made again. A blocked partition inside a history is a gap:
recorded, worked around, and filled by a rebuild once it is clean.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from psycopg2.extensions import cursor

import features
from adapters.connect import Outside
from adapters.versions import Built
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval, utc
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.manifest import CleanObject, Manifest, WantedPartition, find_stale

logger = logging.getLogger(__name__)

_CLEAN = """
select distinct on (table_name, partition_start) table_name, partition_start, partition_end, clean_uri, clean_sha256
from batches where use_case = %s and status = 'clean' order by table_name, partition_start, version desc"""

# A version that comes back (a correction taken back) is the latest again.
_RECORD = """
insert into snapshots
    (use_case, version, git_revision, start, "end", partitions, rows, index, features_digest)
values (%(use_case)s, %(version)s, %(git_revision)s, %(start)s, %(end)s, %(partitions)s, %(rows)s, %(index)s,
    %(features_digest)s)
on conflict (use_case, version) do update set git_revision = excluded.git_revision,
    features_digest = excluded.features_digest, built_at = now(), build_order = default"""

_LABELLED = """
select entity_key, event_time from outcomes
join unnest(%s::timestamptz[], %s::timestamptz[]) as part (start, "end") on label_time >= start and label_time < "end"
where use_case = %s"""

_FORGET = """
delete from outcomes using unnest(%s::text[], %s::timestamptz[]) as gone (entity_key, event_time)
where use_case = %s and (gone.entity_key, gone.event_time) = (outcomes.entity_key, outcomes.event_time)"""


def make_manifest(
    use_case: UseCase, definition: features.FeatureSet, clean: Mapping[str, Mapping[Interval, CleanObject]]
) -> Manifest:
    """What each partition that can be made is made from, given each table's current clean content."""
    tables = sorted({*definition.sources, *clean})  # all of them: an older definition may read what today's does not
    objects = {name: tuple(item for _, item in sorted(clean.get(name, {}).items())) for name in tables}
    empty = Manifest(reach=definition.look_back, objects=objects, partitions=())
    ready = set.intersection(*(set(clean.get(name, {})) for name in use_case.source.tables))
    code = [definition.digest(), use_case.time.lead_minutes]
    wanted = (_wanted(use_case, definition, empty, partition, code) for partition in sorted(ready))
    return replace(empty, partitions=tuple(wanted))


def pending_partitions(use_case: UseCase, outside: Outside) -> list[str]:
    """The keys of the partitions to make: new, or changed since the latest snapshot. Oldest first."""
    return _changed(_current_manifest(use_case, outside), _latest_index(use_case, outside))


def build_snapshot(use_case: UseCase, outside: Outside) -> Snapshot | None:
    """Make what is pending, keep it as a new version, and bring `outcomes` up to date; None: nothing was pending.

    Raises:
        ValueError: a clean table lacks what the features read; trying again would give the same.
        CommandFailed: the build itself failed; run again, it goes on from what was finished.
        FencedOut: a later build of the same use case has begun, and will do this work.
    """
    fence = outside.warehouse.begin(f"{use_case.name}/build_features")
    manifest, before = _current_manifest(use_case, outside), _latest_index(use_case, outside)
    changed = _changed(manifest, before)
    if not changed:
        return None
    built = _run_stage(use_case, manifest, outside)
    files = outside.versions.files(use_case.name, built.version)
    index = json.loads(files["index.json"].read_text())
    relabelled = [k for k, e in index.items() if e.get("labels_sha256") != before.get(k, {}).get("labels_sha256")]

    def commit() -> None:
        with outside.warehouse.transaction(fence) as at:
            _write_outcomes(at, use_case, outside, files=files, keys=index, relabelled=relabelled)
            at.execute(_RECORD, _row(use_case, built, index))

    outside.warehouse.retry_transaction(commit)
    logger.info("%s: %d partitions made, version %s", use_case.name, len(changed), built.version)
    return dataset.find_snapshot(built.version, use_case, outside)


def _wanted(
    use_case: UseCase, definition: features.FeatureSet, manifest: Manifest, partition: Interval, code: list[Any]
) -> WantedPartition:
    first = utc(use_case.grid.first)
    reads, gaps = {}, []
    for table, items in manifest.inputs_of(partition, definition.sources).items():
        since = first if definition.sources[table].timeless else max(first, partition.start - manifest.reach)
        missing = set(use_case.grid.covering(Interval(since, partition.end))) - {item.interval for item in items}
        reads[table] = [[item.key, item.sha256] for item in items]
        gaps += [f"{table}/{use_case.grid.key(part)}" for part in missing]
    content = json.dumps([*code, str(partition), reads], sort_keys=True)
    return WantedPartition(
        key=use_case.grid.key(partition),
        interval=partition,
        inputs=hashlib.sha256(content.encode()).hexdigest(),
        gaps=tuple(sorted(gaps)),
    )


def _current_manifest(use_case: UseCase, outside: Outside) -> Manifest:
    clean: dict[str, dict[Interval, CleanObject]] = defaultdict(dict)
    for row in outside.warehouse.query(_CLEAN, (use_case.name,)):
        part = Interval(row["partition_start"], row["partition_end"])
        clean[row["table_name"]][part] = CleanObject(
            key=use_case.grid.key(part), interval=part, uri=row["clean_uri"], sha256=row["clean_sha256"]
        )
    return make_manifest(use_case, features.definition(use_case.name), clean)


def _latest_index(use_case: UseCase, outside: Outside) -> dict[str, dict[str, Any]]:
    rows = outside.warehouse.query(
        "select index from snapshots where use_case = %s order by build_order desc limit 1", (use_case.name,)
    )
    return dict(rows[0]["index"]) if rows else {}


def _changed(manifest: Manifest, index: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [w.key for w in manifest.partitions if w.inputs != index.get(w.key, {}).get("inputs")]


def _run_stage(use_case: UseCase, manifest: Manifest, outside: Outside) -> Built:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    if use_case.name not in stages["features"]["foreach"]:
        raise ValueError(f"dvc.yaml does not build {use_case.name}: add it to the list `foreach` of `features`")
    code = [REPOSITORY / "dvc.yaml", *sorted((REPOSITORY / "features").glob("*.py"))]
    inputs = {str(path.relative_to(REPOSITORY)): path.read_bytes() for path in code} | {
        # Parameters as they were understood, not as they were typed: DVC cannot read YAML's dates.
        "params.yaml": yaml.safe_dump({use_case.name: use_case.model_dump(mode="json")}, sort_keys=True).encode(),
        f"inputs/{use_case.name}.json": manifest.to_json(),
    }
    uris = {
        item.uri
        for wanted in find_stale(manifest.partitions, outside.versions.output(use_case.name))
        for items in manifest.inputs_of(wanted.interval, features.definition(use_case.name).sources).values()
        for item in items
    }
    return outside.versions.repro(use_case.name, inputs, {"paths.json": local_paths(uris, outside)})


def local_paths(uris: Iterable[str], outside: Outside) -> bytes:
    """Where objects lie on this machine, as a stage reads it; they are fetched."""
    return json.dumps({uri: str(outside.lake.local(uri)) for uri in sorted(uris)}, indent=1).encode()


def _write_outcomes(
    at: cursor,
    use_case: UseCase,
    outside: Outside,
    *,
    files: Mapping[str, Path],
    keys: Iterable[str],
    relabelled: Sequence[str],
) -> None:
    """Bring outcomes up to date whose labels lie, or lay, in partitions that changed: the last label of any partition.

    So an older label never replaces a newer one, and is back when the newer one is withdrawn.
    """
    parts = [use_case.grid.partition(key) for key in sorted(relabelled)]
    if not parts:
        return
    every, changed = ([files[f"labels/{key}.parquet"] for key in sorted(some)] for some in (keys, relabelled))
    where = ([part.start for part in parts], [part.end for part in parts], use_case.name)
    labels = dataset.latest_labels(every, changed, outside.warehouse.copy_out(_LABELLED, where, at=at))
    present = labels.filter(pc.is_valid(labels["label"]))
    named = present.add_column(0, "use_case", pa.repeat(use_case.name, present.num_rows))
    outside.warehouse.upsert(at, "outcomes", named, ("use_case", "entity_key", "event_time"))
    gone = labels.filter(pc.is_null(labels["label"]))
    at.execute(_FORGET, (*(gone[name].to_pylist() for name in ("entity_key", "event_time")), use_case.name))


def _row(use_case: UseCase, built: Built, index: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "use_case": use_case.name,
        "version": built.version,
        "git_revision": built.git_revision,
        "start": min(entry["start"] for entry in index.values()),
        "end": max(entry["end"] for entry in index.values()),
        "partitions": len(index),
        "rows": sum(entry["rows"] for entry in index.values()),
        "index": json.dumps(index),
        "features_digest": features.definition(use_case.name).digest(),
    }
