"""PostgreSQL: migrations, fenced transactions, upserts and bulk reads; the source database is read through it too."""

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
from psycopg2 import errors, sql
from psycopg2.extensions import connection, cursor
from psycopg2.extras import DictCursor

from adapters.column_types import VALUE_SETTINGS, ReadColumn, SourceColumn, look_up_types
from adapters.copy_sql import copy_statement, list_columns, upsert_statements
from adapters.copying import format_copy, read_copy
from adapters.errors import ENCODING_REMEDY, FencedOut, Unreadable
from adapters.retrying import Result, retry_database_work

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x77696E64  # "wind": any constant of ours
_SETTINGS = {
    **VALUE_SETTINGS,
    "lock_timeout": "120s",
    "idle_in_transaction_session_timeout": "600s",  # a hung process frees its locks
}
_SESSION = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
_TRANSACTION = "; ".join(f"set local {name} = '{value}'" for name, value in _SETTINGS.items())
_NO_OPTIONS = "unsupported startup parameter"  # as PgBouncer says
_SNAPSHOT = "set transaction isolation level repeatable read, read only"


@dataclass(frozen=True, kw_only=True)
class Fence:
    """The right to commit a piece of work, until the next `begin` of the same work takes it away."""

    run_key: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Upserted:
    """What an upsert wrote, in rows; unchanged rows are not written."""

    inserted: int
    updated: int
    unchanged: int


class _Session(threading.local):
    """A thread's connection while it waits for the next call: at most one; None outside of `Warehouse.session`."""

    idle: list[connection] | None = None


