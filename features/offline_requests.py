"""The requests that clients would have sent for past events: one for each row of a history."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from features.engine import FeatureSet, Span, points_sql, run_steps
from features.request import RequestKind

_KEYS = ("entity_key", "event_time", "prediction_time")


def load_past_requests(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> pa.Table:
    """The key (entity_key, event_time) and the request's fields of each point of an interval; moments are naive UTC.

    `tables` are clean Parquet files, as `build` takes them.
    """
    query = f"select * exclude (prediction_time) from ({requests_sql(definition)}) order by event_time, entity_key"
    with run_steps(definition, tables, interval, lead) as connection:
        return connection.sql(query).to_arrow_table()


def requests_sql(definition: FeatureSet) -> str:
    """A query, from `asked`, of the points' keys, their prediction times, and what a request tells of each."""
    fields = {f"request_{field.name}": f"asked.{field.name}" for field in definition.request}
    # The points of the same definition, with the request's fields as their columns: no window is computed.
    points = replace(definition, point_sql={**{name: definition.point_sql[name] for name in _KEYS}, **fields})
    columns = ", ".join([*_KEYS, *(f"{name} as {name.removeprefix('request_')}" for name in fields)])
    return f"select {columns} from ({points_sql(points, points.point_sql)})"


def to_request(definition: FeatureSet, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of past requests as a client sends it: moments with their zone, nothing where nothing is known."""
    told = [(field, row[field.name]) for field in definition.request if row[field.name] is not None]
    return {field.name: _tell(value, field.kind) for field, value in told}


def _tell(value: Any, kind: RequestKind) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.date().isoformat() if kind == "date" else value.replace(tzinfo=UTC).isoformat()
