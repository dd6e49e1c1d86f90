"""Takes answers from the spool to the table `online_answers`: `python -m serving.shipper`, one process a spool.

One transaction a segment: its rows, and the session's balance, which says how many of its segments are in. Killed
between the commit and the removal of the file, the next one finds the segment already counted and only removes it.
While the database is away it waits; what waits is bounded by the spool, and what did not fit there is counted.
What can never be shipped is put aside as `.refused`, and the rest goes on. A row is one event under one request id: a
client that sends a request again adds nothing, which is counted as repeated.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection, cursor

from serving.locks import take_lock
from serving.prediction_log import LOGGED, REFUSED, LogSession, has_ended, read_segment, read_session

DSN, SPOOL = "WINDSOCK_ONLINE_DSN", "WINDSOCK_SPOOL"
IDLE_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 5.0
_ROWS_A_STATEMENT = 1000
_NICE = 10  # where the processor is short, answers go before what becomes of them
_COLUMNS = ", ".join(LOGGED)
_INSERT = f"""
    insert into online_answers ({_COLUMNS})
    select {_COLUMNS} from json_populate_recordset(null::online_answers, %s) on conflict do nothing
"""  # noqa: S608  # the names are ours
_BALANCE = """
    insert into online_losses (session, use_case, started_at, segments, answered, shipped, dropped, lost, repeated)
    values (%(session)s, %(use_case)s, %(started_at)s, 0, 0, 0, 0, 0, 0) on conflict (session) do nothing
"""
_SHIPPED = """
    update online_losses set segments = %(segment)s, shipped = shipped + %(rows)s, repeated = repeated + %(repeated)s,
        answered = %(answered)s, dropped = %(dropped)s where session = %(session)s
"""
_ENDED = """
    update online_losses set answered = %(answered)s, dropped = %(dropped)s, ended_at = now(),
        lost = greatest(0, %(answered)s - %(dropped)s - shipped - repeated)
    where session = %(session)s and ended_at is null returning lost
"""
logger = logging.getLogger(__name__)


class Shipper:
    """Ships a spool over one connection, opened when there is something to ship."""

    def __init__(self, spool: Path, dsn: str) -> None:
        self._spool, self._dsn = spool, dsn
        self._connection: connection | None = None

    def ship(self) -> int:
        """Everything that is complete, once; how many rows.

        Raises:
            psycopg2.Error: the database does not take it; what it did not take is still in the spool.
        """
        try:
            return sum(self._try_session(path) for path in sorted(self._spool.glob("*.session")))
        except psycopg2.Error:
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try_session(self, path: Path) -> int:
        """A session that the disk does not hand over is left for the next time, and holds up no other."""
        try:
            return self._ship_session(path)
        except OSError as error:
            logger.warning("%s: %s", path, error)
            return 0

    def _ship_session(self, path: Path) -> int:
        over = has_ended(path)  # checked first: what it left open before it ended is then complete
        segments = _segments(path, over=over)
        try:
            session = read_session(path)
        except ValueError as error:
            if not over:
                return 0
            return self._ship_orphans(path, segments, str(error))
        rows = sum(self._ship_segment(session, segment) for segment in segments)
        if over:
            self._end(session)
            path.unlink()
        return rows

    def _ship_orphans(self, path: Path, segments: Sequence[Path], problem: str) -> int:
        """The answers of a session whose own file cannot be read: those that are there are all that is known of it."""
        logger.warning("%s is put aside; what it dropped or lost is not known: %s", path, problem)
        session = _from_segments(path.stem, segments)
        rows = 0
        if session is not None:
            rows = sum(self._ship_segment(session, segment) for segment in segments)
            self._end(session)
        for left in (path, *(segment for segment in segments if segment.exists())):
            left.rename(left.with_suffix(REFUSED))
        return rows

    def _ship_segment(self, session: LogSession, segment: Path) -> int:
        try:
            shipped = self._insert_segment(session, _number(segment), read_segment(segment))
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError) as error:  # never taken, and others wait
            logger.warning("%s is put aside, its answers are lost: %s", segment, str(error).strip())
            segment.rename(segment.with_suffix(REFUSED))
            return 0
        segment.unlink()
        return shipped

    def _insert_segment(self, session: LogSession, number: int, rows: list[bytes]) -> int:
        """A segment's rows and its number, in one transaction; how many were new: none when it was taken before."""
        with self._transaction(session) as at:
            at.execute("select segments from online_losses where session = %s for update", (session.name,))
            if (at.fetchone() or (0,))[0] >= number:
                return 0
            new = 0
            for start in range(0, len(rows), _ROWS_A_STATEMENT):
                listed = b",".join(rows[start : start + _ROWS_A_STATEMENT]).decode()
                at.execute(_INSERT, (f"[{listed}]",))
                new += at.rowcount
            at.execute(
                _SHIPPED,
                {
                    "session": session.name,
                    "segment": number,
                    "rows": new,
                    "repeated": len(rows) - new,
                    "answered": session.answered,
                    "dropped": session.dropped,
                },
            )
        return new

    def _end(self, session: LogSession) -> None:
        with self._transaction(session) as at:
            at.execute(_ENDED, {"answered": session.answered, "dropped": session.dropped, "session": session.name})
            lost = (at.fetchone() or (0,))[0]
        if lost or session.dropped:
            logger.warning("session %s: %d answers lost, %d dropped", session.name, lost, session.dropped)

    @contextmanager
    def _transaction(self, session: LogSession) -> Iterator[cursor]:
        """A transaction in which the session has a balance."""
        if self._connection is None:
            self._connection = psycopg2.connect(
                self._dsn, connect_timeout=5, options="-c timezone=UTC -c statement_timeout=60s -c lock_timeout=30s"
            )
        with self._connection, self._connection.cursor() as at:
            at.execute(_BALANCE, vars(session) | {"session": session.name})
            yield at


