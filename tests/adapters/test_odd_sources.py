"""Sources behind a pooler, and in other encodings, are read; or refused with the setting named."""

import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from adapters.connect import Outside
from adapters.errors import Refused, Unreadable
from adapters.replication import ReplicationFollower
from adapters.warehouse import Warehouse
from infra.local.stack import Stack
from tests.conftest import drop_database

_SSL_REQUEST = 80877103
_REFUSED = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"


class _Pooler:
    """A door to PostgreSQL that takes no `options` when a session begins, as PgBouncer does by default."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._begin, args=(client,), daemon=True).start()

    def _begin(self, client: socket.socket) -> None:
        startup = _read_startup(client)
        if startup[4:8] == struct.pack("!I", _SSL_REQUEST):
            client.sendall(b"N")
            startup = _read_startup(client)
        if b"\0options\0" in startup[7:]:
            client.sendall(b"E" + struct.pack("!I", 4 + len(_REFUSED)) + _REFUSED)
            client.close()
            return
        with client, socket.create_connection(self._target) as server:
            server.sendall(startup)
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()


def _read_startup(client: socket.socket) -> bytes:
    head = client.recv(4, socket.MSG_WAITALL)
    return head + client.recv(struct.unpack("!I", head)[0] - 4, socket.MSG_WAITALL)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # the other side has gone
        pass


@pytest.fixture
def pooled_dsn(outside: Outside) -> Iterator[str]:
    """The source behind a pooler, whose sessions begin with settings of another taste."""
    parts = parse_dsn(outside.settings.source_dsn)
    pooler = _Pooler(parts["host"], int(parts["port"]))
    tastes = {"timezone": "Asia/Tokyo", "datestyle": "German", "intervalstyle": "iso_8601", "extra_float_digits": "-5"}
    for name, value in tastes.items():
        outside.source.execute(f"alter role current_user set {name} = '{value}'")
    yield str(make_dsn(outside.settings.source_dsn, host="127.0.0.1", port=pooler.port))
    outside.source.execute("alter role current_user reset all")
    pooler.close()


def test_a_source_behind_a_pooler_is_read_as_one_without(outside: Outside, pooled_dsn: str) -> None:
    query = (
        "select '2013-01-01 12:00+02'::timestamptz as t, '2013-01-02'::date as d, 0.1::float4::float8 as f,"
        " interval '1 day 2 hours' as i, '\\x00'::bytea as b, '2013-01-01'::timestamptz::text as s"
    )
    tables = []
    for warehouse in (outside.source, Warehouse(pooled_dsn, is_source=True)):
        for snapshot in (False, True):
            with warehouse.transaction(snapshot=snapshot) as at:
                tables.append(warehouse.copy_out(query, at=at))
    assert all(table == tables[0] for table in tables)
    assert tables[0]["s"].to_pylist() == ["2013-01-01 00:00:00+00"]
    assert tables[0]["f"].to_pylist() == [0.10000000149011612]


def test_sabotage_without_settings_of_its_own_a_pooled_session_reads_something_else(pooled_dsn: str) -> None:
    with closing(psycopg2.connect(pooled_dsn)) as opened, opened, opened.cursor() as at:
        at.execute("select '2013-01-01'::timestamptz::text")
        assert at.fetchone() == ("2013-01-01 00:00:00+09",)  # psycopg2 asks for ISO dates by itself


def test_what_a_pooler_cannot_pass_is_refused_with_the_setting_named(pooled_dsn: str) -> None:
    """Our own database, which needs a session's settings; and the log, which no pooler passes."""
    with pytest.raises(Refused, match=r"refused us, check its DSN.*unsupported startup parameter: options"):
        Warehouse(pooled_dsn).query("select 1")
    with (
        pytest.raises(Refused, match=r"refused us, check its DSN.*unsupported startup parameter: options"),
        ReplicationFollower(pooled_dsn, "slot", "publication"),
    ):
        pass


@contextmanager
def database_in(encoding: str, outside: Outside, stack: Stack) -> Iterator[Warehouse]:
    name, owner = f"in_{encoding.lower()}_{secrets.token_hex(4)}", parse_dsn(outside.settings.source_dsn)["user"]
    with closing(psycopg2.connect(stack.home().admin_dsn)) as opened:
        opened.autocommit = True
        with opened.cursor() as at:
            at.execute(f"create database {name} owner {owner} encoding '{encoding}' locale 'C' template template0")
    source = Warehouse(str(make_dsn(outside.settings.source_dsn, dbname=name)), is_source=True)
    source.execute("create table t (id int primary key, v text)")
    yield source
    drop_database(stack, name)


@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"])
def test_text_of_a_database_in_another_encoding_is_read(encoding: str, outside: Outside, running_stack: Stack) -> None:
    text = "日本" if encoding == "EUC_JP" else "é ü"
    with database_in(encoding, outside, running_stack) as source:
        source.execute("insert into t values (1, %s)", (text,))
        with source.transaction() as at:
            assert source.copy_out("select v from t", at=at)["v"].to_pylist() == [text]


def test_text_of_no_encoding_is_refused_with_the_setting_named(outside: Outside, running_stack: Stack) -> None:
    with database_in("SQL_ASCII", outside, running_stack) as source:
        source.execute("insert into t values (1, E'\\351')")
        with source.transaction() as at, pytest.raises(Unreadable, match=r"no UTF-8.*server_encoding is SQL_ASCII"):
            source.copy_out("select v from t", at=at)
