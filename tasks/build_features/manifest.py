"""What a feature dataset is made from: the clean objects and, for each partition, the digest of those that it reads."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval

if TYPE_CHECKING:  # a stage reads this: its start is not to wait for what it does not use
    from adapters.connect import Outside
    from features import FeatureSet
    from features.vocabulary import SourceTable


@dataclass(frozen=True, kw_only=True)
class CleanObject:
    """One table's clean content of one partition."""

    key: str
    interval: Interval
    uri: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WantedPartition:
    """One partition to make. `gaps` are the partitions (table/key) its history should hold, and does not yet."""

    key: str
    interval: Interval
    inputs: str
    gaps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset is to be made from. `reach` is how far before its partition a history is read."""

    reach: timedelta
    objects: Mapping[str, tuple[CleanObject, ...]]
    partitions: tuple[WantedPartition, ...]

    def inputs_of(self, interval: Interval, sources: Mapping[str, "SourceTable"]) -> dict[str, list[CleanObject]]:
        """What an interval is made from, by table: its history; of a timeless table all that came before its end."""
        return {
            table: [
                item
                for item in self.objects[table]
                if item.interval.start < interval.end
                and (source.timeless or item.interval.end > interval.start - self.reach)
            ]
            for table, source in sources.items()
        }

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
            objects={t: tuple(CleanObject(**_typed(item)) for item in items) for t, items in read["objects"].items()},
            partitions=tuple(
                WantedPartition(**_typed(item) | {"gaps": tuple(item["gaps"])}) for item in read["partitions"]
            ),
        )


def _plain(item: CleanObject | WantedPartition) -> dict[str, Any]:
    """Without its interval's class: start and end as text."""
    return {name: value for name, value in vars(item).items() if name != "interval"} | {
        "start": item.interval.start.isoformat(),
        "end": item.interval.end.isoformat(),
    }


def _typed(item: dict[str, Any]) -> dict[str, Any]:
    start, end = (datetime.fromisoformat(item[name]) for name in ("start", "end"))
    return {name: value for name, value in item.items() if name not in ("start", "end")} | {
        "interval": Interval(start, end)
    }


def find_stale(wanted: Iterable[WantedPartition], folder: Path) -> list[WantedPartition]:
    """Those partitions that the output folder lacks, or holds from other inputs, or holds damaged."""
    index = read_index(folder)
    return [partition for partition in wanted if not _is_kept(partition, index.get(partition.key), folder)]


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """What the output folder holds: partition key -> inputs, rows, labels and hashes. Nothing yet: empty."""
    path = folder / "index.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _is_kept(wanted: WantedPartition, entry: Mapping[str, Any] | None, folder: Path) -> bool:
    if entry is None or entry["inputs"] != wanted.inputs:
        return False
    files = {name: folder / name / f"{wanted.key}.parquet" for name in ("points", "labels")}
    return all(
        path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == entry[f"{name}_sha256"]
        for name, path in files.items()
    )


def committed_manifest(snapshot: Snapshot, outside: "Outside") -> Manifest:
    """What a version was made from, as it was committed with it."""
    path = f"inputs/{snapshot.use_case}.json"
    return Manifest.from_json(outside.versions.committed(snapshot.use_case, snapshot.git_revision, path))


def clean_objects(
    snapshot: Snapshot, interval: Interval, outside: "Outside", definition: "FeatureSet"
) -> dict[str, list[CleanObject]]:
    """The clean objects of a version that a definition reads for an interval, by table.

    Raises:
        ValueError: it reads a table of which the version knows nothing.
    """
    manifest = replace(committed_manifest(snapshot, outside), reach=definition.look_back)
    if absent := sorted(definition.sources.keys() - manifest.objects.keys()):
        raise ValueError(f"dataset version {snapshot.version} has nothing of {absent}: build features anew")
    return manifest.inputs_of(interval, definition.sources)


def clean_files(
    snapshot: Snapshot, interval: Interval, outside: "Outside", definition: "FeatureSet"
) -> dict[str, list[Path]]:
    """The same, as files of this machine."""
    return local_files(clean_objects(snapshot, interval, outside, definition), outside)


def local_files(objects: Mapping[str, Iterable[CleanObject]], outside: "Outside") -> dict[str, list[Path]]:
    """Clean objects by table, as files of this machine."""
    return {table: [outside.lake.local(item.uri) for item in items] for table, items in objects.items()}
