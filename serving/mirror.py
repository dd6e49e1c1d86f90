"""Every series of a definition in memory, kept current by a thread: a request waits for no database.

The store's writer notifies of each commit that changes its state (adapters/migrations/0020_store_news.sql), and every
quarter of a second the thread asks without having been told. What it reads is one snapshot: the state, and each series
that changed since the state it holds. A store that said nothing for `SILENT_SECONDS` is silent here, too. Of another
revision everything is read anew, page by page; until that is done, and where a definition's series take more than
`MAX_BYTES`, the mirror is not ready, and a lookup asks the store itself.
"""

import logging
import threading
from collections.abc import Callable, Mapping

import psycopg2
import psycopg2.errors

from features.online import FetchedSeries, FetchSeries, StoreState
from serving.online_store import PAGE_KEYS, OnlineStore, Parts

MAX_BYTES = 256 << 20  # of payloads and their keys, for each worker; five weeks of the example take 13 MB
SILENT_SECONDS = 2.0
_ASK_SECONDS = 0.25
_PAUSE_SECONDS = 1.0  # after a failure
_GROWN, _FEW_KEYS = 2, 50_000  # so many times the keys that were read, or twice a few: all is read anew
_OVERHEAD_BYTES = 250  # of a series, about
logger = logging.getLogger(__name__)


class StoreMirror:
    """What `OnlineStore.fetch_series` says, from memory, to one reader, a batch at a time."""

    def __init__(self, store: OnlineStore, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._state: StoreState | None = None  # None: not ready
        self._parts: dict[str, Parts] = {}
        self._stale: set[str] = set()  # since the reader asked
        self._seen_at, self._read_keys, self._held_bytes = float("-inf"), _FEW_KEYS, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="store mirror", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether all series are here."""
        return self._state is not None

    def begin_batch(self) -> FetchSeries:
        """What a batch reads by: all of one state, that of its first read, whatever the store says meanwhile."""
        return _Batch(self).fetch_series

    def take_state(self) -> tuple[StoreState, Mapping[str, Parts], frozenset[str]]:
        """The state, every series as it is in it, and the keys of those that changed since this was asked last.

        Raises:
            TimeoutError: the store has been silent for too long.
        """
        with self._lock:
            if (silent := self._clock() - self._seen_at) > SILENT_SECONDS:
                raise TimeoutError(f"no news for {silent:.1f} s")
            if self._state is None:
                raise TimeoutError("another revision is being read")
            stale, self._stale = frozenset(self._stale), set()
            return self._state, self._parts, stale

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()
        self._store.close()

    def _follow(self) -> None:
        try:
            while not self._ended.is_set():
                self._follow_until_failure()
        except _TooLarge as error:
            logger.warning("%s: each request asks the store itself", error)
        finally:
            self._state = None

    def _follow_until_failure(self) -> None:
        try:
            while not self._ended.is_set():
                self._read_news()
                self._store.await_news(_ASK_SECONDS)
        except (psycopg2.Error, TimeoutError) as error:
            self._store.close()
            if isinstance(error, psycopg2.errors.QueryCanceled):  # there is too much news: it is read page by page
                self._state = None
            logger.info("the store says no news: %s", " ".join(str(error).split()) or type(error).__name__)
            self._ended.wait(_PAUSE_SECONDS)

    def _read_news(self) -> None:
        asked_at = self._clock()
        self._store.begin_batch()
        state, parts = self._store.read_news(self._state)
        if not state.is_later_than(self._state):
            self._state = None
            self._read_all(state)
            return
        replaced = {key: self._parts[key] for key in parts if key in self._parts}
        after = self._parts | parts if parts else self._parts  # a batch may be reading what was before
        with self._lock:
            self._held_bytes += _count_bytes(parts) - _count_bytes(replaced)
            self._parts = after
            self._stale |= parts.keys()
            self._state, self._seen_at = state, asked_at
        self._refuse_large(self._held_bytes)
        if len(self._parts) > _GROWN * self._read_keys:  # of many the store holds nothing any more
            self._read_all(state)

    def _read_all(self, begun: StoreState) -> None:
        """Each page is a snapshot of its own: what changed since the first one is read last, with the state."""
        parts, after, size, held_bytes = dict[str, Parts](), "", PAGE_KEYS, 0
        while size == PAGE_KEYS and not self._ended.is_set():
            self._store.begin_batch()
            page = self._store.read_page(after)
            parts |= page
            after, size, held_bytes = max(page, default=""), len(page), held_bytes + _count_bytes(page)
            self._refuse_large(held_bytes)
            self._seen_at = self._clock()
        asked_at = self._clock()
        self._store.begin_batch()
        state, changed = self._store.read_news(begun)
        if not state.is_later_than(begun):
            return  # another revision again
        with self._lock:
            self._parts, self._held_bytes = parts | changed, held_bytes
            self._stale |= changed.keys()
            self._state, self._seen_at, self._read_keys = state, asked_at, max(len(self._parts), _FEW_KEYS)

    def _refuse_large(self, held_bytes: int) -> None:
        if held_bytes > MAX_BYTES:
            raise _TooLarge(f"{held_bytes >> 20} MB of series are more than {MAX_BYTES >> 20}")


class _Batch:
    """Series of one state."""

    def __init__(self, mirror: StoreMirror) -> None:
        self._mirror = mirror
        self._taken: tuple[StoreState, Mapping[str, Parts]] | None = None

    def fetch_series(self, keys: list[str], held: StoreState | None) -> FetchedSeries:
        """As the store says it. `held` is what an earlier batch was told, or None; raises as `take_state` does."""
        stale = frozenset[str]()
        if self._taken is None:
            state, parts, stale = self._mirror.take_state()
            self._taken = state, parts
        state, parts = self._taken
        found = {key: parts[key] for key in keys if key in parts}
        return FetchedSeries(state=state, parts=found, stale=stale if held is not None else frozenset())


def _count_bytes(parts: Mapping[str, Parts]) -> int:
    return sum(len(key) + len(a or b"") + len(b or b"") + _OVERHEAD_BYTES for key, (a, b) in parts.items())


class _TooLarge(Exception):  # noqa: N818  # not an error
    """The series do not fit into memory."""
