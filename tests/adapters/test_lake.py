"""An object in the lake is written once, never changes, and is verified on every read, whatever the store does."""

import dataclasses
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adapters.connect import Outside
from adapters.errors import Corrupt, Refused
from adapters.lake import Lake
from adapters.parquet import from_bytes, ordered, to_bytes
from tests.faulty import Fault, spoiled

DATA = b"some bytes" * 1000  # 10 kB
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def lake(outside: Outside) -> Lake:
    return outside.lake


def tamper(lake: Lake, uri: str, data: bytes) -> None:
    lake.client.put_object(Bucket=lake.bucket, Key=uri.removeprefix(f"s3://{lake.bucket}/"), Body=data)


def test_the_same_bytes_are_one_object(lake: Lake) -> None:
    first, second = lake.put("raw/a", DATA, ".parquet"), lake.put("raw/a/", DATA, ".parquet")
    assert first.uri == second.uri == f"s3://{lake.bucket}/raw/a/{SHA256}.parquet"
    assert (first.existed, second.existed) == (False, True)
    assert lake.list("raw/") == [first.uri]
    assert lake.read(first.uri) == DATA


def test_put_at_once_one_writes_and_all_agree(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(lambda _: lake.put("raw/a", DATA, ".bin"), range(4)))
    assert {found.uri for found in stored} == {stored[0].uri}
    assert [found.existed for found in stored].count(False) == 1


def test_other_bytes_are_another_object_beside_the_first(lake: Lake) -> None:
    uris = {lake.put("raw/a", DATA, ".bin").uri, lake.put("raw/a", b"", ".bin").uri}
    assert set(lake.list("raw/a/")) == uris
    assert len(uris) == 2


@pytest.mark.parametrize("damage", [b"", DATA[:-1], b"x" + DATA[1:]], ids=["emptied", "cut", "one byte"])
def test_a_tampered_object_is_never_read(lake: Lake, damage: bytes) -> None:
    uri = lake.put("raw/a", DATA, ".bin").uri
    tamper(lake, uri, damage)
    with pytest.raises(Corrupt, match=SHA256):
        lake.read(uri)
    with pytest.raises(Corrupt):
        lake.local(uri)
    with pytest.raises(Corrupt):
        lake.put("raw/a", DATA, ".bin")


def test_a_hash_given_is_the_hash_that_counts(lake: Lake) -> None:
    uri = lake.put_text("docs/index.html", "<p>hi</p>", "text/html")
    assert lake.read(uri) == b"<p>hi</p>"
    with pytest.raises(Corrupt):
        lake.read(uri, SHA256)


def test_a_named_object_can_be_replaced(lake: Lake) -> None:
    lake.put_text("docs/index.html", "old", "text/html")
    assert lake.read(lake.put_text("docs/index.html", "new", "text/html")) == b"new"


def test_a_damaged_local_copy_is_fetched_again(lake: Lake) -> None:
    uri = lake.put("raw/a", DATA, ".bin").uri
    path = lake.local(uri)
    path.write_bytes(b"damaged")
    assert lake.local(uri).read_bytes() == DATA
    assert [found.name for found in path.parent.iterdir()] == [path.name], "a temporary file was left"


def test_an_absent_object_is_said_to_be_absent(lake: Lake) -> None:
    uri = lake.uri(f"raw/{SHA256}.bin")
    assert not lake.exists(uri)
    with pytest.raises(FileNotFoundError, match=SHA256):
        lake.read(uri)


def test_a_uri_of_another_bucket_is_refused(lake: Lake) -> None:
    with pytest.raises(ValueError, match="not in the bucket"):
        lake.read("s3://elsewhere/a")


@pytest.mark.parametrize("wrong", [{"secret_key": "no"}, {"access_key": "no"}, {"bucket": "no-such-bucket"}])
def test_wrong_credentials_or_bucket_say_which_settings_to_check(lake: Lake, wrong: dict[str, Any]) -> None:
    stranger = dataclasses.replace(lake, **wrong)
    for call in (lambda: stranger.put("raw", DATA, ".bin"), lambda: stranger.read(stranger.uri("raw/x"))):
        with pytest.raises(Refused, match=r"check AWS_ACCESS_KEY_ID"):
            call()


