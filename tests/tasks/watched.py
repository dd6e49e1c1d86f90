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
from psycopg2.extras import execute_values

import features
from adapters.connect import Outside
from adapters.errors import Missing
from adapters.registry import Version
from models.bundle_card import FORMAT, KEYS
from pipeline.monitoring import Monitor
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import profile as profiling
from tasks.monitor import monitor

ROWS = 600
NUMBERS = tuple(f"x{i}" for i in range(8))
FIRST = datetime(2012, 12, 31, tzinfo=UTC)
WEEK = timedelta(days=7)
TRAINING_WEEKS = 10
_ANSWER_LOG = """
insert into online_answers (use_case, request_id, position, model_version, slot, client, entity_key, event_time,
    prediction_time, score, degraded, reasons, server_ms, request, features, answered_at)
select use_case, 'due-' || entity_key, 0, %s, 'stable', 'stream', entity_key, event_time, prediction_time, {score},
    false, '{{}}', 1, '{{}}', features, now()
from predictions join answering using (entity_key) where model_version = %s"""
_ANSWERS = """
insert into answers_in_time (use_case, entity_key, event_time, prediction_time, model_version, score, degraded,
    reasons, request_id, position, known_until, answered_at, in_time)
select use_case, entity_key, event_time, prediction_time, %s, {score}, false, '{{}}', 'due-' || entity_key, 0,
    prediction_time, prediction_time + interval '1 minute', %s
from predictions join answering using (entity_key) where model_version = %s"""


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
    lost: set[str] = field(default_factory=set)  # versions whose bundle is not there

    def profile(self, _use_case: str, model_version: str) -> dict[str, Any]:
        return self.profile_of[model_version]

    def version(self, _use_case: str, model_version: str) -> Version:
        raise Missing(f"nothing that answers is stored for version {model_version}")

    def download_bundle(self, use_case: str, model_version: str) -> Path:
        if model_version in self.lost:
            raise Missing(f"nothing is stored for version {model_version}")
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

    def recalibrate(self, version: str, network: str, as_of: datetime) -> None:
        """Put a recalibration in force, by the decision of a data time."""
        decision = f"{self.use_case.name}-{as_of:%Y%m%dT%H%M}"
        self._write(
            "insert into recalibrations (decision_id, use_case, network_version, as_of, intercept, evidence, state,"
            " model_version) values (%s, %s, %s, %s, 0.1, '{}', 'done', %s)",
            (decision, self.use_case.name, network, as_of, version),
        )
        self._write(
            "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
            " values (%s, 'recalibrate', %s, %s, 'monitor', 'test', '{}')",
            (self.use_case.name, version, as_of),
        )
        self.outside.registry.profile_of[version] = self.outside.registry.profile_of[network]  # type: ignore[attr-defined]

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

    def answer(
        self,
        number: int,
        table: pa.Table | None = None,
        *,
        share: float = 1.0,
        score: str = "score",
        version: str = "1",
        by: str | None = None,
        in_time: bool = True,
    ) -> None:
        """Answers to the first events of a scored week, a minute after their prediction time.

        Args:
            number: which week.
            table: what they were made of; None: the points that batch has.
            share: how many of the events.
            score: what was said, by the batch score.
            version: whose batch scores these are.
            by: which version says so; None: the same.
            in_time: whether the answers are.
        """
        table = pq.read_table(self._path("points", week(number))) if table is None else table
        rows = table.slice(0, round(share * table.num_rows)).to_pylist()
        features = [(row["entity_key"], json.dumps({k: row[k] for k in (*NUMBERS, "carrier", "dest")})) for row in rows]
        with self.outside.warehouse.transaction() as at:
            at.execute("create temporary table answering (entity_key text, features jsonb) on commit drop")
            execute_values(at, "insert into answering values %s", features)
            at.execute(_ANSWER_LOG.format(score=score), (by or version, version))
            at.execute(_ANSWERS.format(score=score), (by or version, in_time, version))

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table of the warehouse, as text that can be compared."""
        return self.outside.warehouse.query(f"select * from {table} t order by t::text")

    def _add(self, partition: Interval, table: pa.Table) -> None:
        key = self.use_case.grid.key(partition)
        for kind in ("points", "labels"):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(table, self._path(kind, partition))
        path = self.folder / "index.json"
        index = json.loads(path.read_text()) if path.exists() else {}
        index[key] = {"start": partition.start.isoformat(), "end": partition.end.isoformat()}
        path.write_text(json.dumps(index))

    def _path(self, kind: str, partition: Interval) -> Path:
        return self.folder / kind / f"{self.use_case.grid.key(partition)}.parquet"

    def _write(self, query: str, params: tuple[Any, ...]) -> None:
        with self.outside.warehouse.transaction() as at:
            at.execute(query, params)


def decided(world: World) -> list[str]:
    """What monitoring decides of what is undecided, oldest first."""
    return [found.decision for found in monitor.monitor_partitions(world.use_case, world.outside)]
