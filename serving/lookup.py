"""Looks up the history of events in the online store, within a deadline; without it the answer says that it is missing.

Nothing that the store does or fails to do is an exception here. A server that hangs is left after `timeout_ms`, whether
it accepts, authenticates or answers; it is tried again after a second. One that answers, though not all of a batch in
time, is tried again by the next batch: that batch was too large.
"""

import logging
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pyarrow as pa
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection, cursor

from features import FeatureSet
from features.online import FetchedSeries, OnlineFeatures, StoreState
from serving.reasons import DegradedReason

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0  # a store that answers nothing, or refuses, is left alone
_CACHE_BYTES = 64 << 20
_SESSION = "-c timezone=UTC -c default_transaction_read_only=on -c statement_timeout={}"
_PREPARE = """
prepare lookup (text, text, text[], bigint, bigint) as
with st as (
    select *, (extract(epoch from since) * 1000000)::bigint as since_us,
        (extract(epoch from coalesce(known_until, as_of)) * 1000000)::bigint as until_us
    from online_state where use_case = $1 and definition = $2
)
select st.revision, since_us, until_us, snapshot_version, changes, stopped, s.key, s.payload, s.recent, false
from st left join online_series s on s.use_case = st.use_case and s.definition = st.definition and s.key = any($3)
union all
select st.revision, since_us, until_us, snapshot_version, changes, stopped, s.key, null, null, true
from st join online_series s on s.use_case = st.use_case and s.definition = st.definition and s.changed > $5
where st.revision = $4"""
_WAITS = {POLL_READ: select.POLLIN, POLL_WRITE: select.POLLOUT}


@dataclass(frozen=True)
class LookedUpFeatures:
    """Features, one row an event: the key columns and every feature, as in the batch.

    `as_of` is what the store knew up to, `snapshot` the dataset it was made with, and `changes` how much the stream had
    written to it (None: it did not answer); `problems` says per row why something is missing.
    """

    features: pa.Table
    as_of: datetime | None
    snapshot: str | None
    problems: tuple[tuple[str, ...], ...]
    changes: int | None = None


class FeatureLookup:
    """Features of a use case's events. One for each worker process: it is not shared between threads."""

    def __init__(
        self,
        *,
        dsn: str,
        use_case: str,
        definition: FeatureSet,
        lead: timedelta,
        timeout_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = _Store(dsn, use_case, definition.digest(), timeout_ms, clock)
        self._online = OnlineFeatures(definition, lead, cache_bytes=_CACHE_BYTES)
        self._clock = clock
        self._again_at = float("-inf")

    def features(self, events: pa.Table) -> LookedUpFeatures:
        """The features of events, in their order; columns are the fields of a request, moments naive UTC."""
        if events.num_rows and self._clock() >= self._again_at:
            try:
                self._store.begin_batch()
                computed = self._online.compute(events, self._store.fetch_series)
            except (psycopg2.Error, TimeoutError) as error:
                self._store.close()
                if not (isinstance(error, TimeoutError) and self._store.answered):
                    self._again_at = self._clock() + _PAUSE_SECONDS
                problem = " ".join(str(error).split()) or type(error).__name__
                logger.warning("%s: %s", DegradedReason.STORE_SILENT, problem)
            else:
                snapshot, changes = (
                    (computed.state.snapshot, computed.state.changes) if computed.state else (None, None)
                )
                return LookedUpFeatures(
                    computed.features, _as_of(computed.state), snapshot, computed.problems, changes=changes
                )
        computed = self._online.compute(events, None)
        return LookedUpFeatures(
            features=computed.features,
            as_of=None,
            snapshot=None,
            problems=tuple((*others, DegradedReason.STORE_SILENT) for others in computed.problems),
        )

    def close(self) -> None:
        self._store.close()


class _Store:
    """One connection, driven by hand, so that no call outlives its deadline whatever the server does."""

    def __init__(self, dsn: str, use_case: str, digest: str, timeout_ms: int, clock: Callable[[], float]) -> None:
        self._dsn, self._use_case, self._digest = dsn, use_case, digest
        self._timeout_ms, self._clock = timeout_ms, clock
        self._connection: connection | None = None
        self._cursor: cursor | None = None
        self._deadline = 0.0
        self.answered = False  # a read of this batch

    def begin_batch(self) -> None:
        self._deadline = self._clock() + self._timeout_ms / 1000
        self.answered = False

    def fetch_series(self, keys: list[str], held: StoreState | None) -> FetchedSeries:
        """The store's state, the series it has under some keys, and which keys changed since the state held.

        Raises:
            TimeoutError: the deadline passed.
            psycopg2.Error: the store refused, or was never filled for this definition.
        """
        try:
            rows = self._read(keys, held)
        except psycopg2.OperationalError:
            if self._connection is None:  # no server went away and came back
                raise
            self.close()
            rows = self._read(keys, held)
        self.answered = True
        if not rows:
            raise psycopg2.OperationalError(f"it holds nothing of {self._use_case} by this feature definition yet")
        told = [row[6:] for row in rows if row[6] is not None]
        return FetchedSeries(
            state=StoreState(*rows[0][:5])._replace(stopped=tuple(rows[0][5])),
            parts={key: (_bytes(settled), _bytes(recent)) for key, settled, recent, is_stale in told if not is_stale},
            stale=frozenset(key for key, _, _, is_stale in told if is_stale),
        )

    def _read(self, keys: list[str], held: StoreState | None) -> list[tuple[Any, ...]]:
        at = self._cursor or self._open()
        revision, changes = (held.revision, held.changes) if held else (0, 0)
        at.execute("execute lookup (%s, %s, %s, %s, %s)", (self._use_case, self._digest, keys, revision, changes))
        self._wait(at.connection)
        return at.fetchall()

    def close(self) -> None:
        """Disconnect; the next read connects again."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._cursor = None

    def _open(self) -> cursor:
        opened = psycopg2.connect(
            self._dsn,
            async_=1,
            application_name="windsock online",
            options=_SESSION.format(self._timeout_ms),
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
        self._wait(opened)
        at = opened.cursor()
        at.execute(_PREPARE)
        self._wait(opened)
        self._connection, self._cursor = opened, at
        return at

    def _wait(self, opened: connection) -> None:
        while (state := opened.poll()) != POLL_OK:
            waiting = select.poll()
            waiting.register(opened.fileno(), _WAITS[state])
            left = self._deadline - self._clock()
            if left <= 0 or not waiting.poll(left * 1000):
                raise TimeoutError(f"no answer within {self._timeout_ms} ms")


def _bytes(payload: memoryview | None) -> bytes | None:
    return None if payload is None else bytes(payload)


def _as_of(state: StoreState | None) -> datetime | None:
    return None if state is None else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=state.as_of)
