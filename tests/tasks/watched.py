"""A watched champion on made-up data: weeks of points, their scores and labels, in a real warehouse."""

import json
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import features
from adapters.connect import Outside
from models.bundle_card import FORMAT, KEYS
from pipeline.partitions import Interval
from pipeline.spec import Monitor, UseCase
from tasks.build_features import profile as profiling

ROWS = 600
NUMBERS = tuple(f"x{i}" for i in range(8))
FIRST = datetime(2012, 12, 31, tzinfo=UTC)
WEEK = timedelta(days=7)
TRAINING_WEEKS = 10


def monitored(use_case: UseCase, **changes: Any) -> UseCase:
    """The shipped use case with a monitor block for small data."""
    small = {
        "min_rows": 500,
        "min_labelled": 100,
        "min_drifted_features": 3,
        "structural_features": ("carrier",),
        "max_age_days": 10_000,
        "max_new_rows_share": 1e6,
    }
    block = Monitor(**{**use_case.monitor.model_dump(), **small, **changes})
    return use_case.model_copy(update={"monitor": block})


def week(number: int) -> Interval:
    """The partition that many weeks after the first."""
    return Interval(FIRST + number * WEEK, FIRST + (number + 1) * WEEK)


def points(
    partition: Interval, *, seed: int, rows: int = ROWS, shift: float = 0.0, week_effect: float = 0.0
) -> pa.Table:
    """Points of a partition: eight numbers and two texts, without drift but for a shift in standard deviations.

    Args:
        partition: prediction times spread over it evenly.
        seed: of the random numbers.
        rows: how many.
        shift: added to every number.
        week_effect: standard deviation of what each number is off by in the whole partition, as weather would be.
    """
    rng = np.random.default_rng(seed)
    seconds = np.linspace(0, (partition.end - partition.start).total_seconds() - 1, rows)
    times = [partition.start + timedelta(seconds=int(second)) for second in seconds]
    kind = pa.timestamp("us", tz="UTC")
    effect = rng.normal(0, week_effect, len(NUMBERS)) if week_effect else np.zeros(len(NUMBERS))
    numbers = {name: rng.normal(shift + e, 1, rows) for name, e in zip(NUMBERS, effect, strict=True)}
    return pa.table(
        {
            "entity_key": [f"{partition.start:%Y%m%d}-{i}" for i in range(rows)],
            "event_time": pa.array([time + timedelta(hours=2) for time in times], kind),
            "prediction_time": pa.array(times, kind),
            **numbers,
            "carrier": rng.choice(["AA", "UA", "B6"], rows, p=[0.5, 0.3, 0.2]),
            "dest": rng.choice([f"D{i}" for i in range(40)], rows),
        }
    )


def training(seed: int = 0, weeks: int = TRAINING_WEEKS, **how: Any) -> pa.Table:
    """What a champion was trained on: the first weeks, labelled, with its scores."""
    table = pa.concat_tables(points(week(i), seed=1000 * seed + i, **how) for i in range(weeks))
    times = pa.array([time + timedelta(hours=5) for time in table["prediction_time"].to_pylist()], table.schema[1].type)
    scores = np.random.default_rng(seed).beta(2, 6, table.num_rows)
    return table.append_column("label_time", times).append_column("score", pa.array(scores))


def emptied(table: pa.Table, *columns: str) -> pa.Table:
    """The table with columns that hold nothing, as after a feed broke."""
    for name in columns:
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.nulls(table.num_rows, table.schema.field(name).type))
    return table


@dataclass
class Registry:
    """Stands in for MLflow, of which monitoring needs a profile, and what the model learnt: today's features."""

    profile_of: dict[str, dict[str, Any]] = field(default_factory=dict)

    def profile(self, _use_case: str, model_version: str) -> dict[str, Any]:
        return self.profile_of[model_version]

    def download_bundle(self, use_case: str, _model_version: str) -> Path:
        folder = Path(_bundles().name)
        card = dict.fromkeys(KEYS) | {
            "format": FORMAT,
            "features": {"digest": features.definition(use_case).digest()},
        }
        (folder / "card.json").write_text(json.dumps(card))
        (folder / "features.json").write_text("{}")
        return folder


