"""A table of every type and of names that need quotes is the same rows by ingest, by polling and by the log."""

import json
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

import expectations
from adapters.connect import Outside
from adapters.lake import Lake
from adapters.parquet import from_bytes
from expectations.vocabulary import DeclaredColumn, Suite
from pipeline.partitions import Interval
from pipeline.source import Source
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow, decode_rows, encode_rows
from tasks.common.errors import BadData
from tasks.ingest.land import land_partition
from tasks.ingest.late import read_fingerprints
from tasks.ingest.quarantine import list_quarantined
from tasks.ingest.validate import validate_batch
from tasks.stream.log_reader import LogReader, LogStart, slot_name
from tasks.stream.poll import PollReader
from tasks.stream.prepare_source import prepare_source
from tasks.stream.source_step import SourceReader
from tasks.stream.source_tables import SourceTables, find_identities
from tests.tasks.stream.conftest import _clean

PATIENCE_SECONDS = 60
RELATION = 'sales."Order ""Lines"", 100%"'
KNOWN = "2026-01-06 12:00+00"


def declared(kind: Any, source: str | None = None, **more: Any) -> DeclaredColumn:
    return DeclaredColumn(kind=kind, nullable=True, source=source, **more)


SUITE = Suite(
    columns={
        "line_id": declared("integer", "id"),
        "choice": declared("text", "select"),
        "size": declared("decimal", "Größe 100% of it", digits=(12, 3)),
        "price": declared("decimal", digits=(20, 4)),
        "big": declared("integer"),
        "huge": declared("text"),
        "weight": declared("float"),
        "open_weight": declared("float"),
        "amount": declared("decimal", digits=(12, 2)),
        "ratio": declared("float"),
        "single": declared("float"),
        "small": declared("integer"),
        "is_gift": declared("boolean"),
        "day": declared("date"),
        "seen": declared("timestamp"),
        "local": declared("timestamp", zone="Europe/Paris"),
        "reference": declared("text"),
        "mood": declared("text"),
        "code": declared("text"),
        "address": declared("text"),
        "span": declared("text"),
        "clock": declared("text"),
        "note": declared("text"),
        "tags": declared("text"),
        "payload": declared("text", 'pay"load'),
        "known_at": declared("timestamp", "Known At"),
    },
    expects=(),
    fresh_hours=None,
    plausible_hours={},
)
TABLE = """
create schema sales;
create type sales.mood as enum ('glad', 'sad');
create domain sales.money as numeric(10, 2);
create table sales."Order ""Lines"", 100%" (
    id bigint, "select" text, "Größe 100% of it" numeric(12, 3), price numeric, big numeric(20, 0), huge numeric,
    weight numeric(10, 2), open_weight numeric, amount sales.money, ratio double precision, single real, small smallint,
    is_gift boolean, day date, seen timestamptz, local timestamp, reference uuid, mood sales.mood, code char(6),
    address inet, span interval, clock time, note text, tags int[], "pay""load" jsonb, "Known At" timestamptz,
    choice text, document json, bytes bytea, parts text[], other_day date, other numeric(5, 2),
    primary key (id, "select"));
"""
GOOD: Mapping[str, str] = {
    "id": "9007199254740993",
    '"select"': "'from'",
    '"Größe 100% of it"': "1234.500",
    "price": "12345678901234.5678",
    "big": "9223372036854775807",
    "huge": "123456789012345678901234567890.5",
    "weight": "0.10",
    "open_weight": "0.1",
    "amount": "99.90",
    "ratio": "0.1",
    "single": "0.1",
    "small": "-32768",
    "is_gift": "true",
    "day": "'0001-01-01'",
    "seen": "'2026-01-06 10:00:00.123456+02'",
    "local": "'2026-03-29 02:30'",
    "reference": "'00000000-0000-0000-0000-000000000001'",
    "mood": "'glad'",
    "code": "'ab'",
    "address": "'10.0.0.1'",
    "span": "'1 day 2 hours'",
    "clock": "'10:15'",
    "note": "''",
    "tags": "'{1,2}'",
    '"pay""load"': """'{"a": [1]}'""",
    '"Known At"': f"'{KNOWN}'",
    "choice": "'another'",
    "document": "'{}'",
    "bytes": r"'\x00ff'",
    "parts": "'{a}'",
    "other_day": "'infinity'",
    "other": "'NaN'",
}
CLEAN = {
    "line_id": 2**53 + 1,
    "choice": "from",
    "size": Decimal("1234.500"),
    "price": Decimal("12345678901234.5678"),
    "big": 2**63 - 1,
    "huge": "123456789012345678901234567890.5",
    "weight": 0.1,
    "open_weight": 0.1,
    "amount": Decimal("99.90"),
    "ratio": 0.1,
    "single": 0.10000000149011612,
    "small": -32768,
    "is_gift": True,
    "day": date(1, 1, 1),
    "seen": datetime(2026, 1, 6, 8, 0, 0, 123456, tzinfo=UTC),
    "local": datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
    "reference": "00000000-0000-0000-0000-000000000001",
    "mood": "glad",
    "code": "ab",
    "address": "10.0.0.1",
    "span": "1 day 02:00:00",
    "clock": "10:15:00",
    "note": "",
    "tags": "{1,2}",
    "payload": '{"a": [1]}',
    "known_at": datetime(2026, 1, 6, 12, tzinfo=UTC),
}
OTHERS = (  # changes of a good row that leave it good
    {
        "note": "'Zażółć گچ‌پژ 你好 👩‍👩‍👧 \U0001f600\n\t\"q\", \\N'",
        "local": "'2026-10-25 02:30'",
    },  # an hour that comes twice
    {"note": f"'{'é' * 20_000}'", '"select"': "null_if_empty", "id": "-9223372036854775808"},
    {name: "null" for name in GOOD if name not in {"id", '"select"', '"Known At"'}},
    {"single": "3.4028235e38", "ratio": "1.7976931348623157e308", "day": "'9999-12-31'", "price": "1.50000"},
    {"ratio": "-0.0", "code": "'abcdef'", "is_gift": "false", "tags": "'{}'", "price": "0"},
)
BAD = {  # of a row each: a value, the column it is a fault of, and how a reason ends
    "ratio": ("'NaN'", "ratio", "nan"),
    "single": ("'-Infinity'", "single", "-inf"),
    '"Größe 100% of it"': ("'NaN'", "size", "NaN"),
    "price": ("'NaN'", "price", "NaN"),
    "big": ("'NaN'", "big", "NaN"),
    "weight": ("'NaN'", "weight", "NaN"),
    "open_weight": ("'Infinity'", "open_weight", "inf"),
    "amount": ("'NaN'", "amount", "NaN"),
    "day": ("'infinity'", "day", "infinity"),
    "seen": ("'-infinity'", "seen", "-infinity"),
    "local": ("'0044-03-15 BC'", "local", "0044-03-15 00:00:00 BC"),
}
WORSE = ({"price": "'Infinity'"}, {"price": "0.00001"}, {"price": "12345678901234567.5"}, {"day": "'12026-01-01'"},
         {"local": "'infinity'"}, {"seen": "'10000-01-01 UTC'"}, {"big": "99999999999999999999"},
         {"local": "'0001-01-01 00:00'"})  # fmt: skip


