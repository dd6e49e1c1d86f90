"""The feature dataset follows the clean data: exactly what changed is made again, and nothing is lost or doubled."""

import contextlib
import json
import shutil
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from adapters.connect import Outside
from adapters.errors import FencedOut
from features import definition
from pipeline.partitions import Interval
from pipeline.settings import Settings
from pipeline.spec import UseCase
from tasks.build_features import build as build_features
from tasks.build_features import dataset
from tasks.build_features.manifest import CleanObject, Manifest, WantedPartition, find_stale, read_index
from tasks.build_features.materialise import group_passes, make_dataset
from tasks.build_features.rebuild import rebuild_version
from tests.clean_data import TABLES, clean_rows, put_clean, put_table, week
from tests.features.world import thinned
from tests.tasks.killed import run

FLIGHTS = definition("flights")


@cache
def small(partition: Interval) -> dict[str, pa.Table]:
    """A partition's flights, thinned, and their movements."""
    return {name: thinned(clean_rows(name, partition)) for name in ("flights", "movements")}


def put(outside: Outside, use_case: UseCase, *numbers: int) -> None:
    for number in numbers:
        put_clean(outside, use_case, week(number), **small(week(number)))


def without_arrivals(partition: Interval, carrier: str) -> pa.Table:
    """The movements of a partition, corrected: one carrier's planes did not arrive after all."""
    rows = small(partition)["movements"]
    return rows.filter(pc.invert(pc.and_(pc.equal(rows["kind"], "arrived"), pc.equal(rows["carrier"], carrier))))


def index(outside: Outside) -> dict[str, dict[str, Any]]:
    [row] = outside.warehouse.query("select index from snapshots order by build_order desc limit 1")
    return dict(row["index"])


def outcomes(outside: Outside) -> int:
    return int(outside.warehouse.query("select count(*) as n from outcomes")[0]["n"])


def test_the_dataset_grows_by_what_is_new_and_twice_is_nothing_to_do(outside: Outside, use_case: UseCase) -> None:
    assert build_features.build_snapshot(use_case, outside) is None
    put(outside, use_case, 0, 1)
    assert build_features.pending_partitions(use_case, outside) == ["2012-12-31", "2013-01-07"]
    first = build_features.build_snapshot(use_case, outside)
    assert first is not None
    assert (first.start, first.end, first.partitions) == (week(0).start, week(1).end, 2)
    assert build_features.pending_partitions(use_case, outside) == []
    assert build_features.build_snapshot(use_case, outside) is None
    before = index(outside)

    put(outside, use_case, 2)
    assert build_features.pending_partitions(use_case, outside) == ["2013-01-14"]
    second = build_features.build_snapshot(use_case, outside)
    assert second is not None
    assert second == dataset.latest_snapshot(use_case, outside)
    assert {key: entry for key, entry in index(outside).items() if key in before} == before

    labels = dataset.load_rows(
        second.version, use_case, outside, start=second.start, end=second.end, known_by=second.end
    )
    assert outcomes(outside) == labels.num_rows > 500
    assert dataset.load_rows(
        first.version, use_case, outside, start=first.start, end=first.end, known_by=first.end
    ).num_rows
    assert rebuild_version(first, outside) == first.version


def test_data_out_of_order_blocked_or_corrected_ends_as_if_it_had_come_well(
    outside: Outside, use_case: UseCase
) -> None:
    put(outside, use_case, 0, 2)
    put_table(outside, use_case, "weather", week(1), status="blocked")
    for table in set(TABLES) - {"weather"}:
        put_table(outside, use_case, table, week(1), rows=small(week(1)).get(table))
    gapped = build_features.build_snapshot(use_case, outside)
    assert gapped is not None
    assert gapped.partitions == 2  # the blocked one cannot be made
    assert index(outside)["2013-01-14"]["gaps"] == ["weather/2013-01-07"]

    put_table(outside, use_case, "weather", week(1))
    assert build_features.pending_partitions(use_case, outside) == ["2013-01-07", "2013-01-14"]
    whole = build_features.build_snapshot(use_case, outside)
    assert whole is not None
    assert all(not entry["gaps"] for entry in index(outside).values())
    labelled = outcomes(outside)

    put_table(outside, use_case, "movements", week(1), rows=without_arrivals(week(1), "UA"))
    assert build_features.pending_partitions(use_case, outside) == ["2013-01-07", "2013-01-14"]
    corrected = build_features.build_snapshot(use_case, outside)
    assert corrected is not None
    assert corrected.version != whole.version
    assert 0 < outcomes(outside) < labelled  # what did not happen is no outcome

    put_table(outside, use_case, "movements", week(1), rows=small(week(1))["movements"])  # taken back
    back = build_features.build_snapshot(use_case, outside)
    assert back is not None
    assert back.version == whole.version == getattr(dataset.latest_snapshot(use_case, outside), "version", None)
    assert outcomes(outside) == labelled


