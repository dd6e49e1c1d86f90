"""The stage command of dvc.yaml: makes the feature partitions whose inputs changed, and keeps the others.

Runs in a DVC workspace, with that workspace's feature code (which is what was committed with the version), and reads
  inputs/<use case>.json   the manifest: for each partition the clean objects it is made from, and their digest
  local/paths.json         where those objects lie on this machine
It writes data/<use case>/points/<partition>.parquet, labels/<partition>.parquet and, last, index.json; or, where the
inputs are not fit and trying again would give the same, `adapters.errors.REFUSAL`, which says why.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from adapters.errors import REFUSAL
from adapters.files import write_atomically
from adapters.parquet import to_bytes
from features import build as build_interval
from features import definition
from pipeline.mistakes import is_mistake
from pipeline.partitions import Interval
from tasks.build_features.manifest import Manifest, WantedPartition, find_stale, read_index

logger = logging.getLogger(__name__)
IDENTITY = ["entity_key", "event_time"]
_HISTORIES_A_PASS = 4  # partitions made together share one reading of their history; memory is what limits it


def group_passes(partitions: Sequence[WantedPartition], longest: timedelta) -> list[list[WantedPartition]]:
    """Partitions that follow one another, together as far as `longest`: they share the reading of their history."""
    groups: list[list[WantedPartition]] = []
    for partition in partitions:
        together = groups[-1] if groups else []
        if (
            together
            and together[-1].interval.end == partition.interval.start
            and partition.interval.end - together[0].interval.start <= longest
        ):
            together.append(partition)
        else:
            groups.append([partition])
    return groups


def rows_within(table: pa.Table, column: str, interval: Interval) -> pa.Table:
    """The rows whose moment in a column lies in the interval."""
    kind = table.schema.field(column).type
    start, end = pa.scalar(interval.start, kind), pa.scalar(interval.end, kind)
    return table.filter(pc.and_(pc.greater_equal(table[column], start), pc.less(table[column], end)))


def require_identities(points: pa.Table, use_case: str) -> None:
    """Each point is known by its entity_key and event_time, which its labels and scores are found by.

    Raises:
        ValueError: a point lacks one of them, or two points share both; says which, and what mends it.
    """
    for name in IDENTITY:
        if absent := points[name].null_count:
            raise ValueError(
                f"{use_case}: {absent} of {points.num_rows} points have no {name}: expect what it is made of to have a"
                f" value (expectations/{use_case}.py, `nullable=False`), and such rows are quarantined"
            )
    counted = points.group_by(IDENTITY).aggregate([([], "count_all")])
    doubled = counted.filter(pc.greater(counted["count_all"], 1)).sort_by([(name, "ascending") for name in IDENTITY])
    if doubled.num_rows:
        first = doubled.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"{use_case}: {pc.sum(doubled['count_all']).as_py()} points share their entity_key and event_time with"
            f" another, such as {first['entity_key']!r} at {first['event_time']:%Y-%m-%d %H:%M:%S.%f}: they would learn"
            f" each other's labels. Tell them apart in entity_key, or keep one of them (features/{use_case}.py)"
        )


def make_dataset(use_case: str, folder: Path) -> None:
    """Bring `data/<use case>` in a workspace up to date with its manifest."""
    parameters = yaml.safe_load((folder / "params.yaml").read_text())[use_case]
    lead = timedelta(minutes=parameters["time"]["lead_minutes"])
    manifest = Manifest.from_json((folder / "inputs" / f"{use_case}.json").read_bytes())
    paths = {uri: Path(path) for uri, path in json.loads((folder / "local" / "paths.json").read_text()).items()}
    output, features = folder / "data" / use_case, definition(use_case)
    before, todo = read_index(output), find_stale(manifest.partitions, output)
    index = {w.key: before[w.key] for w in manifest.partitions if w not in todo}
    logger.info("%s: %d of %d partitions to make", use_case, len(todo), len(manifest.partitions))
    for together in group_passes(todo, _HISTORIES_A_PASS * features.look_back):
        interval = Interval(together[0].interval.start, together[-1].interval.end)
        tables = {
            table: [paths[item.uri] for item in items]
            for table, items in manifest.inputs_of(interval, features.sources).items()
        }
        points, labels = build_interval(features, tables, interval, lead, engine=parameters["engine"])
        require_identities(points, use_case)
        index |= {w.key: _store(w, points, labels, output) for w in together}
    _remove_others(output, index)
    write_atomically(output / "index.json", json.dumps(index, indent=1, sort_keys=True).encode(), mode=0o644)


def run_stage(use_case: str, folder: Path) -> None:
    """`make_dataset`; of what trying again would only repeat it leaves a refusal, and whatever goes wrong is raised."""
    try:
        make_dataset(use_case, folder)
    except (pa.ArrowException, UnicodeError, json.JSONDecodeError):  # a damaged file, which is fetched again
        raise
    except Exception as error:
        if is_mistake(error):
            write_atomically(folder / REFUSAL, _describe(error).encode())
        raise


def _describe(error: Exception) -> str:
    # A ValueError is a sentence; of a KeyError the text alone would be a name.
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _store(wanted: WantedPartition, points: pa.Table, labels: pa.Table, output: Path) -> dict[str, Any]:
    parts = {
        "points": rows_within(points, "prediction_time", wanted.interval),
        "labels": rows_within(labels, "label_time", wanted.interval),
    }
    contents = {name: to_bytes(part) for name, part in parts.items()}
    for name, content in contents.items():
        write_atomically(output / name / f"{wanted.key}.parquet", content, mode=0o644)
    return {
        "start": wanted.interval.start.isoformat(),
        "end": wanted.interval.end.isoformat(),
        "inputs": wanted.inputs,
        "gaps": list(wanted.gaps),
        "rows": parts["points"].num_rows,
        "labels": parts["labels"].num_rows,
        **{f"{name}_sha256": hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }


def _remove_others(output: Path, index: Mapping[str, Any]) -> None:
    for path in (*output.glob("*/*"), *output.glob(".partial-*"), *output.glob("*.partial")):
        if path.suffix != ".parquet" or path.stem not in index:
            path.unlink()  # a partition that is no longer wanted, or half a file of a run that was killed


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_stage(sys.argv[1], Path.cwd())
