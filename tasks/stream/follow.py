"""Follows the sources of all use cases that ask for it, and answers their events, until it is told to end.

    python -m tasks.stream.follow

Of two at one use case one waits. What goes wrong is tried again, and told while it lasts.
"""

import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import psycopg2

from adapters import connect
from adapters.connect import Outside
from adapters.errors import FencedOut, PublicationGone, SlotGone, Unavailable
from pipeline.spec import UseCase, use_cases
from serving.locks import take_lock
from tasks.stream.answer_events import answer_events
from tasks.stream.awaited_tables import find_awaited_tables
from tasks.stream.deliver_answers import deliver_answers
from tasks.stream.log_reader import LogReader, LogStart
from tasks.stream.poll import PollReader
from tasks.stream.session import DatasetRefused, NothingToFollow, StoreRebuilt, StreamSession
from tasks.stream.source_step import SourceReader, SourceStep
from tasks.stream.source_tables import SourceTables, find_identities
from tasks.stream.state import StreamState, begin_following, forget_log
from tasks.stream.trouble import report_trouble

logger = logging.getLogger(__name__)

LOCK = "stream/stream.lock"  # below the home: held while it runs
_READ_SECONDS = 1.0
_SETTLING_READ_SECONDS = 0.1  # while there is something else to do
_QUIET_SECONDS = 2.0  # a source that said nothing for so long is taken to say nothing soon
_SETTLED_AT_ONCE = 256  # series
_IDLE_WRITE_SECONDS = 1.0  # so often is it written until when all is known, where nothing came
_PAUSE_SECONDS = 3.0  # before what failed is tried again, and for what is not there yet
_MENDED_SECONDS = 30.0  # at most so often is all read anew because a table is as declared again
_SWITCH_SECONDS = 0.0005  # Python's own 5 ms are many times what an answer needs between two waits
_TROUBLE = (psycopg2.Error, Unavailable, ValueError)  # the last: a person has to change something, and may at any time


Work = Callable[[UseCase, Outside, threading.Event], None]


class TableMended(Exception):  # noqa: N818  # not an error
    """A table that was not as declared is so again: what was missed of it is to be read."""


def follow_use_case(
    use_case: UseCase, outside: Outside, stopped: threading.Event, moved: threading.Event | None = None
) -> None:
    """Follow one use case until `stopped` is set; what is in the way is told, and tried again.

    Sets `moved` whenever the store has come further. What is waited for is said once.
    """
    is_log_lost, refused, waits_for = False, set[str | None](), ""
    while not stopped.is_set():
        said, waits_for = waits_for, ""
        try:
            if is_log_lost:
                forget_log(use_case, outside)
                is_log_lost = False
            with outside.warehouse.alone(f"{use_case.name}/stream") as mine:
                if mine:
                    _follow(use_case, outside, stopped, refused, moved or threading.Event())
        except StoreRebuilt:
            logger.info("%s: the online store was refreshed; following on from there", use_case.name)
            continue
        except DatasetRefused as reason:
            logger.warning("%s: %s", use_case.name, reason)
            continue
        except TableMended as tables:
            logger.info("%s: as declared again, what was missed is read: %s", use_case.name, tables)
        except (FencedOut, NothingToFollow) as reason:
            waits_for = str(reason)
            if waits_for != said:
                logger.info("%s: %s", use_case.name, reason)
        except (SlotGone, PublicationGone) as error:
            is_log_lost = True
            _report(use_case, outside, f"{error}. What was missed is read from the tables")
        except _TROUBLE as error:
            _report(use_case, outside, str(error).strip() or type(error).__name__)
        stopped.wait(_PAUSE_SECONDS)


