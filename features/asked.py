"""What a client would have told of past events: the requests behind the rows of a history."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from features.engine import FeatureSet, Span, compile_sql

_KEYS = ("entity_key", "event_time")


def asked(definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta) -> pa.Table:
    """The key (entity_key, event_time) and the request's fields of each point of an interval; moments are naive UTC.

    `tables` are clean Parquet files, as `build` takes them.
    """
    fields = {field.name: f"asked.{field.name}" for field in definition.request}
    # The points of the very same definition, but for what is kept of each: no window is computed.
    keys = {f"key_{name}": definition.point_sql[name] for name in _KEYS}
    told = replace(definition, point_sql={**keys, **fields})
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        for statement in compile_sql(told, tables, interval, lead):
            connection.execute(statement)
            if statement.startswith("create temp table points as"):
                break
        columns = ", ".join([*(f"key_{name} as {name}" for name in _KEYS), *fields])
        return connection.sql(f"select {columns} from points order by event_time, entity_key").to_arrow_table()
