"""Columns of every kind, text of any script and integers of 64 bits answer online as in batch, to the last bit."""

import json
import random
import tempfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args

import duckdb
import pyarrow as pa
import pytest

from adapters.column_types import KIND_ROWS, TYPE_ROWS
from expectations.vocabulary import DeclaredColumn, Kind
from features.engine import FeatureSet, build_by_sql
from features.offline_requests import load_past_requests, to_request
from features.online import OnlineFeatures
from features.request import RequestField, RequestKind
from features.vocabulary import RESERVED_WORDS, ColumnKind, Window, declare_source
from serving.request import RequestReader
from tests.features.stored import CACHE_BYTES, filled, parquet
from tests.features.world import LEAD, Span, engine, moved

START, DAY = datetime(2026, 1, 5, tzinfo=UTC), timedelta(days=1)
TEXTS = ["", " ", "Zażółć", "گچ‌پژ", "你好", "👩‍👩‍👧", "a\nb", "'\"\\", "null", "x" * 300, "é" * 5_000]
FIELDS = "known_at", "number", "is_gift", "day", "price", "note"
KEYS = {"customer": "c", "is_gift": "g", "day": "d"}

ORDERS = FeatureSet(
    name="orders",
    sources={
        "orders": declare_source(
            varchar="customer note",
            bigint="number cents",
            boolean="is_gift",
            date="day",
            decimal="price",
            timestamp="event_at known_at",
            grain="customer",
        )
    },
    look_back=timedelta(days=30),
    request=(
        RequestField(name="customer", kind="varchar", meaning="m", example="é"),
        RequestField(name="note", kind="varchar", meaning="m", example="", required=False),
        RequestField(name="number", kind="bigint", meaning="m", example=1),
        RequestField(name="is_gift", kind="boolean", meaning="m", example=True, required=False),
        RequestField(name="day", kind="date", meaning="m", example="2026-01-05", required=False),
        RequestField(name="price", kind="double", meaning="m", example=1.5, required=False),
        RequestField(name="event_at", kind="timestamp", meaning="m", example="2026-01-05T00:00:00Z"),
    ),
    steps={
        "asked": """select customer, note, number, is_gift, day, price, event_at, event_at - {lead} as prediction_time
            from orders where event_at - {lead} >= {start} and event_at - {lead} < {end}""",
        "events": "select * from orders where known_at < {end}",
        "labels": """select cast(number as varchar) as entity_key, event_at as event_time, 1 as label,
            known_at as label_time from orders where known_at >= {start} and known_at < {end}""",
    },
    lookups={},
    point_sql={
        "entity_key": "cast(asked.number as varchar)",
        "event_time": "asked.event_at",
        "prediction_time": "asked.prediction_time",
        **{name: f"asked.{name}" for name in ("customer", "note", "number", "is_gift", "day", "price")},
    },
    windows=tuple(
        Window(
            prefix=prefix,
            stream="events",
            key=(key,),
            spans=("7 days",),
            sums=("cents", "number"),
            latest={"last": FIELDS},
        )
        for key, prefix in KEYS.items()
    ),
    joined=(),
    numeric_sql={
        "number": "number",
        "price": "price",
        "is_gift": "cast(is_gift as bigint)",
        "is_gift_again": "cast(is_gift = c_last.is_gift as bigint)",
        "days_since": "date_diff('day', day, event_time)",
        **{f"{p}_cents": f"{p}_cents_7d" for p in KEYS.values()},
        **{f"{p}_number": f"{p}_number_7d" for p in KEYS.values()},
        **{f"{p}_last_number": f"{p}_last.number" for p in KEYS.values()},
        **{f"{p}_last_price": f"{p}_last.price" for p in KEYS.values()},
        **{f"{p}_last_day": f"date_diff('day', {p}_last.day, event_time)" for p in KEYS.values()},
    },
    categorical_sql={
        "customer": "customer",
        "note": "note",
        "weekday": "dayname(day)",
        **{f"{p}_last_note": f"{p}_last.note" for p in KEYS.values()},
    },
)
SCHEMA = pa.schema(
    {
        "customer": pa.string(),
        "note": pa.string(),
        "number": pa.int64(),
        "cents": pa.int64(),
        "is_gift": pa.bool_(),
        "day": pa.date32(),
        "price": pa.decimal128(38, 10),
        "event_at": pa.timestamp("us", "UTC"),
        "known_at": pa.timestamp("us", "UTC"),
    }
)