def _follow(
    use_case: UseCase, outside: Outside, stopped: threading.Event, refused: set[str | None], moved: threading.Event
) -> None:
    """From what was kept on, until the event is set or something fails; to no dataset that was refused."""
    if awaited := find_awaited_tables(use_case, outside.warehouse, outside.source):
        outside.alerts.resolve(_fingerprint(use_case))
        raise NothingToFollow(f"{', '.join(awaited)} are not in the source yet: the stream waits for them")
    with outside.source.transaction() as at:
        identities = find_identities(at, use_case)
    fence, state = begin_following(use_case, outside, identities)
    tables = SourceTables(use_case, outside, identities)
    with ExitStack() as stack:
        stack.enter_context(outside.warehouse.session())  # a new connection a step would take a tenth of it
        session = stack.enter_context(StreamSession(use_case, outside, fence, identities, state))
        gc.freeze()  # what is held stays: nobody waits for seconds while millions of objects are looked through
        reader = stack.enter_context(_open_reader(session, tables, state, stopped))
        logger.info("%s: following (%s) from %s on", use_case.name, use_case.source.follow, session.since)
        is_well, taken_at, came_at, waiting, begun_at = False, 0.0, 0.0, SourceStep(), time.monotonic()
        while not stopped.is_set():
            now = time.monotonic()
            is_quiet = now > came_at + _QUIET_SECONDS
            pause = _SETTLING_READ_SECONDS if is_quiet and not session.is_settled else _READ_SECONDS
            if waiting.known_until is not None:
                pause = min(pause, max(0.0, taken_at + _IDLE_WRITE_SECONDS - now))
            step = reader.read(pause)
            waiting = waiting if step is None else step.after(waiting)
            if waiting.changes_rows:
                came_at = time.monotonic()
            elif time.monotonic() < taken_at + _IDLE_WRITE_SECONDS:
                if is_quiet:
                    session.settle(_SETTLED_AT_ONCE)
                continue
            session.take(waiting, reader.publication_oid, missed=tables.stopped)
            moved.set()
            reader.settle(waiting)
            if session.later_dataset not in {None, *refused} and not reader.is_reading_tables:
                _move(session, refused)
                moved.set()
            session.tell_of_feeds(missed=tables.stopped)
            session.settle(_SETTLED_AT_ONCE, is_busy=True)
            taken_at, waiting = time.monotonic(), SourceStep()
            if not is_well:
                outside.alerts.resolve(_fingerprint(use_case))
                is_well = True
            if tables.mended and time.monotonic() > begun_at + _MENDED_SECONDS:
                raise TableMended(", ".join(sorted(tables.mended)))


def _move(session: StreamSession, refused: set[str | None]) -> None:
    """Bring the store to the latest dataset; one that it cannot be brought to is not tried again."""
    version, begun_at = session.later_dataset, time.monotonic()
    try:
        session.move()
    except DatasetRefused:
        refused.add(version)
        raise
    gc.freeze()
    logger.info("the store is at dataset %s, after %.1f s", version, time.monotonic() - begun_at)


def _open_reader(
    session: StreamSession, tables: SourceTables, state: StreamState, stopped: threading.Event
) -> SourceReader:
    use_case, outside = tables.use_case, tables.outside
    if use_case.source.follow == "poll":
        return PollReader(tables, since=session.since, held=session.held, stopped=stopped)
    if (dsn := outside.settings.follower_dsn) is None:
        raise ValueError(f"{use_case.name} follows by cdc: set WINDSOCK_FOLLOWER_DSN (see docs/online.md), or poll")
    start = LogStart(place=state.place, publication_oid=state.publication_oid, since=session.since, held=session.held)
    return LogReader(dsn, tables, start)


def _report(use_case: UseCase, outside: Outside, problem: str) -> None:
    what, meanwhile = "the source is not followed", "meanwhile answers rest on what was known before"
    report_trouble(use_case, outside, _fingerprint(use_case), what=what, problem=problem, meanwhile=meanwhile)


def _fingerprint(use_case: UseCase) -> str:
    return f"{use_case.name}.stream"


def main() -> int:
    """Follow until SIGTERM; 1: another stream runs here, or a mistake of ours ended one, which the log shows."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.setswitchinterval(_SWITCH_SECONDS)
    outside, stopped = connect.outside(), threading.Event()
    lock = outside.settings.home / LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    if not take_lock(lock):
        logger.warning("another stream of this home runs")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    followed = [each for each in use_cases(outside.settings.params).values() if each.source.follow]
    failed = list[str]()

    def run(work: Work, use_case: UseCase) -> None:
        try:
            work(use_case, outside, stopped)
        except BaseException:  # whoever supervises this starts all of them again
            failed.append(use_case.name)
            stopped.set()
            raise

    works = list[tuple[str, Work, UseCase]]()
    for each in followed:
        moved, answers = threading.Event(), each.endpoint.answers if each.endpoint else None
        works.append(("follow", partial(follow_use_case, moved=moved), each))
        if answers is not None:
            works.append(("answer", partial(answer_events, moved=moved), each))
        if answers is not None and answers.webhook:
            works.append(("deliver", deliver_answers, each))
    threads = [
        threading.Thread(target=run, args=(work, each), name=f"{each.name} {what}") for what, work, each in works
    ]
    for thread in threads:
        thread.start()
    if not followed:
        logger.info("no use case follows its source: see source.follow in params.yaml")
        stopped.wait()
    for thread in threads:
        thread.join()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
