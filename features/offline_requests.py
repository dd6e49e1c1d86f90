"""What a client would have told of past events: the requests behind the rows of a history."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from features.engine import FeatureSet, Span, points_sql, steps_sql

_KEYS = ("entity_key", "event_time")


def asked(definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta) -> pa.Table:
    """The key (entity_key, event_time) and the request's fields of each point of an interval; moments are naive UTC.

    `tables` are clean Parquet files, as `build` takes them.
    """
    told = {f"asked_{field.name}": f"asked.{field.name}" for field in definition.request}
    # The points of the very same definition, but for what is kept of each: no window is computed.
    points = replace(definition, point_sql={**{name: definition.point_sql[name] for name in _KEYS}, **told})
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        for statement in steps_sql(definition, tables, interval, lead).values():
            connection.execute(statement)
        columns = ", ".join([*_KEYS, *(f"{name} as {name.removeprefix('asked_')}" for name in told)])
        query = f"select {columns} from ({points_sql(points, points.point_sql)}) order by event_time, entity_key"
        return connection.sql(query).to_arrow_table()
