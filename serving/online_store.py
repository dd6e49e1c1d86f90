"""Reads the online store in PostgreSQL over one connection, driven by hand, so that no call outlives its deadline."""

import select
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection, cursor

from features.online import FetchedSeries, StoreState

NEWS = "online_state"  # the channel of adapters/migrations/0020_store_news.sql
_NEWS_TIMEOUT_MS = 10_000  # nobody waits for news, and much may have changed
PAGE_KEYS = 2000
_SESSION = "-c timezone=UTC -c default_transaction_read_only=on -c statement_timeout={}"
_STATE = "st.revision, since_us, until_us, snapshot_version, changes, stopped"
_WITH_STATE = """
with st as (
    select *, (extract(epoch from since) * 1000000)::bigint as since_us,
        (extract(epoch from coalesce(known_until, as_of)) * 1000000)::bigint as until_us
    from online_state where use_case = $1 and definition = $2
)"""
_PREPARE = f"""
prepare lookup (text, text, text[], bigint, bigint) as {_WITH_STATE}
select {_STATE}, s.key, s.payload, s.recent, false
from st left join online_series s on s.use_case = st.use_case and s.definition = st.definition and s.key = any($3)
union all
select {_STATE}, s.key, null, null, true
from st join online_series s on s.use_case = st.use_case and s.definition = st.definition and s.changed > $5
where st.revision = $4;
prepare news (text, text, bigint, bigint) as {_WITH_STATE}
select {_STATE}, s.key, s.payload, s.recent
from st left join online_series s
    on s.use_case = st.use_case and s.definition = st.definition and s.changed > $4 and st.revision = $3;
prepare page (text, text, text) as
select key, payload, recent from online_series
where use_case = $1 and definition = $2 and key > $3 order by key limit {PAGE_KEYS}"""  # noqa: S608  # all of it is ours
_WAITS = {POLL_READ: select.POLLIN, POLL_WRITE: select.POLLOUT}

Parts = tuple[bytes | None, bytes | None]


class StoreNews(NamedTuple):
    """The state of the store, and the series that changed since another state of its revision."""

    state: StoreState
    parts: dict[str, Parts]


class OnlineStore:
    """A definition's series; a read that takes longer than `timeout_ms` after `begin_batch` is given up."""

    def __init__(self, dsn: str, use_case: str, digest: str, timeout_ms: int, clock: Callable[[], float]) -> None:
        self._dsn, self._use_case, self._digest = dsn, use_case, digest
        self._timeout_ms, self._clock = timeout_ms, clock
        self._connection: connection | None = None
        self._cursor: cursor | None = None
        self._deadline = 0.0
        self._is_told = False  # of news: they are kept until `await_news` takes them
        self.answered = False  # a read of this batch

    def copy(self) -> "OnlineStore":
        """The same store, over a connection of its own, which is told of news."""
        made = OnlineStore(self._dsn, self._use_case, self._digest, _NEWS_TIMEOUT_MS, self._clock)
        made._is_told = True
        return made

    def begin_batch(self) -> None:
        """From now on the time counts."""
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
        told = [row[6:] for row in rows if row[6] is not None]
        return FetchedSeries(
            state=self._state(rows),
            parts={key: (_bytes(settled), _bytes(recent)) for key, settled, recent, is_stale in told if not is_stale},
            stale=frozenset(key for key, _, _, is_stale in told if is_stale),
        )

    def read_news(self, held: StoreState | None) -> StoreNews:
        """The state, and what changed since a state of the same revision; raises as `fetch_series` does."""
        revision, changes = (held.revision, held.changes) if held else (0, 0)
        rows = self._execute("execute news (%s, %s, %s, %s)", (self._use_case, self._digest, revision, changes))
        return StoreNews(self._state(rows), {row[6]: (_bytes(row[7]), _bytes(row[8])) for row in rows if row[6]})

    def read_page(self, after: str) -> dict[str, Parts]:
        """The first `PAGE_KEYS` series behind a key, in the order of keys; raises as `fetch_series` does."""
        rows = self._execute("execute page (%s, %s, %s)", (self._use_case, self._digest, after))
        return {key: (_bytes(settled), _bytes(recent)) for key, settled, recent in rows}

    def await_news(self, seconds: float) -> None:
        """Wait until the state of some store was changed, or for so long; for a `copy`, which is told.

        Raises:
            psycopg2.Error: the connection is gone.
        """
        opened = (self._cursor or self._open()).connection
        if not opened.notifies:
            waiting = select.poll()
            waiting.register(opened.fileno(), select.POLLIN)
            waiting.poll(seconds * 1000)
            opened.poll()
        opened.notifies.clear()

    def close(self) -> None:
        """Disconnect; the next read connects again."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._cursor = None

    def _state(self, rows: list[tuple[Any, ...]]) -> StoreState:
        if not rows:
            raise psycopg2.OperationalError(f"it holds nothing of {self._use_case} by this feature definition yet")
        return StoreState(*rows[0][:5])._replace(stopped=tuple(rows[0][5]))

    def _read(self, keys: list[str], held: StoreState | None) -> list[tuple[Any, ...]]:
        revision, changes = (held.revision, held.changes) if held else (0, 0)
        arguments = (self._use_case, self._digest, keys, revision, changes)
        return self._execute("execute lookup (%s, %s, %s, %s, %s)", arguments)

    def _execute(self, statement: str, arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        at = self._cursor or self._open()
        at.execute(statement, arguments)
        self._wait(at.connection)
        return at.fetchall()

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
        at.execute(f"{_PREPARE}; listen {NEWS}" if self._is_told else _PREPARE)
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
