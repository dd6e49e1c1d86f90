"""The feature engine on Spark: the statements of `features.engine`, translated from DuckDB's SQL, run on a cluster.

`SPARK_MASTER` names the cluster (without it: all cores of this machine); its executors must see the Parquet files that
a build is given under the same paths. Needs the extra `spark`, and Java 17 or 21. The results are DuckDB's, bit by bit.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path

import pyarrow as pa
from pyspark.errors import AnalysisException, DateTimeException, NumberFormatException
from pyspark.sql import SparkSession

from features.engine import LABEL_ORDER, POINT_ORDER, FeatureSet, Span, compile_sql
from features.spark_sql import Statement, files_of, translate

_MOMENT = pa.timestamp("us", "UTC")


def build(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> tuple[pa.Table, pa.Table]:
    """Points and labels, as `features.engine.build` makes them.

    Raises:
        ValueError: a source lacks a column, or holds values of another type.
    """
    statements = [translate(sql, definition) for sql in compile_sql(definition, tables, interval, lead)]
    spark = _spark().newSession()  # with tables of its own
    try:
        _make(spark, statements, tables)
        points = _collected(spark, "points_out", POINT_ORDER, _point_schema(definition))
        labels = _collected(spark, "labels_out", LABEL_ORDER, _LABEL_SCHEMA)
    except (AnalysisException, DateTimeException, NumberFormatException) as error:
        raise ValueError(f"features {definition.name}: a source is not as declared: {error}") from error
    return points, labels


@cache
def _spark() -> SparkSession:
    """One for the process: Java takes seconds to start, and ends with the process."""
    master = os.environ.get("SPARK_MASTER") or "local[*]"
    settings = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC"}
    if master.startswith("local"):
        settings |= {f"spark.driver.{name}": "127.0.0.1" for name in ("host", "bindAddress")}
        settings["spark.sql.shuffle.partitions"] = str(os.cpu_count())  # the default, 200, is for many machines
    return SparkSession.builder.master(master).appName("windsock features").config(map=settings).getOrCreate()


def _make(spark: SparkSession, statements: Sequence[Statement], files: Mapping[str, Sequence[Path]]) -> None:
    """Every table, made once and kept where it was made.

    Forty windows as one plan take longer to plan than to run; and the numbers that points get are others another time.
    Where a part of a table is lost with its machine the build fails, and is to be tried again.
    """
    for name, paths in files.items():
        if paths:
            spark.read.parquet(*map(str, paths)).createOrReplaceTempView(files_of(name))
    for statement in statements:
        frame = spark.sql(statement.query)
        (frame if statement.is_view else frame.localCheckpoint()).createOrReplaceTempView(statement.name)


def _collected(spark: SparkSession, table: str, order: Sequence[str], schema: pa.Schema) -> pa.Table:
    return spark.sql(f"select * from {table} order by {', '.join(order)}").toArrow().cast(schema)


def _point_schema(definition: FeatureSet) -> pa.Schema:
    keys = [("entity_key", pa.string()), ("event_time", _MOMENT), ("prediction_time", _MOMENT)]
    numeric = [(name, pa.float32()) for name in definition.numeric]
    return pa.schema([*keys, *numeric, *((name, pa.string()) for name in definition.categorical)])


_LABEL_SCHEMA = pa.schema(
    [("entity_key", pa.string()), ("event_time", _MOMENT), ("label", pa.float64()), ("label_time", _MOMENT)]
)