def statements() -> Iterator[str]:
    changes = [{}, *OTHERS, *({name: value} for name, (value, *_) in BAD.items()), *WORSE]
    for number, change in enumerate(changes):
        row = {**GOOD, "id": str(number + 2**53 + 1), **change}
        row['"select"'] = row['"select"'].replace("null_if_empty", "''")
        yield f"insert into {RELATION} ({', '.join(row)}) values ({', '.join(row.values())})"


@pytest.fixture
def shop(use_case: UseCase, monkeypatch: pytest.MonkeyPatch) -> UseCase:
    monkeypatch.setitem(expectations._SUITES, "shop", {"lines": SUITE})
    return make_use_case(use_case, {"relation": RELATION, "key": ["line_id", "choice"], "available_at": "known_at"})


def make_use_case(use_case: UseCase, table: Mapping[str, Any], follow: str = "cdc", name: str = "lines") -> UseCase:
    limits = {"min_rows": 0, "max_rows": 1000, "max_quarantined_share": 1.0}
    source = {
        "first_partition": "2026-01-05",
        "last_partition": None,
        "partition_days": 7,
        "recheck_partitions": 1,
        "follow": follow,
        "horizon_seconds": 0.0,
        "watermark": None,
        "cron": "0 0 * * 1",
        "tables": {name: {**table, **limits}},
    }
    made = Source.model_validate_json(json.dumps(source))
    return use_case.model_copy(update={"name": "shop", "source": made})


@pytest.fixture
def partition(shop: UseCase) -> Interval:
    return shop.grid.partition("2026-01-05")


