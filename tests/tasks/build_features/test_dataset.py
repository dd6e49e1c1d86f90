"""Which rows a dataset gives, and which it refuses to hold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adapters.errors import REFUSAL
from features import FeatureSet, definition
from features.engine import LABEL_SCHEMA
from pipeline.spec import UseCase
from tasks.build_features import dataset, materialise
from tasks.build_features.manifest import CleanObject, Manifest, WantedPartition, read_index
from tests.clean_data import clean_rows, week
from tests.tasks.watched import Versions

FLIGHTS = definition("flights")
NOON = datetime(2013, 1, 2, 12, tzinfo=UTC)
MOMENT = pa.timestamp("us", "UTC")


@pytest.fixture
def stored(tmp_path: Path, use_case: UseCase) -> SimpleNamespace:
    """One partition with a point for each of these labels, and where to read it."""
    labels = {"late": 1.0, "null": None, "nan": float("nan"), "infinite": float("inf"), "on time": 0.0}
    n = len(labels)
    points = {"entity_key": list(labels), "event_time": [NOON] * n, "prediction_time": [NOON] * n, "x": [1.0] * n}
    told = {
        "entity_key": list(labels),
        "event_time": [NOON] * n,
        "label": list(labels.values()),
        "label_time": [NOON] * n,
    }
    schema = pa.schema({"entity_key": pa.string(), "event_time": MOMENT, "prediction_time": MOMENT, "x": pa.float64()})
    key = use_case.grid.key(week(0))
    for kind, table in (("points", pa.table(points, schema)), ("labels", pa.table(told, LABEL_SCHEMA))):
        (tmp_path / kind).mkdir()
        pq.write_table(table, tmp_path / kind / f"{key}.parquet")
    bounds = {"start": week(0).start.isoformat(), "end": week(0).end.isoformat()}
    (tmp_path / "index.json").write_text(json.dumps({key: bounds}))
    return SimpleNamespace(versions=Versions(tmp_path), labels=tmp_path / "labels" / f"{key}.parquet")


def test_a_row_whose_label_is_null_or_no_number_has_none(stored: Any, use_case: UseCase) -> None:
    end = week(0).end
    rows = dataset.load_rows("v", use_case, stored, start=week(0).start, end=end, known_by=end)
    assert dict(zip(rows["entity_key"].to_pylist(), rows["label"].to_pylist(), strict=True)) == {
        "late": 1.0,
        "on time": 0.0,
    }
    assert dataset.load_points("v", use_case, stored, start=week(0).start, end=end).num_rows == 5  # they are predicted


def test_a_label_that_is_null_is_no_outcome_and_takes_none_away(stored: Any, tmp_path: Path) -> None:
    """Told again without a value, the telling before it counts."""
    again = tmp_path / "again.parquet"
    pq.write_table(
        pa.table(
            {
                "entity_key": ["late"],
                "event_time": [NOON],
                "label": [None],
                "label_time": [NOON + timedelta(hours=1)],
            },
            LABEL_SCHEMA,
        ),
        again,
    )
    nobody = pq.read_table(stored.labels).select(["entity_key", "event_time"]).slice(0, 0)
    found = dataset.latest_labels([stored.labels, again], [stored.labels, again], nobody).to_pylist()
    assert {row["entity_key"]: (row["label"], row["label_time"]) for row in found} == {
        "late": (1.0, NOON),
        "on time": (0.0, NOON),
        "null": (None, None),
        "nan": (None, None),
        "infinite": (None, None),
    }


def lay_out(folder: Path, use_case: UseCase, tables: Mapping[str, pa.Table], *, lost: Sequence[str] = ()) -> None:
    """A workspace that asks for the first week of these tables; where the lost ones lie is not said."""
    key, objects, paths = use_case.grid.key(week(0)), {}, {}
    for name in FLIGHTS.sources:
        item = CleanObject(key=key, interval=week(0), uri=f"s3://lake/{name}", sha256=name)
        objects[name] = (item,) if name in tables else ()
        if name in tables and name not in lost:
            pq.write_table(tables[name], folder / f"{name}.parquet")
            paths[item.uri] = str(folder / f"{name}.parquet")
    wanted = WantedPartition(key=key, interval=week(0), inputs="", gaps=())
    for name in ("inputs", "local"):
        (folder / name).mkdir()
    (folder / "inputs/flights.json").write_bytes(
        Manifest(reach=timedelta(days=1), objects=objects, partitions=(wanted,)).to_json()
    )
    (folder / "local/paths.json").write_text(json.dumps(paths))
    (folder / "params.yaml").write_text(json.dumps({"flights": use_case.model_dump(mode="json")}))


def one_day() -> pa.Table:
    return clean_rows("flights", week(0)).slice(0, 800)


def keyed_by(entity_key: str) -> FeatureSet:
    """The shipped definition, with its points named otherwise."""
    return replace(FLIGHTS, point_sql={**FLIGHTS.point_sql, "entity_key": entity_key})


@pytest.mark.parametrize(
    ("entity_key", "refusal"),
    [
        (FLIGHTS.point_sql["entity_key"], None),
        ("asked.carrier", r"flights: \d+ points share their entity_key and event_time with another, such as '\w\w' at"),
        ("nullif(asked.carrier, '9E')", r"points have no entity_key: expect what it is made of to have a value"),
    ],
)
def test_points_that_cannot_be_told_apart_are_refused_and_others_built(
    use_case: UseCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entity_key: str, refusal: str | None
) -> None:
    """Two planes of one carrier leave in the same minute: by the carrier alone each would learn the other's label."""
    monkeypatch.setattr(materialise, "definition", lambda _: keyed_by(entity_key))
    lay_out(tmp_path, use_case, {"flights": one_day()})
    if refusal is None:
        materialise.run_stage("flights", tmp_path)
        [entry] = read_index(tmp_path / "data/flights").values()
        assert entry["rows"] > 100
    else:
        with pytest.raises(ValueError, match=refusal):
            materialise.run_stage("flights", tmp_path)
        assert read_index(tmp_path / "data/flights") == {}
    assert (tmp_path / REFUSAL).exists() == (refusal is not None)  # and so nobody tries again


def test_a_stage_that_a_second_attempt_would_only_repeat_says_so(use_case: UseCase, tmp_path: Path) -> None:
    lay_out(tmp_path, use_case, {"flights": one_day()}, lost=["flights"])
    with pytest.raises(KeyError):
        materialise.run_stage("flights", tmp_path)
    assert (tmp_path / REFUSAL).read_text() == "KeyError: 's3://lake/flights'"


def test_a_stage_that_found_a_damaged_file_is_tried_again(use_case: UseCase, tmp_path: Path) -> None:
    lay_out(tmp_path, use_case, {"flights": one_day()})
    (tmp_path / "local/paths.json").write_text('{"s3://lake/fli')
    with pytest.raises(json.JSONDecodeError):
        materialise.run_stage("flights", tmp_path)
    assert not (tmp_path / REFUSAL).exists()
