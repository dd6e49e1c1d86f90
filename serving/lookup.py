"""Looks up the history of events in the online store, within a deadline; without it the answer says that it is missing.

Nothing that the store does or fails to do is an exception here. Where the series are in memory (`serving/mirror.py`) no
request waits for the store; one that has been silent for too long is as one that does not answer. Else a server that
hangs is left after `timeout_ms`, whether it accepts, authenticates or answers. It is tried again after a second. One
that answers, though not all of a batch in time, is tried again by the next batch: that batch was too large.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg2
import pyarrow as pa

from features import FeatureSet
from features.feature_rows import FeatureRows
from features.online import Event, FetchSeries, OnlineFeatures, StoreState, list_events
from serving.mirror import StoreMirror
from serving.online_store import OnlineStore
from serving.reasons import DegradedReason

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0  # a store that answers nothing, or refuses, is left alone
_CACHE_BYTES = 128 << 20


@dataclass(frozen=True)
class LookedUpFeatures:
    """Features, one row an event: the key columns and every feature, as in the batch.

    `as_of` is what the store knew up to, `snapshot` the dataset it was made with, and `changes` how much the stream had
    written to it (None: it did not answer); `problems` says per row why something is missing.
    """

    rows: FeatureRows
    as_of: datetime | None
    snapshot: str | None
    problems: tuple[tuple[str, ...], ...]
    changes: int | None = None

    @property
    def features(self) -> pa.Table:
        """As the batch has them."""
        return self.rows.table


class FeatureLookup:
    """Features of a use case's events. One for each worker process: it is not shared between threads.

    With `is_mirrored` the series are held in memory, and kept current by a thread of their own.
    """

    def __init__(
        self,
        *,
        dsn: str,
        use_case: str,
        definition: FeatureSet,
        lead: timedelta,
        timeout_ms: int,
        clock: Callable[[], float] = time.monotonic,
        is_mirrored: bool = False,
    ) -> None:
        store = OnlineStore(dsn, use_case, definition.digest(), timeout_ms, clock)
        self._store, self._mirror = store, StoreMirror(store.copy(), clock) if is_mirrored else None
        self._online = OnlineFeatures(definition, lead, cache_bytes=_CACHE_BYTES)
        self._clock = clock
        self._again_at = float("-inf")
        self._was_mirrored = False

    def features(self, events: pa.Table) -> LookedUpFeatures:
        """As `look_up`, of a table whose columns are the fields of a request, moments naive UTC."""
        return self.look_up(list_events(events))

    def look_up(self, events: Sequence[Event]) -> LookedUpFeatures:
        """The features of events, in their order."""
        if events and self._clock() >= self._again_at:
            try:
                computed = self._online.compute_rows(events, self._begin_batch())
            except (psycopg2.Error, TimeoutError) as error:
                self._store.close()
                if not (isinstance(error, TimeoutError) and self._store.answered):
                    self._again_at = self._clock() + _PAUSE_SECONDS
                problem = " ".join(str(error).split()) or type(error).__name__
                logger.warning("%s: %s", DegradedReason.STORE_SILENT, problem)
            else:
                state = computed.state
                snapshot, changes = (state.snapshot, state.changes) if state else (None, None)
                return LookedUpFeatures(computed.rows, _as_of(state), snapshot, computed.problems, changes=changes)
        computed = self._online.compute_rows(events, None)
        return LookedUpFeatures(
            rows=computed.rows,
            as_of=None,
            snapshot=None,
            problems=tuple((*others, DegradedReason.STORE_SILENT) for others in computed.problems),
        )

    def close(self) -> None:
        self._store.close()
        if self._mirror is not None:
            self._mirror.close()

    def _begin_batch(self) -> FetchSeries:
        """Where this batch reads series: from memory, once they are there."""
        self._store.begin_batch()
        is_mirrored = self._mirror is not None and self._mirror.is_ready
        if is_mirrored != self._was_mirrored:  # neither says what changed since the other was read
            self._online.forget()
            self._was_mirrored = is_mirrored
        return self._mirror.begin_batch() if self._mirror is not None and is_mirrored else self._store.fetch_series


def _as_of(state: StoreState | None) -> datetime | None:
    return None if state is None else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=state.as_of)
