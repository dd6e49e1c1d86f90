"""Data time: the source's clock goes on at a stated speed, half an hour a step, waiting for nobody; or as it is asked.

The second is for a use case in which nobody answers in time: a clock that stands still loses nothing there. While no
event is due a step is of up to two hours, in the time of half an hour.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from infra.replay.incident import BreakingFeed
from infra.replay.live_source import LiveSource
from infra.replay.state import ReplayError
from pipeline.spec import UseCase

STEP = timedelta(minutes=30)
# Most events are at a half or full hour, and due a moment later: a step ends then, and not half an hour later.
_AFTER_HALF_HOURS = timedelta(minutes=1)
_QUIET_STEPS = 4  # are taken as one
_AFTER_DUE = timedelta(hours=1)  # so long after an event was due it is not quiet yet: it is to be answered
_BEFORE_DUE = timedelta(minutes=30)


class DataTime:
    """A thread that moves a source's clock, from where it stands to `until`, unless the block ends before."""

    def __init__(
        self,
        use_case: UseCase,
        source: LiveSource,
        *,
        until: datetime,
        seconds_per_hour: float,
        broken: BreakingFeed | None = None,
        then: Callable[[datetime, datetime], object],
    ) -> None:
        """`then` is told of each step, once it was taken; `broken` says when a feed breaks."""
        self._source, self._until, self._then = source, until, then
        self._seconds_per_hour, self._grid, self._lead = seconds_per_hour, use_case.grid, use_case.time.lead
        self._broken = broken
        self._over = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="data time", daemon=True)

    def __enter__(self) -> Self:
        """Start the clock."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, after the step under way."""
        self._over.set()
        self._thread.join()

    @property
    def is_still(self) -> bool:
        """Whether nothing comes by itself any more: the source holds what was to come."""
        return self._source.told_until >= self._until

    def has_reached(self, moment: datetime) -> bool:
        """Whether all that became known before a moment is in the source.

        Raises:
            ReplayError: the clock stands still for good.
        """
        if self._source.told_until >= moment:
            return True
        if self._problem is not None:
            raise ReplayError(f"data time stands at {self._source.told_until:%d %b %H:%M}: {self._problem}")
        return False

    def _run(self) -> None:
        try:
            next_at = time.monotonic()
            while self._source.told_until < self._until and not self._over.wait(max(0.0, next_at - time.monotonic())):
                lasts = self._step()
                next_at = max(next_at + lasts, time.monotonic())  # a step that was late is not made up for
        except BaseException as error:
            self._problem = error
            raise

    def _step(self) -> float:
        """Take the next one; how many seconds it is to last. None lies in two partitions."""
        start = self._source.told_until
        feed = self._broken if self._broken is not None and self._broken.breaks_at(start) else None
        end = _find_half_hour_end(start) if feed else self._find_step_end(start)  # it may be mended at any moment
        end = min(end, self._grid.containing(start).end, self._until)
        self._source.tell(end, broken=feed.key if feed else None)
        self._then(start, end)
        return self._seconds_per_hour * (min(end - start, STEP) / timedelta(hours=1))

    def _find_step_end(self, start: datetime) -> datetime:
        end = _find_half_hour_end(start)
        for _ in range(_QUIET_STEPS - 1):
            later = _find_half_hour_end(end)
            if self._source.find_due(start - _AFTER_DUE, later + _BEFORE_DUE, self._lead).num_rows:
                break
            end = later
        return end


def _find_half_hour_end(start: datetime) -> datetime:
    """The first moment after `start` that lies a minute after a half or full hour."""
    past = (start - _AFTER_HALF_HOURS - datetime.min.replace(tzinfo=start.tzinfo)) % STEP
    return start + STEP - past


class AskedTime:
    """The source's clock goes on to the moment that somebody waits for, at once and no further."""

    is_still = True  # nothing ever comes by itself

    def __init__(self, source: LiveSource) -> None:
        self._source = source

    def __enter__(self) -> Self:
        """Nothing goes on by itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing has to be stopped."""

    def has_reached(self, moment: datetime) -> bool:
        """All that became known before a moment is in the source from now on."""
        if self._source.told_until < moment:
            self._source.tell(moment)
        return True