def world(seed: int, rows: int = 120) -> dict[str, pa.Table]:
    draw = random.Random(seed)  # noqa: S311  # examples

    def row(place: int) -> dict[str, Any]:
        known = START - 3 * DAY + timedelta(hours=draw.randrange(240), microseconds=draw.randrange(10**6))
        return {
            "customer": draw.choice(TEXTS[:9]),
            "note": draw.choice([None, *TEXTS]),
            "number": draw.choice([2**53 + 1, 2**56 + 2**28 + 1, -(2**55) - 3]) + 1000 * place,
            "cents": draw.randrange(-500, 500),
            "is_gift": draw.choice([None, True, False]),
            "day": draw.choice([None, date(2026, 1, 1), date(2025, 12, 24), date(1999, 2, 28)]),
            "price": draw.choice([None, Decimal("0.1"), Decimal("12345678901234567.0123456789"), Decimal(-3)]),
            "event_at": known + timedelta(hours=draw.randrange(1, 60)),
            "known_at": known,
        }

    return {"orders": pa.Table.from_pylist([row(place) for place in range(rows)], SCHEMA)}


def answer(rows: dict[str, pa.Table], start: datetime, end: datetime) -> pa.Table:
    """What a server says to the JSON that clients send."""
    with tempfile.TemporaryDirectory() as folder:
        told = load_past_requests(ORDERS, parquet(rows, folder), Span(start, end), LEAD)
    bodies = [json.dumps(to_request(ORDERS, row)).encode() for row in told.to_pylist()]
    reader = RequestReader(ORDERS.request, max_events=1)
    events = [event for body in bodies for event in reader.list_events(reader.read(body).rows)]
    stored = filled(rows, start, end + 9 * DAY, definition=ORDERS)
    online = OnlineFeatures(ORDERS, LEAD, cache_bytes=CACHE_BYTES)
    return in_order(online.compute_rows(events, stored.fetch).features)


def in_order(points: pa.Table) -> pa.Table:
    return points.sort_by([("event_time", "ascending"), ("entity_key", "ascending")])


@pytest.mark.parametrize("seed", range(4))
def test_every_kind_answers_online_as_in_batch(seed: int) -> None:
    rows, start, end = world(seed), START, START + 6 * DAY
    batch = in_order(engine(rows, start, end, ORDERS)[0])
    assert batch.num_rows > 30
    assert moved(batch, answer(rows, start, end)) == []
    assert all(batch[name].null_count < batch.num_rows for name in batch.column_names)
    by_sql = in_order(engine(rows, start, end, ORDERS, by=build_by_sql)[0])
    inexact = {f"{prefix}_number" for prefix in KEYS.values()}  # SQL sums doubles: exact up to 53 bits
    assert set(moved(batch, by_sql)) <= inexact


def test_sabotage_a_number_that_went_by_a_double_is_seen() -> None:
    rows = world(1)
    batch = in_order(engine(rows, START, START + 6 * DAY, ORDERS)[0])
    numbers = pa.array([int(float(n)) for n in rows["orders"]["number"].to_pylist()], pa.int64())
    rounded = rows["orders"].set_column(SCHEMA.get_field_index("number"), "number", numbers)
    after = in_order(engine({"orders": rounded}, START, START + 6 * DAY, ORDERS)[0])
    assert batch["entity_key"].to_pylist() != after["entity_key"].to_pylist()


# Names


def test_words_of_sql_are_refused_as_names_and_say_where_another_is_given() -> None:
    with pytest.raises(ValueError, match=r"order: expected a name that is no word of SQL.*`relation`.*`source`"):
        declare_source(varchar="order")
    known = duckdb.sql("select keyword_name from duckdb_keywords() where keyword_category = 'reserved'").fetchall()
    assert {word for (word,) in known} == RESERVED_WORDS


# The table of types


def test_the_words_of_the_one_table_are_those_of_the_packages() -> None:
    assert {row.kind for row in KIND_ROWS} == {*get_args(Kind)}
    assert {kind for row in KIND_ROWS for kind in row.feature_kinds} == {*get_args(ColumnKind)}
    assert {row.request_kind for row in KIND_ROWS} == {*get_args(RequestKind)}
    assert {kind for row in TYPE_ROWS for kind in row.kinds} == {*get_args(Kind)}
    oids = [oid for row in TYPE_ROWS for oid in row.oids if oid != 1700]
    assert len(oids) == len({*oids})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "money"}, "expected a kind among"),
        ({"kind": "decimal"}, "digits"),
        ({"kind": "decimal", "digits": (39, 0)}, "digits"),
        ({"kind": "decimal", "digits": (2, 3)}, "digits"),
        ({"kind": "text", "digits": (2, 1)}, "digits"),
        ({"kind": "date", "zone": "Europe/Paris"}, "zone"),
        ({"kind": "timestamp", "zone": "Europe/Nowhere"}, "zone.*Europe/Nowhere"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeclaredColumn(nullable=True, **wrong)
