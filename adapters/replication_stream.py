"""A session of logical replication: its messages as they came, and nothing confirmed that we did not confirm.

psycopg2 connects and begins the replication. Its own `read_message` is not used: it confirms by itself the position in
a keepalive whenever that of the last message is not beyond the last acknowledged one. Positions of rows fall back, so
transactions that nobody has acknowledged would be lost. Nor does it tell of keepalives. So its libpq is asked itself.
"""

import select
import struct
import time
from collections.abc import Callable
from ctypes import CDLL, POINTER, byref, c_char_p, c_int, c_void_p, string_at
from typing import Any, NoReturn, cast

from psycopg2 import _psycopg, errors
from psycopg2.extensions import connection

from adapters.errors import ENCODING_REMEDY, Missing, PublicationGone, SlotGone, SlotInUse, Unavailable, Unreadable
from adapters.pgoutput import EPOCH

SEND_SECONDS = 30.0  # the server reads while it sends: one that takes nothing for so long is gone
_STATUS = struct.Struct("!cQQQqB")
_SQLSTATE, _PRIMARY, _FATAL = ord("C"), ord("M"), 7


def _bind(name: str, result: type | None, *arguments: Any) -> Callable[..., Any]:
    function: Any = getattr(_LIBPQ, name)
    function.restype, function.argtypes = result, arguments
    return cast("Callable[..., Any]", function)


_LIBPQ = CDLL(_psycopg.__file__)  # names are looked up in what the module is linked with, too: its own libpq
_get_copy_data = _bind("PQgetCopyData", c_int, c_void_p, POINTER(c_void_p), c_int)
_put_copy_data = _bind("PQputCopyData", c_int, c_void_p, c_char_p, c_int)
_consume_input = _bind("PQconsumeInput", c_int, c_void_p)
_flush = _bind("PQflush", c_int, c_void_p)
_set_nonblocking = _bind("PQsetnonblocking", c_int, c_void_p, c_int)
_free = _bind("PQfreemem", None, c_void_p)
_get_result = _bind("PQgetResult", c_void_p, c_void_p)
_result_status = _bind("PQresultStatus", c_int, c_void_p)
_result_field = _bind("PQresultErrorField", c_char_p, c_void_p, c_int)
_clear = _bind("PQclear", None, c_void_p)
_error_message = _bind("PQerrorMessage", c_char_p, c_void_p)


class ReplicationStream:
    """The stream of a connection on which START_REPLICATION was answered. For one thread."""

    def __init__(self, opened: connection) -> None:
        self._opened, self._socket, self._lost = opened, opened.fileno(), ""
        _set_nonblocking(self._at, 1)  # else a server that takes nothing would hold us within libpq

    @property
    def _at(self) -> int:
        """The connection in libpq; its memory is freed when it is closed."""
        if self._opened.closed or (pointer := self._opened.pgconn_ptr) is None:
            raise Unavailable("the session has ended")
        return pointer

    def next_message(self) -> bytes | None:
        """The next message that has arrived whole; None if there is none yet.

        Raises:
            Unavailable, SlotGone, PublicationGone, psycopg2.Error: the stream has ended (see `raise_as_ours`).
        """
        buffer = c_void_p()
        size = _get_copy_data(self._at, byref(buffer), 1)
        if size > 0:
            message = string_at(buffer.value or 0, size)
            _free(buffer)
            return message
        if size < 0:
            self._raise_end()
        if self._lost:
            raise Unavailable(self._lost)
        return None

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the server has sent something, and take it in; false if the time is up before."""
        return self._poll(select.POLLIN, timeout_seconds)

    def confirm(self, position: int) -> None:
        """Tell the server that everything before this position is settled; 0: only that we are here."""
        clock = int((time.time() - EPOCH.timestamp()) * 1e6)  # shown as reply_time in pg_stat_replication
        self._send(_STATUS.pack(b"r", position, position, position, clock, 0))

    def _send(self, message: bytes) -> None:
        while (put := _put_copy_data(self._at, message, len(message))) == 0:
            self._poll_for_sending()
        if put < 0:
            self._raise_end()
        while (left := _flush(self._at)) > 0:
            self._poll_for_sending()
        if left < 0:
            self._raise_end()

    def _poll_for_sending(self) -> None:
        """A server that waits for us to read takes nothing: what it sent is taken in meanwhile."""
        if not self._poll(select.POLLIN | select.POLLOUT, SEND_SECONDS):
            raise Unavailable(f"the source took nothing for {SEND_SECONDS:.0f} s")

    def _poll(self, events: int, timeout_seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, events)
        ready = poll.poll(max(timeout_seconds, 0) * 1000)
        # A lost connection is reported once all that came before it was read.
        if ready and not _consume_input(self._at):
            self._lost = self._describe()
        return bool(ready)

    def _describe(self) -> str:
        return str((_error_message(self._at) or b"").decode(errors="replace").strip()) or "the source ended the stream"

    def _raise_end(self) -> NoReturn:
        result = _get_result(self._at)
        if not result or _result_status(result) != _FATAL:
            _clear(result)
            raise Unavailable(self._lost or self._describe())
        code, text = (_result_field(result, field) for field in (_SQLSTATE, _PRIMARY))
        told = (text or b"").decode(errors="replace") or self._describe()
        _clear(result)
        raise_as_ours((code or b"").decode(), told, undefined=PublicationGone)


def raise_as_ours(sqlstate: str, told: str, *, undefined: type[Missing]) -> NoReturn:
    """What a session of replication may fail with, by its cause; the server's words may be in any language.

    Args:
        sqlstate: empty where the server said none.
        told: what it said.
        undefined: what an undefined object is here: the slot when a session begins, the publication later.

    Raises:
        Unavailable: the server ended, or ends; another session may do better.
        SlotInUse, SlotGone, PublicationGone: as they say.
        Unreadable: the source's text cannot be told as UTF-8.
        psycopg2.Error: anything else, as psycopg2 names its SQLSTATE.
    """
    if not sqlstate or sqlstate.startswith(("08", "57P")):
        raise Unavailable(told)
    if sqlstate == "55006":
        raise SlotInUse(told)
    if sqlstate == "42704":
        raise undefined(told)
    if sqlstate in {"55000", "58P01"}:  # invalidated; its files were removed
        raise SlotGone(told)
    if sqlstate in {"22021", "22P05"}:
        raise Unreadable(f"its text is no UTF-8 ({told}): {ENCODING_REMEDY}")
    raise errors.lookup(sqlstate)(told)