@pytest.fixture
def table(outside: Outside, shop: UseCase) -> None:
    outside.source.execute(TABLE)


@pytest.fixture
def published(table: None, outside: Outside, shop: UseCase, admin_dsn: str) -> Iterator[None]:
    assert outside.settings.follower_dsn is not None
    prepare_source(shop, admin_dsn, outside.settings.follower_dsn)
    yield
    _clean(admin_dsn, slot_name(shop))


def fill(outside: Outside) -> int:
    made = list(statements())
    with outside.source.transaction() as at:
        for statement in made:
            at.execute(statement)
    return len(made)


def read_batch(use_case: UseCase, partition: Interval, outside: Outside, name: str = "lines") -> pa.Table:
    """The clean rows of a partition, after ingest."""
    batch = validate_batch(use_case, land_partition(use_case, partition, outside), outside)
    [landed] = batch.tables
    return from_bytes(_lake(outside).read(landed.clean_uri, landed.clean_sha256))


def _lake(outside: Outside) -> Lake:
    return outside.lake


def find_rows(reader: SourceReader, count: int) -> dict[tuple[str, str], FollowedRow]:
    """All rows that a reader tells, once they are so many."""
    found: dict[tuple[str, str], FollowedRow] = {}
    deadline = threading.Event()
    timer = threading.Timer(PATIENCE_SECONDS, deadline.set)
    timer.start()
    while len(found) < count:
        assert not deadline.is_set(), len(found)
        if (step := reader.read(1.0)) is not None:
            found |= step.rows
            reader.settle(step)
    timer.cancel()
    return found


def make_tables(use_case: UseCase, outside: Outside) -> SourceTables:
    with outside.source.transaction() as at:
        return SourceTables(use_case, outside, find_identities(at, use_case))


def test_three_ways_of_reading_give_the_same_rows_and_the_same_faults(
    shop: UseCase, partition: Interval, outside: Outside, published: None
) -> None:
    tables = make_tables(shop, outside)
    assert tables.identities == {"lines": ("line_id", "choice")}
    start = LogStart(place=None, publication_oid=None, since=partition.start, held={})
    assert outside.settings.follower_dsn is not None
    with LogReader(outside.settings.follower_dsn, tables, start) as reader:
        while reader.is_reading_tables:
            reader.read(1.0)
        count = fill(outside)
        by_log = find_rows(reader, count)
    with PollReader(make_tables(shop, outside), since=partition.start, held={}, stopped=threading.Event()) as reader:
        by_polling = find_rows(reader, count)
    assert by_log == by_polling

    clean = read_batch(shop, partition, outside)
    good = [row for row in by_log.values() if row.reasons is None]
    assert len(good) == 1 + len(OTHERS)
    in_batch = encode_rows(shop, "lines", clean, ("line_id", "choice"))
    assert sorted(row.row_data or "" for row in in_batch) == sorted(row.row_data or "" for row in good)
    assert decode_rows(shop, "lines", [row.row_data or "" for row in in_batch]).equals(clean)

    quarantined = {row["row_data"]["line_id"]: tuple(row["reasons"]) for row in list_quarantined(shop, outside)}
    told = {json.loads(row.identity)[0]: row.reasons for row in by_log.values() if row.reasons is not None}
    assert quarantined == told
    assert len(told) == len(BAD) + len(WORSE)


def test_every_type_is_clean_exactly_and_undeclared_columns_are_named_or_left_out(
    shop: UseCase, partition: Interval, outside: Outside, table: None
) -> None:
    """Also where undeclared columns hold what no Arrow type has, and one of them has the name of a declared one."""
    fill(outside)
    clean = read_batch(shop, partition, outside)
    [row] = [row for row in clean.to_pylist() if row["line_id"] == 2**53 + 1]
    assert row == CLEAN
    first = next(row for row in clean.to_pylist() if row["line_id"] == 2**53 + 2)
    assert first["local"] == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)  # the later of the two
    kinds = {field.name: str(field.type) for field in clean.schema}
    assert [kinds[name] for name in ("size", "price", "big", "day", "is_gift", "local")] == [
        "decimal128(12, 3)",
        "decimal128(20, 4)",
        "int64",
        "date32[day]",
        "bool",
        "timestamp[us, tz=UTC]",
    ]
    alerts = {row["title"]: row["body"] for row in outside.warehouse.query("select title, body from alerts")}
    left_out = alerts["shop: 3 columns of lines are left out"]
    assert "document is a document (json); column bytes is bytes (bytea); column parts is an array (text[])" in left_out
    added = alerts["shop: lines has columns that no suite declares"]
    assert [line.split()[1] for line in added.splitlines()] == ["choice", "other_day", "other"]


