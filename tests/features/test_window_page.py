"""The examples of docs/windows.md are run as they stand, and say the same in every engine."""

import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from features.engine import FeatureSet, build_by_sql
from features.offline import build_offline
from features.offline_requests import load_past_requests
from features.online import OnlineFeatures
from tests.features.stored import CACHE_BYTES, filled, parquet
from tests.features.world import Span
from tests.pages import read_blocks

MONDAY, WEEK = datetime(2024, 3, 4, tzinfo=UTC), timedelta(days=7)
SCHEMA = pa.schema(
    {"customer": pa.string(), "kind": pa.string(), "shop": pa.int64(), "cents": pa.int64(),
     "known_at": pa.timestamp("us", "UTC")}
)  # fmt: skip
ORDERS = [  # days before the Monday
    ("ann", "book", 1, 100, 0.5), ("ann", "book", 1, 300, 20), ("ann", "pen", 2, 800, 100), ("ann", "pen", 1, 500, 400),
    ("ann", "book", 1, 9, -3), ("bob", None, 2, 700, 10),
]  # fmt: skip


@cache
def page() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec("\n".join(read_blocks("docs/windows.md", "python")), names)  # noqa: S102  # our own page
    return names


def world() -> dict[str, pa.Table]:
    rows = [dict(zip(SCHEMA.names, (*order, MONDAY - timedelta(days=ago)), strict=True)) for *order, ago in ORDERS]
    return {"orders": pa.Table.from_pylist(rows, SCHEMA)}


def build(lead: timedelta, start: datetime, end: datetime, *, by_sql: bool = False) -> tuple[pa.Table, pa.Table]:
    definition: FeatureSet = page()["CUSTOMERS"]
    with tempfile.TemporaryDirectory() as folder:
        return (build_by_sql if by_sql else build_offline)(definition, parquet(world(), folder), Span(start, end), lead)


def test_each_example_says_what_the_page_says() -> None:
    minute = timedelta(minutes=1)
    points, _ = build(minute, MONDAY - WEEK, MONDAY)
    ann, bob = points.to_pylist()
    told = {name: ann[name] for name in page()["CUSTOMERS"].numeric}
    assert told == pytest.approx(
        {
            "orders_1d": 1, "average_cents_90d": 200, "orders_here_6mo": 2, "share_of_half_a_year": 2 / 3,
            "cents_stddev_90d": 20_000**0.5, "cents_variation_90d": 20_000**0.5 / 200, "shops_6mo": 2, "kinds_6mo": 2,
            "last_cents": 100, "days_since_last": 0, "dearest_cents": 800, "days_a_customer": 399,
        }
    )  # fmt: skip
    assert (bob["cents_stddev_90d"], bob["kinds_6mo"], bob["orders_1d"]) == (None, 0, 0)
    labels = build(minute, MONDAY + WEEK, MONDAY + 2 * WEEK)[1]
    [label] = labels.filter(pc.equal(labels["entity_key"], "ann")).to_pylist()
    assert (label["event_time"], label["label"], label["label_time"]) == (MONDAY, 1.0, MONDAY + WEEK)
    assert points.equals(build(minute, MONDAY - WEEK, MONDAY, by_sql=True)[0])


def test_a_client_gets_what_the_batch_has() -> None:
    definition, lead = page()["CUSTOMERS"], timedelta(minutes=1)
    points = build(lead, MONDAY - WEEK, MONDAY + WEEK)[0]
    with tempfile.TemporaryDirectory() as folder:
        events = load_past_requests(definition, parquet(world(), folder), Span(MONDAY - WEEK, MONDAY + WEEK), lead)
    stored = filled(world(), MONDAY - WEEK, MONDAY + 3 * WEEK, definition=definition)
    online = OnlineFeatures(definition, lead, cache_bytes=CACHE_BYTES)
    answered = online.compute(events.drop_columns(["entity_key", "event_time"]), stored.fetch).features
    order = [("event_time", "ascending"), ("entity_key", "ascending")]
    assert answered.num_rows > 3
    assert answered.sort_by(order).equals(points.sort_by(order))


@pytest.mark.parametrize("minutes", [1, 0])
def test_the_points_of_a_monday_are_in_the_week_that_ends_with_a_lead_of_a_minute(minutes: int) -> None:
    """The trap that the page names."""
    ends, begins = (build(timedelta(minutes=minutes), week, week + WEEK)[0] for week in (MONDAY - WEEK, MONDAY))
    assert (MONDAY in ends["event_time"].to_pylist()) is (minutes == 1)
    assert (MONDAY in begins["event_time"].to_pylist()) is (minutes == 0)


def test_sabotage_an_example_that_reads_another_column_is_seen() -> None:
    definition = page()["CUSTOMERS"]
    other = replace(definition, numeric_sql={**definition.numeric_sql, "shops_6mo": "range_kind_distinct_6mo + 1"})
    with tempfile.TemporaryDirectory() as folder:
        tables = parquet(world(), folder)
        span, lead = Span(MONDAY - WEEK, MONDAY), timedelta(minutes=1)
        told, others = (build_offline(each, tables, span, lead)[0] for each in (definition, other))
    assert not told.equals(others)