@dataclass(frozen=True)
class Warehouse:
    """One PostgreSQL database. Every call outside of a `session` opens its own connection, so it may cross forks."""

    dsn: str = field(repr=False)
    what: str = "warehouse"
    is_source: bool = False  # of an operator: a pooler may lie between, and keep no settings of a session
    patience_seconds: float = 30.0  # a crashed server on a busy machine needs ten to come back
    code_sha: str = ""  # kept with what is written (0009_code.sql); empty: no code is kept
    _session: _Session = field(default_factory=_Session, init=False, repr=False, compare=False)

    def retry_transaction(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, a whole transaction of its own, retried while its failures are transient."""
        return retry_database_work(work, what=self.what, patience_seconds=self.patience_seconds)

    @contextmanager
    def transaction(self, fence: Fence | None = None, *, snapshot: bool = False) -> Iterator[cursor]:
        """A cursor (rows answer to index and to name) whose work is committed at the end, or not at all.

        Args:
            fence: hold its row locked till the commit, so that a later run waits, and an earlier one cannot pass.
            snapshot: read only, and every statement sees the same moment.

        Raises:
            FencedOut: a later run of the same work has begun.
        """
        with self._connected() as opened, opened, opened.cursor(cursor_factory=DictCursor) as at:
            _settle(at, local=self.is_source, snapshot=snapshot)
            if fence is not None:
                _hold(at, fence)
            yield at

    @contextmanager
    def session(self) -> Iterator[None]:
        """Let the calls of this thread share one connection, for a step that makes many queries at once.

        It is opened when first needed, and again where it broke. A transaction inside another has one of its own.
        """
        if self._session.idle is not None:  # the outer session goes on
            yield
            return
        self._session.idle = []
        try:
            yield
        finally:
            idle, self._session.idle = self._session.idle, None
            for opened in idle:
                opened.close()

    @contextmanager
    def _connected(self) -> Iterator[connection]:
        idle = self._session.idle
        opened = idle.pop() if idle else self.retry_transaction(self._connect)
        try:
            yield opened
        finally:
            if idle is None or idle or opened.closed:
                opened.close()
            else:
                idle.append(opened)

    def begin(self, run_key: str) -> Fence:
        """Start a piece of work: whoever began it before may no longer commit."""
        [row] = self.query(
            "insert into fences (run_key, epoch) values (%s, 1) on conflict (run_key)"
            " do update set epoch = fences.epoch + 1, begun_at = now() returning epoch",
            (run_key,),
        )
        return Fence(run_key=run_key, epoch=row["epoch"])

    @contextmanager
    def alone(self, what: str) -> Iterator[bool]:
        """Whether nobody else is at a piece of work; while this is open and true, nobody else can be.

        The lock is the connection's: a process that is killed lets go of it at once. One that merely lost its
        connection does not know, so whatever is written is fenced as well.
        """
        with closing(self.retry_transaction(self._connect)) as opened:
            opened.autocommit = True  # no transaction that would be idle for as long as the work takes
            with opened.cursor() as at:
                at.execute("select pg_try_advisory_lock(hashtext('alone'), hashtext(%s))", (what,))
                [mine] = at.fetchone() or (False,)
            yield bool(mine)

    def query(self, statement: str, params: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """The rows that a statement returns, in a transaction of its own, retried: so it must bear being run twice."""
        return self.retry_transaction(
            lambda: self._run(statement, params, lambda at: [dict(row) for row in at.fetchall()])
        )

    def execute(self, statement: str | sql.Composable, params: Sequence[Any] | dict[str, Any] = ()) -> None:
        """Run a statement that returns nothing, as `query` does."""
        self.retry_transaction(lambda: self._run(statement, params, lambda _: None))

    def _run(
        self, statement: str | sql.Composable, params: Sequence[Any] | dict[str, Any], read: Callable[[cursor], Result]
    ) -> Result:
        with self.transaction() as at:
            at.execute(statement, params or None)  # without parameters a % is a %
            return read(at)

    def describe_columns(
        self, query: str | sql.Composable, params: Sequence[Any] = (), *, at: cursor
    ) -> list[SourceColumn]:
        """The columns that a query has, with the names of types that only this database knows."""
        described = _describe(at, at.mogrify(query, params or None))
        named = look_up_types(at, [column.oid for column in described])
        return [column._replace(named=named.get(column.oid)) for column in described]

    def copy_out(
        self,
        query: str | sql.Composable,
        params: Sequence[Any] = (),
        *,
        at: cursor,
        columns: Sequence[ReadColumn] | None = None,
    ) -> pa.Table:
        """A query's rows by COPY, typed by the query's own column types (see `adapters.column_types.arrow_type`).

        `columns`: those alone, read as they say.

        Raises:
            Unreadable: its text is no UTF-8.
        """
        bound = at.mogrify(query, params or None)
        if columns is None:
            columns = [ReadColumn.of(column) for column in _describe(at, bound)]
        else:
            chosen = list_columns([name for name, *_ in columns]).as_string(at).encode()
            bound = b"select " + chosen + b" from (" + bound + b") as chosen"
        sink = io.BytesIO()
        try:
            at.copy_expert(b"copy (" + bound + b") to stdout (format csv)", sink)
        except (errors.CharacterNotInRepertoire, errors.UntranslatableCharacter) as error:
            told = str(error).strip().splitlines()[0]
            raise Unreadable(f"its text is no UTF-8 ({told}): {ENCODING_REMEDY}") from error
        return read_copy(sink.getvalue(), columns)

    def upsert(self, at: cursor, table: str, rows: pa.Table, key: Sequence[str]) -> Upserted:
        """Insert rows, or update those that differ, by COPY into a temporary table; rows' columns are the table's.

        Raises:
            psycopg2.errors.CardinalityViolation: two rows have one key.
        """
        if rows.num_rows == 0:
            return Upserted(inserted=0, updated=0, unchanged=0)
        statements = upsert_statements(table, rows.column_names, key)
        at.execute(statements["stage"])
        at.copy_expert(copy_statement("staged", rows.column_names), io.BytesIO(format_copy(rows)))
        at.execute(statements["write"])
        inserted, updated = at.fetchone() or (0, 0)
        at.execute("drop table staged")
        return Upserted(inserted=inserted, updated=updated, unchanged=rows.num_rows - inserted - updated)

    def insert(self, at: cursor, table: str, rows: pa.Table, key: Sequence[str]) -> bool:
        """Insert rows by COPY straight into the table; false, and nothing written, where one of their keys is there.

        For rows that are new this does half the work of `upsert`. They go in the order of the key, as there.
        """
        ordered = rows.sort_by([(name, "ascending") for name in key])
        at.execute("savepoint before_insert")
        try:
            at.copy_expert(copy_statement(table, rows.column_names), io.BytesIO(format_copy(ordered)))
        except errors.UniqueViolation:
            at.execute("rollback to savepoint before_insert")
            return False
        return True

    def migrate(self, folder: Path = MIGRATIONS) -> list[str]:
        """Apply the migrations not yet applied, in order of their names, all or none; returns their names.

        Raises:
            ValueError: a migration that was applied has since been changed or removed.
        """
        return self.retry_transaction(
            lambda: self._migrate({path.name: path.read_text() for path in folder.glob("*.sql")})
        )

    def _migrate(self, files: dict[str, str]) -> list[str]:
        with self.transaction() as at:
            at.execute("select pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            at.execute("create table if not exists migrations (name text primary key, sha256 text not null)")
            at.execute("select name, sha256 from migrations")
            applied = {row[0]: row[1] for row in at.fetchall()}
            hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
            if changed := sorted(name for name, sha256 in applied.items() if hashes.get(name) != sha256):
                raise ValueError(
                    f"{', '.join(changed)}: applied already, and changed since; add a new migration instead"
                )
            pending = sorted(files.keys() - applied.keys())
            for name in pending:
                at.execute(files[name])
                at.execute("insert into migrations (name, sha256) values (%s, %s)", (name, hashes[name]))
            return pending

    def _connect(self) -> connection:
        try:
            return self._open(f"{_SESSION} -c windsock.code_sha={self.code_sha}")
        except psycopg2.OperationalError as error:
            if not self.is_source or _NO_OPTIONS not in str(error):
                raise
        return self._open()  # a pooler: each transaction sets what it needs

    def _open(self, options: str = "") -> connection:
        return psycopg2.connect(
            self.dsn, connect_timeout=10, application_name="windsock", client_encoding="UTF8", options=options
        )


def format_insert(table: str, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
    """The statement that inserts a row into one of our tables, and its parameters."""
    places = ", ".join(["%s"] * len(values))
    return f"insert into {table} ({', '.join(values)}) values ({places})", tuple(values.values())  # noqa: S608  # ours


def _describe(at: cursor, bound: bytes) -> list[SourceColumn]:
    at.execute(b"select * from (" + bound + b") as described limit 0")
    return [SourceColumn(c.name, c.type_code, c.precision, c.scale) for c in at.description or ()]


def _settle(at: cursor, *, local: bool, snapshot: bool) -> None:
    """Begin a transaction with its settings, in one question."""
    if statements := [*([_TRANSACTION] if local else []), *([_SNAPSHOT] if snapshot else [])]:
        at.execute("; ".join(statements))


def _hold(at: cursor, fence: Fence) -> None:
    at.execute("select epoch from fences where run_key = %s for update", (fence.run_key,))
    row = at.fetchone()
    if row is None or row[0] != fence.epoch:
        now = "gone" if row is None else f"at epoch {row[0]}"
        raise FencedOut(f"{fence.run_key}: epoch {fence.epoch} may not commit, the work is {now}")
