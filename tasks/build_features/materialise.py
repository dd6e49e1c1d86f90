"""The stage command of dvc.yaml: makes the feature partitions whose inputs changed, and keeps the others.

Runs in a DVC workspace, with that workspace's feature code (which is what was committed with the version), and reads
  inputs/<use case>.json   the manifest: for each partition the clean objects it is made from, and their digest
  local/paths.json         where those objects lie on this machine
It writes data/<use case>/points/<partition>.parquet, labels/<partition>.parquet and, last, index.json.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from adapters.parquet import to_bytes
from features import build as build_interval
from features import definition
from pipeline.partitions import Interval

logger = logging.getLogger(__name__)
_HISTORIES_A_PASS = 4  # partitions made together share one reading of their history; memory is what limits it


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One table's clean content of one partition."""

    key: str
    interval: Interval
    uri: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One partition to make. `gaps` are the partitions (table/key) its history should hold, and does not yet."""

    key: str
    interval: Interval
    inputs: str
    gaps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset is to be made from. `reach` is how far before its partition a history is read."""

    reach: timedelta
    objects: Mapping[str, tuple[Stored, ...]]
    partitions: tuple[Wanted, ...]

    def reads(self, table: str, interval: Interval, *, timeless: bool) -> list[Stored]:
        """The contents of a table that an interval is made from: its history, or all that came before its end."""
        since = interval.start - self.reach
        return [
            item
            for item in self.objects[table]
            if item.interval.start < interval.end and (timeless or item.interval.end > since)
        ]

    def to_json(self) -> bytes:
        """The same manifest, the same bytes."""
        content = {
            "reach_seconds": self.reach // timedelta(seconds=1),
            "objects": {table: [_plain(item) for item in items] for table, items in self.objects.items()},
            "partitions": [_plain(wanted) for wanted in self.partitions],
        }
        return json.dumps(content, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Manifest":
        """What `to_json` wrote."""
        read = json.loads(content)
        return cls(
            reach=timedelta(seconds=read["reach_seconds"]),
            objects={t: tuple(Stored(**_typed(item)) for item in items) for t, items in read["objects"].items()},
            partitions=tuple(Wanted(**_typed(item) | {"gaps": tuple(item["gaps"])}) for item in read["partitions"]),
        )


def _plain(item: Stored | Wanted) -> dict[str, Any]:
    """Without its interval's class: start and end as text."""
    fields = {name: value for name, value in vars(item).items() if name != "interval"}
    return fields | {"start": item.interval.start.isoformat(), "end": item.interval.end.isoformat()}


def _typed(item: dict[str, Any]) -> dict[str, Any]:
    start, end = (datetime.fromisoformat(item[name]) for name in ("start", "end"))
    return {name: value for name, value in item.items() if name not in ("start", "end")} | {
        "interval": Interval(start, end)
    }


def stale(wanted: Iterable[Wanted], folder: Path) -> list[Wanted]:
    """Those partitions that the output folder lacks, or holds from other inputs, or holds damaged."""
    index = read_index(folder)
    return [partition for partition in wanted if not _is_kept(partition, index.get(partition.key), folder)]


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """What the output folder holds: partition key -> inputs, rows, labels and hashes. Nothing yet: empty."""
    path = folder / "index.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def passes(partitions: Sequence[Wanted], longest: timedelta) -> list[list[Wanted]]:
    """Partitions that follow one another, together as far as `longest`: they share the reading of their history."""
    found: list[list[Wanted]] = []
    for partition in partitions:
        together = found[-1] if found else []
        if (
            together
            and together[-1].interval.end == partition.interval.start
            and partition.interval.end - together[0].interval.start <= longest
        ):
            together.append(partition)
        else:
            found.append([partition])
    return found


def between(table: pa.Table, column: str, interval: Interval) -> pa.Table:
    """The rows whose moment in a column lies in the interval."""
    kind = table.schema.field(column).type
    start, end = pa.scalar(interval.start, kind), pa.scalar(interval.end, kind)
    return table.filter(pc.and_(pc.greater_equal(table[column], start), pc.less(table[column], end)))


def main(use_case: str, folder: Path) -> None:
    """Bring `data/<use case>` in a workspace up to date with its manifest."""
    parameters = yaml.safe_load((folder / "params.yaml").read_text())[use_case]
    lead = timedelta(minutes=parameters["time"]["lead_minutes"])
    manifest = Manifest.from_json((folder / "inputs" / f"{use_case}.json").read_bytes())
    paths = {uri: Path(path) for uri, path in json.loads((folder / "local" / "paths.json").read_text()).items()}
    output, asked = folder / "data" / use_case, definition(use_case)
    before, todo = read_index(output), stale(manifest.partitions, output)
    index = {w.key: before[w.key] for w in manifest.partitions if w not in todo}
    logger.info("%s: %d of %d partitions to make", use_case, len(todo), len(manifest.partitions))
    for together in passes(todo, _HISTORIES_A_PASS * asked.look_back):
        interval = Interval(together[0].interval.start, together[-1].interval.end)
        tables = {
            table: [paths[item.uri] for item in manifest.reads(table, interval, timeless=source.timeless)]
            for table, source in asked.sources.items()
        }
        points, labels = build_interval(asked, tables, interval, lead, engine=parameters["engine"])
        index |= {w.key: _store(w, points, labels, output) for w in together}
    _remove_others(output, index)
    _write(output / "index.json", json.dumps(index, indent=1, sort_keys=True).encode())


def _store(wanted: Wanted, points: pa.Table, labels: pa.Table, output: Path) -> dict[str, Any]:
    parts = {
        "points": between(points, "prediction_time", wanted.interval),
        "labels": between(labels, "label_time", wanted.interval),
    }
    contents = {name: to_bytes(part) for name, part in parts.items()}
    for name, content in contents.items():
        _write(output / name / f"{wanted.key}.parquet", content)
    return {
        "start": wanted.interval.start.isoformat(),
        "end": wanted.interval.end.isoformat(),
        "inputs": wanted.inputs,
        "gaps": list(wanted.gaps),
        "rows": parts["points"].num_rows,
        "labels": parts["labels"].num_rows,
        **{f"{name}_sha256": hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }


def _is_kept(wanted: Wanted, entry: Mapping[str, Any] | None, folder: Path) -> bool:
    if entry is None or entry["inputs"] != wanted.inputs:
        return False
    files = {name: folder / name / f"{wanted.key}.parquet" for name in ("points", "labels")}
    return all(
        path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == entry[f"{name}_sha256"]
        for name, path in files.items()
    )


def _remove_others(output: Path, index: Mapping[str, Any]) -> None:
    for path in output.glob("*/*"):
        if path.suffix != ".parquet" or path.stem not in index:
            path.unlink()  # a partition no longer asked for, or half a file of a run that was killed


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1], Path.cwd())