def told_again() -> tuple[pa.Table, dict[str, Any]]:
    """The movements of the second week with an arrival of the first told again, otherwise; and that telling."""
    first, second = (small(week(number))["movements"] for number in (0, 1))
    arrived = first.filter(pc.and_(pc.equal(first["kind"], "arrived"), pc.less(first["delay_minutes"], 0)))
    again = arrived.to_pylist()[-1] | {"delay_minutes": 500.0, "known_at": week(1).start + timedelta(hours=5)}
    return pa.concat_tables([second, pa.Table.from_pylist([again], second.schema)]), again


def told(outside: Outside) -> list[dict[str, Any]]:
    return outside.warehouse.query("select * from outcomes")


def is_of(movement: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row is of the flight that a movement is of."""
    name = f"{movement['carrier']}{movement['flight']}-{movement['origin']}-"
    return bool(row["entity_key"].startswith(name) and row["event_time"] == movement["scheduled_departure"])


def in_one_pass(outside: Outside, folder: Path) -> dict[str, dict[str, Any]]:
    """The index of what the last build asked for, made in an empty folder."""
    workspace = outside.versions.workspace("flights")
    for name in ("inputs/flights.json", "params.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(workspace / name, folder / name)
    asked = Manifest.from_json((folder / "inputs/flights.json").read_bytes())
    uris = {item.uri for items in asked.objects.values() for item in items}
    (folder / "local").mkdir()
    (folder / "local/paths.json").write_text(json.dumps({uri: str(outside.lake.local(uri)) for uri in uris}))
    make_dataset("flights", folder)
    return read_index(folder / "data/flights")


@pytest.mark.parametrize(("engine", "refusal"), [("duckdb", None), ("abacus", "no feature engine 'abacus'")])
def test_the_engine_that_the_parameters_name_makes_the_features(
    use_case: UseCase, tmp_path: Path, engine: str, refusal: str | None
) -> None:
    wanted = WantedPartition(key=use_case.grid.key(week(0)), interval=week(0), inputs="", gaps=())
    nothing = dict.fromkeys(FLIGHTS.sources, ())
    asked = Manifest(reach=timedelta(days=1), objects=nothing, partitions=(wanted,))
    parameters = {"flights": use_case.model_dump(mode="json") | {"engine": engine}}
    for folder in ("inputs", "local"):
        (tmp_path / folder).mkdir()
    (tmp_path / "inputs/flights.json").write_bytes(asked.to_json())
    (tmp_path / "local/paths.json").write_text("{}")
    (tmp_path / "params.yaml").write_text(json.dumps(parameters))
    with pytest.raises(ValueError, match=refusal) if refusal else contextlib.nullcontext():
        make_dataset("flights", tmp_path)
    assert set(read_index(tmp_path / "data/flights")) == (set() if refusal else {wanted.key})


@pytest.mark.parametrize("retold", [1, 0])
def test_a_label_told_again_in_a_later_partition_is_the_same_in_one_pass_and_one_by_one(
    outside: Outside, use_case: UseCase, tmp_path: Path, retold: int
) -> None:
    """And each moment sees the last telling before it. Its twin: a label told once."""
    movements, again = told_again()
    put(outside, use_case, 0)
    assert build_features.build_snapshot(use_case, outside) is not None
    put_clean(outside, use_case, week(1), **small(week(1)) | ({"movements": movements} if retold else {}))
    grown = build_features.build_snapshot(use_case, outside)
    assert grown is not None
    assert in_one_pass(outside, tmp_path) == index(outside)
    for known_by, label in ((again["known_at"] - timedelta(seconds=1), 0.0), (again["known_at"], float(retold))):
        rows = dataset.load_rows(grown.version, use_case, outside, start=grown.start, end=grown.end, known_by=known_by)
        assert [row["label"] for row in rows.to_pylist() if is_of(again, row)] == [label]


def test_the_last_telling_is_the_outcome_whichever_partition_is_made_last(outside: Outside, use_case: UseCase) -> None:
    """And when it is withdrawn, the one before is the outcome again."""
    movements, again = told_again()
    put(outside, use_case, 0)
    put_clean(outside, use_case, week(1), **small(week(1)) | {"movements": movements})
    build_features.build_snapshot(use_case, outside)
    assert [row["label_time"] for row in told(outside) if is_of(again, row)] == [again["known_at"]]
    before = outcomes(outside)

    other = "UA" if again["carrier"] != "UA" else "DL"
    put_table(outside, use_case, "movements", week(0), rows=without_arrivals(week(0), other))
    build_features.build_snapshot(use_case, outside)
    assert [row["label_time"] for row in told(outside) if is_of(again, row)] == [again["known_at"]]
    after = outcomes(outside)
    assert after < before

    put_table(outside, use_case, "movements", week(1), rows=small(week(1))["movements"])
    build_features.build_snapshot(use_case, outside)
    [restored] = [row for row in told(outside) if is_of(again, row)]
    assert (restored["label"], restored["label_time"] < week(1).start) == (0.0, True)
    assert outcomes(outside) == after


def test_a_bad_resend_does_not_take_away_what_was_clean(outside: Outside, use_case: UseCase) -> None:
    put(outside, use_case, 0)
    assert build_features.build_snapshot(use_case, outside) is not None
    put_table(outside, use_case, "movements", week(0), rows=clean_rows("movements", week(1)), status="blocked")
    assert build_features.pending_partitions(use_case, outside) == []


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("from tasks.build_features import dataset; dataset.latest_labels = die", id="before the commit"),
        pytest.param("from adapters.versions import Versions; Versions._commit = die", id="before the git commit"),
    ],
)
def test_a_killed_build_is_done_again_to_the_same_version(
    outside: Outside, settings: Settings, use_case: UseCase, where: str
) -> None:
    put(outside, use_case, 0)
    build = (
        "from tasks.build_features import build; build.build_snapshot(use_cases(settings().params)['flights'], outside)"
    )
    run(settings, f"{where}\n{build}", killed=True)
    assert dataset.latest_snapshot(use_case, outside) is None
    assert outcomes(outside) == 0
    built = build_features.build_snapshot(use_case, outside)
    assert built is not None
    assert rebuild_version(built, outside) == built.version
    assert outcomes(outside) > 0


def test_a_build_that_was_overtaken_may_not_commit(
    outside: Outside, use_case: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outside, use_case, 0)
    built = outside.versions.repro

    def overtaken(*arguments: object) -> object:
        outside.warehouse.begin(f"{use_case.name}/build_features")
        return built(*arguments)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(outside.versions, "repro", overtaken)
    with pytest.raises(FencedOut):
        build_features.build_snapshot(use_case, outside)
    assert dataset.latest_snapshot(use_case, outside) is None


def test_a_table_without_what_the_features_read_stops_the_build_at_once_with_its_name(
    outside: Outside, use_case: UseCase
) -> None:
    put(outside, use_case, 0)
    put_table(outside, use_case, "weather", week(0), rows=clean_rows("weather", week(0)).drop_columns(["temp_f"]))
    with pytest.raises(ValueError, match=r"a source is not as declared.*temp_f"):
        build_features.build_snapshot(use_case, outside)


def test_rows_are_read_by_partition_by_time_and_by_what_was_known(outside: Outside, use_case: UseCase) -> None:
    put(outside, use_case, 0, 1)
    built = build_features.build_snapshot(use_case, outside)
    assert built is not None
    start, end = week(1).start, week(1).start + timedelta(days=2)
    points = dataset.load_points(built.version, use_case, outside, start=week(1).start, end=week(1).end)
    assert points.column_names == [
        "entity_key",
        "event_time",
        "prediction_time",
        *FLIGHTS.numeric,
        *FLIGHTS.categorical,
    ]
    assert points.num_rows == index(outside)["2013-01-07"]["rows"]
    rows = dataset.load_rows(built.version, use_case, outside, start=start, end=end, known_by=end)
    assert rows.column_names == [*points.column_names, "label", "label_time"]
    assert start <= pc.min(rows["prediction_time"]).as_py() <= pc.max(rows["prediction_time"]).as_py() < end
    assert pc.max(rows["label_time"]).as_py() <= end
    later = dataset.load_rows(built.version, use_case, outside, start=start, end=end, known_by=week(1).end)
    assert later.num_rows > rows.num_rows
    assert dataset.load_points(built.version, use_case, outside, start=week(9).start, end=week(9).end).num_rows == 0
    with pytest.raises(ValueError, match="has no dataset version"):
        dataset.find_snapshot("nonsense", use_case, outside)


def stored(name: str, number: int, content: str = "") -> CleanObject:
    key = week(number).start.date().isoformat()
    return CleanObject(
        key=key, interval=week(number), uri=f"s3://lake/{name}/{key}/{content}", sha256=f"{name}{key}{content}"
    )


def manifest(use_case: UseCase, corrected: tuple[str, int] | None = None) -> Manifest:
    clean = {name: {week(n): stored(name, n) for n in range(12)} for name in TABLES}
    if corrected:
        table, number = corrected
        clean[table][week(number)] = stored(table, number, "corrected")
    return build_features.make_manifest(use_case, FLIGHTS, clean)


@pytest.mark.parametrize(
    ("table", "number", "affected"),
    [
        pytest.param("movements", 3, range(3, 9), id="what moved: the partitions whose history holds it"),
        pytest.param("weather", 11, range(11, 12), id="the newest: itself"),
        pytest.param("planes", 5, range(5, 12), id="a table that is never too old: all that came after"),
        pytest.param("airlines", 5, (), id="a table no feature reads: none"),
    ],
)
def test_a_correction_touches_exactly_the_partitions_that_read_it(
    use_case: UseCase, table: str, number: int, affected: range
) -> None:
    before, after = manifest(use_case).partitions, manifest(use_case, (table, number)).partitions
    changed = [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old.inputs != new.inputs]
    assert changed == list(affected)


def test_a_history_is_read_exactly_as_far_back_as_the_features_say(use_case: UseCase) -> None:
    assert manifest(use_case).reach == FLIGHTS.look_back
    further = replace(FLIGHTS, look_back=FLIGHTS.look_back + timedelta(days=7))
    assert build_features.make_manifest(use_case, further, {}).reach == further.look_back


def test_a_manifest_survives_its_file(use_case: UseCase) -> None:
    made = manifest(use_case)
    assert Manifest.from_json(made.to_json()) == made


def test_partitions_that_follow_one_another_share_a_reading(use_case: UseCase) -> None:
    wanted = [w for number, w in enumerate(manifest(use_case).partitions) if number != 4]
    found = [[w.key for w in together] for together in group_passes(wanted, timedelta(days=21))]
    assert [len(keys) for keys in found] == [3, 1, 3, 3, 1]


def test_a_damaged_partition_in_the_workspace_is_made_again(outside: Outside, use_case: UseCase) -> None:
    put(outside, use_case, 0)
    built = build_features.build_snapshot(use_case, outside)
    folder = outside.versions.output("flights")
    (folder / "points" / "2012-12-31.parquet").write_bytes(b"cut mid-row")
    content = (outside.versions.workspace("flights") / "inputs/flights.json").read_bytes()
    assert [w.key for w in find_stale(Manifest.from_json(content).partitions, folder)] == ["2012-12-31"]
    put(outside, use_case, 1)
    assert build_features.build_snapshot(use_case, outside) is not None
    entry = index(outside)["2012-12-31"]
    files = outside.versions.files("flights", getattr(dataset.latest_snapshot(use_case, outside), "version", ""))
    assert json.loads(files["index.json"].read_text())["2012-12-31"] == entry
    assert built is not None
    before = outside.versions.files("flights", built.version)
    assert files["points/2012-12-31.parquet"] == before["points/2012-12-31.parquet"]