@cache
def _bundles() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()


@dataclass
class Versions:
    """Stands in for DVC, of which reading a dataset needs the files."""

    folder: Path

    def files(self, _use_case: str, _version: str) -> dict[str, Path]:
        return {str(p.relative_to(self.folder)): p for p in self.folder.rglob("*.*")}


@dataclass
class World:
    """A use case whose champion, version 1, is in force from the end of its training weeks on."""

    use_case: UseCase
    outside: Outside
    folder: Path

    def __post_init__(self) -> None:
        train = training()
        self.connect(self.outside)
        self.outside.registry.profile_of["1"] = profiling.make_profile(train, self.use_case)  # type: ignore[attr-defined]
        for number in range(TRAINING_WEEKS):
            self._add(week(number), train.slice(number * ROWS, ROWS).drop_columns(["label_time", "score"]))
        self.champion("1", week(TRAINING_WEEKS).start)

    def connect(self, outside: Outside) -> None:
        """Use this outside world from now on, as a new process would."""
        registry = self.outside.__dict__.get("registry") or Registry()
        self.outside = outside
        outside.__dict__["registry"] = registry
        outside.__dict__["versions"] = Versions(self.folder)

    def champion(self, version: str, as_of: datetime) -> None:
        """Put a version in force from a data time on."""
        self._write(
            "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
            " values (%s, 'promote', %s, %s, 'test', 'test', '{}')",
            (self.use_case.name, version, as_of),
        )

    def score(
        self, number: int, table: pa.Table | None = None, *, labelled: float = 1.0, version: str = "1", **how: Any
    ) -> pa.Table:
        """A scored week: points in the dataset, predictions, labels five hours later for a share of the rows."""
        partition = week(number)
        table = points(partition, seed=number, **how) if table is None else table
        self._add(partition, table)
        scores = np.random.default_rng(number).beta(2, 6, table.num_rows)
        labels = (np.random.default_rng(number + 1).random(table.num_rows) < scores).astype(float)
        same = {"use_case": [self.use_case.name] * table.num_rows} | {
            name: table[name] for name in ("entity_key", "event_time")
        }
        predictions = pa.table(
            {
                **same,
                "model_version": [version] * table.num_rows,
                "prediction_time": table["prediction_time"],
                "score": scores,
                "snapshot_version": ["s"] * table.num_rows,
            }
        )
        times = [time + timedelta(hours=5) for time in table["prediction_time"].to_pylist()]
        outcomes = pa.table({**same, "label": labels, "label_time": pa.array(times, table.schema[1].type)})
        outcomes = outcomes.slice(0, int(labelled * table.num_rows))
        with self.outside.warehouse.transaction() as at:
            key = ["use_case", "entity_key", "event_time"]
            self.outside.warehouse.upsert(at, "predictions", predictions, [*key, "model_version"])
            self.outside.warehouse.upsert(at, "outcomes", outcomes, key)
            at.execute(
                "insert into scorings (use_case, partition_start, model_version, inputs, snapshot_version, rows)"
                " values (%s, %s, %s, 'i', 's', %s)",
                (self.use_case.name, partition.start, version, table.num_rows),
            )
        return outcomes

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table of the warehouse, as text that can be compared."""
        return self.outside.warehouse.query(f"select * from {table} t order by t::text")

    def _add(self, partition: Interval, table: pa.Table) -> None:
        key = self.use_case.grid.key(partition)
        for kind in ("points", "labels"):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, self.folder / kind / f"{key}.parquet")
        path = self.folder / "index.json"
        index = json.loads(path.read_text()) if path.exists() else {}
        index[key] = {"start": partition.start.isoformat(), "end": partition.end.isoformat()}
        path.write_text(json.dumps(index))

    def _write(self, query: str, params: tuple[Any, ...]) -> None:
        with self.outside.warehouse.transaction() as at:
            at.execute(query, params)