def test_a_secret_is_in_no_repr(lake: Lake) -> None:
    assert lake.secret_key not in repr(lake)
    assert lake.access_key not in repr(lake)


# What a store may do between us and it


def first(times: int, method: str, spoil: Callable[[BaseHTTPRequestHandler, bytes], None]) -> tuple[Fault, list[int]]:
    """A fault that befalls the first requests of a method, and the list of those it befell."""
    struck: list[int] = []

    def fault(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> bool:
        if handler.command != method or len(struck) == times:
            return False
        struck.append(status)
        spoil(handler, body)
        return True

    return fault, struck


def unavailable(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    handler.send_response(503)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def cut_short(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def garbled(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(b"x" + body[1:])


def lost(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    handler.close_connection = True


def test_an_unavailable_store_is_asked_again(lake: Lake) -> None:
    fault, struck = first(2, "PUT", unavailable)
    with spoiled(lake.endpoint, fault) as endpoint:
        stored = dataclasses.replace(lake, endpoint=endpoint).put("raw", DATA, ".bin")
    assert len(struck) == 2
    assert lake.read(stored.uri) == DATA


@pytest.mark.parametrize("spoil", [cut_short, garbled])
def test_an_answer_that_arrives_cut_or_garbled_is_asked_for_again(
    lake: Lake, spoil: Callable[[BaseHTTPRequestHandler, bytes], None]
) -> None:
    uri = lake.put("raw", DATA, ".bin").uri
    fault, struck = first(2, "GET", spoil)
    with spoiled(lake.endpoint, fault) as endpoint:
        assert dataclasses.replace(lake, endpoint=endpoint).read(uri) == DATA
    assert len(struck) == 2


def test_a_put_whose_answer_was_lost_is_known_to_have_succeeded(lake: Lake) -> None:
    fault, struck = first(1, "PUT", lost)
    with spoiled(lake.endpoint, fault) as endpoint:
        stored = dataclasses.replace(lake, endpoint=endpoint).put("raw", DATA, ".bin")
    assert struck == [200], "the server had stored it"
    assert lake.list("raw/") == [stored.uri]
    assert lake.read(stored.uri) == DATA


# Parquet


def test_the_same_rows_in_any_order_and_any_chunks_are_the_same_bytes() -> None:
    rows = [{"k": i % 50, "t": ("a", "Ä", "", None)[i * 7 % 11 % 4], "v": i / 3} for i in range(2000)]
    table = ordered(pa.Table.from_pylist(rows), ("k",))
    shuffled = rows[1::2][::-1] + rows[0::2]
    pieces = pa.concat_tables([pa.Table.from_pylist(shuffled[i : i + 300], table.schema) for i in range(0, 2000, 300)])
    again = ordered(pieces, ("k",)).replace_schema_metadata({"written": "now"})
    assert to_bytes(again) == to_bytes(table)
    assert from_bytes(to_bytes(table)).equals(table)


def test_an_order_by_a_key_that_is_gone_uses_what_is_there() -> None:
    table = pa.table({"b": [2, 1], "c": [1, 2]})
    assert ordered(table, ("a", "b"))["b"].to_pylist() == [1, 2]


def test_an_empty_table_keeps_its_schema() -> None:
    schema = pa.schema([("t", pa.string()), ("at", pa.timestamp("us", tz="UTC"))])
    assert from_bytes(to_bytes(schema.empty_table())).schema == schema


@pytest.fixture
def small_disk(processes: None, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(lake: Lake, small_disk: Path) -> None:
    uri = lake.put("raw/a", DATA, ".parquet").uri
    here = dataclasses.replace(lake, cache=small_disk)
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 8192))
    with pytest.raises(OSError, match="No space left"):
        here.local(uri)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == [ballast]
    ballast.unlink()
    assert here.local(uri).read_bytes() == DATA
