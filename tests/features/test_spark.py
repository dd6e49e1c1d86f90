"""Features by Spark are those by DuckDB, to the last bit. `make test-spark` installs what this needs."""

import shutil
import tempfile
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import features
from features import FeatureSet
from tests.features.stored import parquet
from tests.features.world import FLIGHTS, LEAD, Span, World, changed, day, moved, small_world

pytest.importorskip("pyspark", reason="the extra `spark` is not installed: `make test-spark` runs this")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java 17 or 21 on the PATH", allow_module_level=True)

from sqlglot import exp  # an extra

from features import spark_sql
from features.definition_expressions import refuse_for_spark
from features.operation import Operation
from features.operation_table import OPERATIONS
from tests.features import window_worlds
from tests.features.expression_worlds import STOPPED, as_table, by_duckdb, edge_world, everyday_rows
from tests.features.window_engines import features_as_doubles
from tests.features.window_worlds import draw

START, END = day(14), day(21)
# Enough to see a rule of the translation missing, in seconds.
WEATHER = replace(
    FLIGHTS,
    windows=tuple(window for window in FLIGHTS.windows if window.prefix == "weather"),
    joined=(),
    numeric_sql={name: FLIGHTS.numeric_sql[name] for name in ("temp_f", "planned_minutes")},
    categorical_sql={"weekday": FLIGHTS.categorical_sql["weekday"]},
)


def by(engine: str, world: World, asked: FeatureSet, end: datetime = END) -> tuple[pa.Table, pa.Table]:
    with tempfile.TemporaryDirectory() as folder:
        return features.build(asked, parquet(world, folder), Span(START, end), LEAD, engine=engine)


@pytest.fixture(scope="module")
def world() -> World:
    """Real rows; the weather is told again at the very same moments, by halves without and with no number in it."""
    told = small_world()
    weather = told["weather"]
    nothing = changed(weather.slice(0, weather.num_rows // 2), temp_f=None, pressure_mb=float("nan"))
    more = changed(weather.slice(weather.num_rows // 2), humidity=float("inf"), wind_speed_mph=None)
    flights = told["flights"]
    entered = pc.add(flights["known_at"], pa.scalar(timedelta(hours=1)))
    again = flights.set_column(flights.column_names.index("known_at"), "known_at", entered)
    return told | {
        "weather": pa.concat_tables([weather, nothing, more]),
        "flights": pa.concat_tables([flights, changed(again.slice(0, 500), tailnum=None), again.slice(500, 500)]),
    }


def test_points_and_labels_are_those_of_duckdb_to_the_last_bit(world: World) -> None:
    points, labels = by("duckdb", world, FLIGHTS)
    found, told = by("spark", world, FLIGHTS)
    assert points.num_rows > 1000
    assert labels.num_rows > 1000
    assert found.schema.equals(points.schema)
    assert moved(points, found) == []
    assert told.equals(labels)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_windows_are_those_of_duckdb_to_the_last_bit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from features import spark

    drawn = draw(seed, windows=2)
    schema = pa.schema({field.name: pa.float64() if pa.types.is_float32(field.type) else field.type
                        for field in spark._point_schema(drawn.definition)})  # fmt: skip
    monkeypatch.setattr(spark, "_point_schema", lambda _: schema)
    with tempfile.TemporaryDirectory() as folder, features_as_doubles():
        tables = parquet({"orders": pa.Table.from_pylist(drawn.rows, window_worlds.SCHEMA)}, folder)
        span, lead = Span(window_worlds.START, window_worlds.END), window_worlds.LEAD
        points, found = (
            features.build(drawn.definition, tables, span, lead, engine=engine)[0] for engine in ("duckdb", "spark")
        )
    assert moved(points, found) == []


@pytest.mark.parametrize(("rule", "feature"), [(exp.Literal, "planned_minutes"), (exp.Dayname, "weekday")])
def test_a_rule_missing_from_the_translation_is_seen(
    world: World, rule: Any, feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, found = (by(engine, world, WEATHER, day(15))[0] for engine in ("duckdb", "spark"))
    assert moved(points, found) == []
    monkeypatch.delitem(spark_sql._RULES, rule)
    assert feature in moved(points, by("spark", world, WEATHER, day(15))[0])


@pytest.mark.parametrize(
    "row", [row for row in OPERATIONS if not row.not_on_spark], ids=lambda row: written_row(row)[:60]
)
def test_what_spark_is_said_to_have_gives_the_same_bits(row: Operation, spark: Any) -> None:
    """Where DuckDB stops no batch, and Spark is asked to divide by nothing."""
    asked = written_row(row).replace("/ (y)", "/ nullif(y, 0)").replace("timezone((s)", "timezone('America/New_York'")
    rows = [
        each for each, told in zip(everyday_rows(), by_duckdb(asked, everyday_rows()), strict=True) if told != STOPPED
    ]
    query = f"create temp table t as select {asked} as found from rows_"
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(as_table(rows), f"{folder}/rows.parquet")
        spark.read.parquet(f"{folder}/rows.parquet").coalesce(1).createOrReplaceTempView("rows_")
        found = spark.sql(spark_sql.translate_to_spark(query, FLIGHTS).query).toArrow()["found"]
    ours = (found.cast(pa.int64()) if pa.types.is_timestamp(found.type) else found).to_pylist()
    assert len(rows) > 10
    assert [*map(repr, ours)] == [*map(repr, by_duckdb(asked, rows))]


def written_row(row: Operation) -> str:
    return edge_world(row)[0]


@pytest.fixture(scope="module")
def spark() -> Any:
    from features.spark import _session

    return _session().newSession()


def test_sabotage_what_spark_says_otherwise_is_refused_before_it_starts() -> None:
    rounded = replace(WEATHER, numeric_sql={"rounded": "round(weather_last.temp_f, 1)"})
    with pytest.raises(ValueError, match=r"no translation for Spark: round\(a, b\)"):
        refuse_for_spark(rounded)
    refuse_for_spark(FLIGHTS)


def test_a_source_without_a_column_is_named(world: World) -> None:
    with pytest.raises(ValueError, match=r"features flights: a source is not as declared.*dest"):
        by("spark", world | {"flights": world["flights"].drop_columns(["dest"])}, WEATHER)


def test_a_function_without_a_translation_is_refused() -> None:
    with pytest.raises(ValueError, match="no translation for Spark: EPOCH_US"):
        spark_sql.translate_to_spark("create temp table t as select epoch_us(known_at) as e from flights", FLIGHTS)
