"""Follows the tables of a PostgreSQL publication: whole transactions, in the order of their commits, at least once."""

import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg2
from psycopg2.extensions import connection, cursor, quote_ident
from psycopg2.extras import LogicalReplicationConnection

from adapters.column_types import VALUE_SETTINGS
from adapters.errors import Missing, PublicationGone, Refused, SlotGone, Unavailable
from adapters.pgoutput import EPOCH, PgOutputDecoder, TransactionCommit
from adapters.replication_pieces import Confirmations, Idle, PieceBuilder, TransactionPiece
from adapters.replication_stream import ReplicationStream, raise_as_ours
from adapters.retrying import is_refusal

# Values come as text of this session. A host that vanished is noticed after a minute.
_SESSION: dict[str, Any] = {
    "application_name": "windsock",
    "client_encoding": "UTF8",
    "options": " ".join(f"-c {name}={value}" for name, value in VALUE_SETTINGS.items()),
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
_SLOT = "select database, plugin, current_database() from pg_replication_slots where slot_name = %s"
_DATA_HEADER_BYTES = 25
_SHUTDOWN = timedelta(seconds=1)  # between two questions; otherwise half of wal_sender_timeout lies between them
_KEEPALIVE = struct.Struct("!cQqB")
_FIRST_TYPE_THAT_IS_NOT_BUILT_IN = 10_000

Connection = TypeVar("Connection", bound=connection)


class ReplicationFollower:
    """One session with a slot. It begins at what the slot has confirmed: what was not acknowledged comes again, whole.

    Everything that needs a new session raises `Unavailable` (try again, later) or `Missing` (no repetition mends it).
    What no session notices: since PostgreSQL 18 a publication that is dropped meanwhile leaves a gap without a word.
    Compare `SlotState.publication_oid` from time to time.

    A source drops a follower that says nothing for its `wal_sender_timeout`, 60 s by default: read at least twice as
    often. A source that shuts down waits until all that it sent is acknowledged; a session that reads ends instead.
    """

    def __init__(
        self,
        dsn: str,
        slot: str,
        publication: str,
        *,
        rows_at_once: int = 10_000,
        publication_oid: int | None = None,
        name_table: Callable[[str, str], str] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            dsn: a role that may log in and replicate (`adapters.replication_setup.create_follower_role`).
            slot: of the plugin pgoutput; no other follower may use it at the same time.
            publication: its tables are followed.
            rows_at_once: the most changes that a piece has.
            publication_oid: the number that the publication had before; another is a `PublicationGone`.
            name_table: from a schema and a table, what changes call it; the table alone, where None.
        """
        self._dsn, self._slot, self._publication = dsn, slot, publication
        self._rows_at_once, self._known_oid = rows_at_once, publication_oid
        self._name_table = name_table
        self._connection: connection | None = None

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            SlotInUse: another follower has the slot. It is an `Unavailable`.
            SlotGone, PublicationGone: as they say. What was missed is to be had from the tables themselves.
            Unavailable: the source does not answer.
            Refused: it lets us not in.
            ValueError: the slot is of another database, or of another plugin than pgoutput.
        """
        self._connection = opened = _connect(self._dsn, LogicalReplicationConnection)
        try:
            with _translated(SlotGone):
                self._start(opened)
        except BaseException:
            opened.close()
            raise
        self._stream = ReplicationStream(opened)
        self._decoder = PgOutputDecoder(self._find_base_type)
        if self._name_table is not None:
            self._decoder.name_table = self._name_table
        self._builder = PieceBuilder(self._rows_at_once)
        self._confirmations = Confirmations()
        self._ready = deque[TransactionPiece]()
        self._types = dict[int, tuple[int, int]]()
        self._caught_up_at, self._asked_at = 0, EPOCH
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def _start(self, opened: LogicalReplicationConnection) -> None:
        with opened.cursor() as at:
            at.execute("select oid from pg_publication where pubname = %s", (self._publication,))
            row = at.fetchone()
            if row is None:
                raise PublicationGone(f"there is no publication {self._publication}")
            if self._known_oid not in (None, row[0]):
                raise PublicationGone(f"the publication {self._publication} was dropped and made anew")
            self._check_slot(at)
            options = {"proto_version": "1", "publication_names": quote_ident(self._publication, opened)}
            # 0: where the slot itself is. A position beyond a transaction would skip it, and say nothing.
            at.start_replication(slot_name=self._slot, start_lsn=0, options=options, decode=False)

    def _check_slot(self, at: cursor) -> None:
        """ValueError for a slot that is not for this: the server's error for it is that of a slot that was lost."""
        at.execute(_SLOT, (self._slot,))
        row = at.fetchone()
        if row is not None and row[:2] != (row[2], "pgoutput"):
            raise ValueError(f"slot {self._slot}: expected one of pgoutput in {row[2]}, got {row[1]} in {row[0]}")

    def read(self, timeout_seconds: float) -> TransactionPiece | Idle | None:
        """The next piece, or that there is none and where the source is; None if it said nothing in this time.

        Raises:
            Unavailable: the session has ended; another may do better.
            SlotGone, PublicationGone: as they say.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            answer = self._read_arrived()
            if answer is not None or not self._stream.wait(deadline - time.monotonic()):
                return answer

    def _read_arrived(self) -> TransactionPiece | Idle | None:
        """A piece, if it has arrived; else the latest idle position, if one has."""
        idle = None
        while not self._ready and (message := self._stream.next_message()) is not None:
            if message.startswith(b"w"):
                self._decode(message[_DATA_HEADER_BYTES:])
            else:
                idle = self._answer_keepalive(message) or idle
        if self._ready:
            return self._ready.popleft()
        if idle is not None:
            self._confirmations.deliver(idle.position, idle.position)
        return idle

    def _decode(self, payload: bytes) -> None:
        for event in self._decoder.decode(payload):
            if (piece := self._builder.add(event)) is not None:
                self._ready.append(piece)
            if isinstance(event, TransactionCommit):
                self._confirmations.deliver(event.position, event.end)

    def _answer_keepalive(self, message: bytes) -> Idle | None:
        """Answer a source that asks for us. Amid a transaction, or behind a commit, its position says nothing."""
        _, position, moment, is_asked = _KEEPALIVE.unpack(message)
        server_time = EPOCH + timedelta(microseconds=moment)
        if is_asked:
            self._refuse_shutdown(server_time)
            self._stream.confirm(self._confirmations.confirmed)
        if not self._builder.is_between_transactions or position < self._confirmations.last_end:
            return None
        # It asks when it has not heard of us for long, whatever it does; it tells unasked when it has nothing to do.
        is_caught_up = not is_asked or position == self._caught_up_at
        self._caught_up_at = position if is_caught_up else self._caught_up_at
        return Idle(position=position, server_time=server_time, is_caught_up=is_caught_up)

    def _refuse_shutdown(self, asked_at: datetime) -> None:
        """A source asks again at once only when it waits to shut down: leave, rather than hold that up."""
        if asked_at - self._asked_at < _SHUTDOWN:
            raise Unavailable("the source is shutting down, and waits for its followers")
        self._asked_at = asked_at

    def acknowledge(self, answer: TransactionPiece | Idle) -> None:
        """This answer and all before it is settled: a source that restarts will send it no more.

        A transaction is settled by its last piece. What another session delivered confirms nothing that this one has
        not delivered.

        Raises:
            Unavailable: the session has ended.
        """
        before = self._confirmations.confirmed
        if (confirmed := self._confirmations.acknowledge(answer)) > before:
            self._stream.confirm(confirmed)

    def _find_base_type(self, oid: int, modifier: int) -> tuple[int, int]:
        """The type that a domain stands for; any other type itself."""
        if oid < _FIRST_TYPE_THAT_IS_NOT_BUILT_IN:
            return oid, modifier
        if oid not in self._types:  # nothing can be asked on a connection that replicates
            with closing(_connect(self._dsn, connection)) as opened, _translated(Missing), opened.cursor() as at:
                at.execute("select oid, typbasetype, typtypmod from pg_type where typtype = 'd'")
                self._types |= {row[0]: (row[1], row[2]) for row in at.fetchall()}
        base, base_modifier = self._types.setdefault(oid, (oid, modifier))
        return (base, modifier) if base == oid else self._find_base_type(base, base_modifier)


def _connect(dsn: str, factory: type[Connection]) -> Connection:
    try:
        opened: Connection = psycopg2.connect(dsn, connection_factory=factory, **_SESSION)
    except psycopg2.OperationalError as error:
        if is_refusal(error):
            raise Refused(f"the source refused us, check its DSN in the environment: {str(error).strip()}") from error
        raise Unavailable(f"the source does not answer: {str(error).strip()}") from error
    return opened


@contextmanager
def _translated(undefined: type[Missing]) -> Iterator[None]:
    try:
        yield
    except psycopg2.Error as error:
        raise_as_ours(error.pgcode or "", str(error).strip(), undefined=undefined)
