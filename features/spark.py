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

from features.definition_expressions import refuse_for_spark
from features.engine import LABEL_ORDER, LABEL_SCHEMA, POINT_ORDER, UTC_MOMENT, FeatureSet, Span, compile_sql
from features.spark_sql import Statement, files_view, translate_to_spark


def build_on_spark(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> tuple[pa.Table, pa.Table]:
    """Points and labels, as `features.engine.build_by_sql` makes them.

    Raises:
        ValueError: a source lacks a column, or holds values of another type, or an expression would have other bits.
    """
    refuse_for_spark(definition)
    written = compile_sql(definition, tables, interval, lead, write=str)  # decimals are for the translation to change
    statements = [translate_to_spark(sql, definition) for sql in written]
    spark = _session().newSession()  # with tables of its own
    try:
        _create_tables(spark, statements, tables)
        return (
            _collect_table(spark, "points_out", POINT_ORDER, _point_schema(definition)),
            _collect_table(spark, "labels_out", LABEL_ORDER, LABEL_SCHEMA),
        )
    except (AnalysisException, DateTimeException, NumberFormatException) as error:
        raise ValueError(f"features {definition.name}: a source is not as declared: {error}") from error


@cache
def _session() -> SparkSession:
    """One for the process: Java takes seconds to start, and ends with the process."""
    master = os.environ.get("SPARK_MASTER") or "local[*]"
    settings = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC"}
    if master.startswith("local"):
        settings |= {f"spark.driver.{name}": "127.0.0.1" for name in ("host", "bindAddress")}
        settings["spark.sql.shuffle.partitions"] = str(os.cpu_count())  # the default, 200, is for many machines
    return SparkSession.builder.master(master).appName("windsock features").config(map=settings).getOrCreate()


def _create_tables(spark: SparkSession, statements: Sequence[Statement], files: Mapping[str, Sequence[Path]]) -> None:
    """Every table is computed once and kept where it was computed.

    Forty windows as one plan take longer to plan than to run, and points would get other numbers each time they are
    computed. Where a part of a table is lost with its machine, the build fails and is to be repeated.
    """
    for name, paths in files.items():
        if paths:
            spark.read.parquet(*map(str, paths)).createOrReplaceTempView(files_view(name))
    for statement in statements:
        frame = spark.sql(statement.query)
        (frame if statement.is_view else frame.localCheckpoint()).createOrReplaceTempView(statement.name)


def _collect_table(spark: SparkSession, table: str, order: Sequence[str], schema: pa.Schema) -> pa.Table:
    return spark.sql(f"select * from {table} order by {', '.join(order)}").toArrow().cast(schema)


def _point_schema(definition: FeatureSet) -> pa.Schema:
    keys = {"entity_key": pa.string(), "event_time": UTC_MOMENT, "prediction_time": UTC_MOMENT}
    numeric = dict.fromkeys(definition.numeric, pa.float32())
    return pa.schema(keys | numeric | dict.fromkeys(definition.categorical, pa.string()))