def _segments(path: Path, *, over: bool) -> list[Path]:
    """The complete files of a session, in their order."""
    files = [*path.parent.glob(f"{path.stem}-*.done"), *(path.parent.glob(f"{path.stem}-*.open") if over else ())]
    return sorted((one for one in files if one.stem.removeprefix(f"{path.stem}-").isdecimal()), key=_number)


def _number(segment: Path) -> int:
    return int(segment.stem.rsplit("-", 1)[1])


def _from_segments(name: str, segments: Sequence[Path]) -> LogSession | None:
    """A session as its answers describe it; None where not one can be read."""
    rows = list[bytes]()
    for segment in segments:
        with suppress(ValueError):  # put aside when its turn comes
            rows += read_segment(segment)
    if not rows:
        return None
    first = json.loads(rows[0])
    started_at = datetime.fromisoformat(first["answered_at"])
    return LogSession(name=name, use_case=first["use_case"], started_at=started_at, answered=len(rows), dropped=0)


def ship_until_ended(shipper: Shipper, ended: threading.Event, *, warn: Callable[[str], None]) -> None:
    """Ship until the event is set; while the database is away, try again at growing intervals."""
    wait_seconds = IDLE_SECONDS
    while True:
        last = ended.is_set()
        try:
            shipper.ship()
            wait_seconds = IDLE_SECONDS
        except psycopg2.Error as error:  # whatever it was: what is not in the database stays in the spool
            wait_seconds = min(wait_seconds * 2, _LONGEST_WAIT_SECONDS)
            warn(f"the database does not take answers; again in {wait_seconds:.1f} s: {str(error).strip()}")
        if last:
            return
        ended.wait(wait_seconds)


def main() -> int:
    """Ship the spool that the environment names until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    spool = Path(os.environ[SPOOL])
    spool.mkdir(parents=True, exist_ok=True)
    if not take_lock(spool / "shipper.lock"):
        logger.warning("another shipper has %s", spool)
        return 1
    os.nice(_NICE)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    logger.info("shipping %s", spool)
    shipper = Shipper(spool, os.environ[DSN])
    ship_until_ended(shipper, ended, warn=logger.warning)
    shipper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
