"""Takes answers from the spool to the table `online_answers`: `python -m serving.shipper`, one process a spool.

One transaction a segment: its rows, and the session's balance, which says how many of its segments are in. Killed
between the commit and the removal of the file, the next one finds the segment already counted and only removes it.
While the database is away it waits; what waits is bounded by the spool, and what did not fit there is counted.
"""

import fcntl
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection, cursor
from psycopg2.extras import execute_values

from serving.prediction_log import FEATURE, LOGGED, Session, is_over, read_segment, read_session

DSN, SPOOL = "WINDSOCK_ONLINE_DSN", "WINDSOCK_SPOOL"
IDLE_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 5.0
_ROWS_A_STATEMENT = 500
_KEYS = ("entity_key", "event_time", "prediction_time")  # they stand in columns of their own already
_INSERT = f"insert into online_answers ({', '.join([*LOGGED, 'features'])}) values %s on conflict do nothing"  # noqa: S608
_BALANCE = """
    insert into online_losses (session, use_case, started_at, segments, answered, shipped, dropped, lost)
    values (%(session)s, %(use_case)s, %(started_at)s, 0, 0, 0, 0, 0) on conflict (session) do nothing
"""
_SHIPPED = """
    update online_losses set segments = %(segment)s, shipped = shipped + %(rows)s, answered = %(answered)s,
        dropped = %(dropped)s where session = %(session)s
"""
_ENDED = """
    update online_losses set answered = %(answered)s, dropped = %(dropped)s, ended_at = now(),
        lost = greatest(0, %(answered)s - %(dropped)s - shipped) where session = %(session)s and ended_at is null
    returning lost
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
            return sum(self._ship_session(path) for path in sorted(self._spool.glob("*.session")))
        except psycopg2.Error:
            self.close()
            raise

    def close(self) -> None:
        """Leave the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ship_session(self, path: Path) -> int:
        over = is_over(path)  # asked first: what it left open before it ended is then complete
        session = read_session(path)
        rows = sum(self._ship_segment(session, segment) for segment in self._segments(path, over=over))
        if over:
            self._end(session)
            path.unlink()
        return rows

    def _segments(self, path: Path, *, over: bool) -> list[Path]:
        found = [*path.parent.glob(f"{path.stem}-*.done"), *(path.parent.glob(f"{path.stem}-*.open") if over else ())]
        return sorted(found, key=_number)

    def _ship_segment(self, session: Session, segment: Path) -> int:
        rows = [row for batch in read_segment(segment) for row in _rows(batch)]
        try:
            is_new = self._take(session, _number(segment), rows)
        except (psycopg2.DataError, psycopg2.IntegrityError) as error:  # it would never be taken, and others wait
            logger.warning("%s is put aside, its answers are lost: %s", segment, str(error).strip())
            segment.rename(segment.with_suffix(".refused"))
            return 0
        segment.unlink()
        return len(rows) if is_new else 0

    def _take(self, session: Session, number: int, rows: list[tuple[Any, ...]]) -> bool:
        """A segment's rows and its number, in one transaction; False when it was taken before."""
        with self._transaction() as at:
            at.execute(_BALANCE, vars(session) | {"session": session.name})
            at.execute("select segments from online_losses where session = %s for update", (session.name,))
            is_new: bool = (at.fetchone() or (0,))[0] < number
            if is_new:
                execute_values(at, _INSERT, rows, page_size=_ROWS_A_STATEMENT)
                counts = {"answered": session.answered, "dropped": session.dropped}
                at.execute(_SHIPPED, {"segment": number, "rows": len(rows), "session": session.name, **counts})
        return is_new

    def _end(self, session: Session) -> None:
        with self._transaction() as at:
            at.execute(_BALANCE, vars(session) | {"session": session.name})
            at.execute(_ENDED, {"answered": session.answered, "dropped": session.dropped, "session": session.name})
            lost = (at.fetchone() or (0,))[0]
        if lost or session.dropped:
            logger.warning("session %s: %d answers lost, %d dropped", session.name, lost, session.dropped)

    @contextmanager
    def _transaction(self) -> Iterator[cursor]:
        if self._connection is None:
            self._connection = psycopg2.connect(
                self._dsn, connect_timeout=5, options="-c timezone=UTC -c statement_timeout=60s -c lock_timeout=30s"
            )
        with self._connection, self._connection.cursor() as at:
            yield at


def _number(segment: Path) -> int:
    return int(segment.stem.rsplit("-", 1)[1])


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    table = pa.Table.from_batches([batch])
    names = [name for name in table.column_names if name.startswith(FEATURE)]
    features = [name.removeprefix(FEATURE) for name in names]
    values = zip(*(_plain(table[name]).to_pylist() for name in names), strict=True) if names else iter(())
    known = zip(*(table[name].to_pylist() for name in LOGGED), strict=True)
    for row, found in zip(known, values if names else ((),) * table.num_rows, strict=True):
        yield (*row, json.dumps(dict(zip(features, found, strict=True)), default=str))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """JSON knows no NaN and no infinity; in features they mean missing."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def run(shipper: Shipper, ended: threading.Event, *, tell: Callable[[str], None]) -> None:
    """Ship until told to end; while the database is away, ask again at growing intervals."""
    wait_seconds = IDLE_SECONDS
    while True:
        last = ended.is_set()
        try:
            shipper.ship()
            wait_seconds = IDLE_SECONDS
        except psycopg2.Error as error:  # whatever it was: what is not in the database stays in the spool
            wait_seconds = min(wait_seconds * 2, _LONGEST_WAIT_SECONDS)
            tell(f"the database does not take answers; again in {wait_seconds:.1f} s: {str(error).strip()}")
        if last:
            return
        ended.wait(wait_seconds)


def main() -> int:
    """Ship the spool that the environment names until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    spool = Path(os.environ[SPOOL])
    spool.mkdir(parents=True, exist_ok=True)
    lock = os.open(spool / "shipper.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("another shipper has %s", spool)
        return 1
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    logger.info("shipping %s", spool)
    shipper = Shipper(spool, os.environ[DSN])
    run(shipper, ended, tell=logger.warning)
    shipper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