def test_a_bad_value_is_the_fault_of_its_row_and_says_what_it_was(
    shop: UseCase, partition: Interval, outside: Outside, table: None
) -> None:
    fill(outside)
    read_batch(shop, partition, outside)
    rows = sorted(list_quarantined(shop, outside), key=lambda row: row["row_data"]["line_id"])
    for row, (_, name, text) in zip(rows, BAD.values(), strict=False):
        [reason] = row["reasons"]
        assert reason.endswith(f": {name} = {text}"), reason
        if text not in {"nan", "-inf", "inf"}:
            assert row["row_data"][name] == text


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("document", "column document is a document (json), and declared as float"),
        ("bytes", "column bytes is bytes (bytea), and declared as float"),
        ("parts", "column parts is an array (text[]), and declared as float"),
    ],
)
def test_a_type_that_is_left_out_is_refused_by_name_where_it_is_declared_as_what_it_is_not(
    shop: UseCase, partition: Interval, outside: Outside, table: None, monkeypatch: pytest.MonkeyPatch, *,
    column: str, words: str,
) -> None:  # fmt: skip
    """Its twin: declared as text it lands, above."""
    columns = {**SUITE.columns, column: declared("float")}
    suite = Suite(columns=columns, expects=(), fresh_hours=None, plausible_hours={})
    monkeypatch.setitem(expectations._SUITES, "shop", {"lines": suite})
    fill(outside)
    with pytest.raises(BadData) as caught:
        land_partition(shop, partition, outside)
    assert words in str(caught.value)
    assert "declare it as text" in str(caught.value)


def test_an_undeclared_column_that_changes_or_comes_makes_no_partition_late(
    shop: UseCase, partition: Interval, outside: Outside, table: None
) -> None:
    """Its twin: a declared one does."""

    def fingerprints() -> Any:
        with outside.source.transaction(snapshot=True) as at:
            return read_fingerprints(at, shop, "lines", partition)

    fill(outside)
    before = fingerprints()
    outside.source.execute(f"update {RELATION} set document = '[]', other = 1; alter table {RELATION} add more int")
    assert fingerprints() == before
    outside.source.execute(f"update {RELATION} set note = 'changed'")
    assert fingerprints() != before


@pytest.mark.parametrize("made", ["create view", "create materialized view", "create table"])
def test_a_view_and_a_table_without_a_key_are_polled_and_ingested(
    use_case: UseCase, shop: UseCase, outside: Outside, table: None, monkeypatch: pytest.MonkeyPatch, *, made: str
) -> None:
    """And a moment without a zone may say when rows became known."""
    columns = {**SUITE.columns, "known_at": declared("timestamp", "When", zone="Europe/Paris")}
    suite = Suite(columns=columns, expects=(), fresh_hours=None, plausible_hours={})
    monkeypatch.setitem(expectations._SUITES, "shop", {"order": suite})
    count = fill(outside)
    outside.source.execute(
        f'{made} public."group" as select *, "Known At" at time zone \'Europe/Paris\' as "When" from {RELATION}'
    )
    settings = {"relation": '"group"', "key": ["line_id", "choice"], "available_at": "known_at"}
    polled = make_use_case(use_case, settings, "poll", "order")
    tables = make_tables(polled, outside)
    assert tables.identities == {"order": ("line_id", "choice", "known_at")}
    since = polled.grid.partition("2026-01-05").start
    with PollReader(tables, since=since, held={}, stopped=threading.Event()) as reader:
        rows = find_rows(reader, count)
    clean = read_batch(polled, polled.grid.partition("2026-01-05"), outside, "order")
    assert {*clean["known_at"].to_pylist()} == {datetime(2026, 1, 6, 12, tzinfo=UTC)}
    good = [row.row_data or "" for row in rows.values() if row.reasons is None]
    assert sorted(good) == sorted(row.row_data or "" for row in encode_rows(polled, "order", clean, ("line_id",)))
    with outside.source.transaction() as at, pytest.raises(ValueError, match=r"order has no primary key \(a view has"):
        find_identities(at, make_use_case(use_case, settings, "cdc", "order"))
