"""Answers on disk before they leave: append-only segments that `serving/shipper.py` takes to the warehouse.

A session (one worker process) holds `<session>.session` locked for as long as it lives: counts of what it answered and
dropped, in shared memory, so that they survive it. Its answers go to `<session>-<number>.open` as lines of JSON, one
write a batch, which becomes `.done` twice a second. Killed with -9 it leaves a whole segment or one whose last record
is torn; the shipper tells by the lock that nobody writes any more. Only a machine that loses its power can lose what
the disk had not taken yet: at most the segment that was open, and the counts say how many answers that were.
"""

import fcntl
import json
import logging
import mmap
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from serving.earlier_segments import read_earlier_answers
from serving.locks import is_held

ROTATE_SECONDS = 0.5
MAX_BYTES = 512 * 1024 * 1024  # of a spool: some 100,000 answers may wait for a database that is down
_HEAD = struct.Struct("<II")  # length and CRC-32 of a payload
_COUNTS = struct.Struct("<qq")  # rows answered, rows dropped
REFUSED = ".refused"  # the ending of what could not be shipped
LOGGED = (
    "use_case",
    "request_id",
    "position",
    "model_version",
    "slot",
    "client",
    "entity_id",
    "entity_key",
    "event_time",
    "prediction_time",
    "score",
    "lower",
    "upper",
    "decision",
    "degraded",
    "reasons",
    "feature_as_of",
    "feature_snapshot",
    "feature_changes",
    "feature_age_seconds",
    "server_ms",
    "request",
    "answered_at",
    "features",
)  # the columns of an answer, as its table has them
_HEADING = orjson.dumps(LOGGED)  # with which a segment begins
# And with which one began before answers had bounds: those of its answers are null.
_HEADING_WITHOUT_BOUNDS = orjson.dumps([name for name in LOGGED if name not in {"lower", "upper"}])
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LogSession:
    """What a session left on disk, for whoever ships it."""

    name: str
    use_case: str
    started_at: datetime
    answered: int
    dropped: int


class PredictionLog:
    """The writer of one session. `write` never raises and never waits for anything but the file system's cache."""

    def __init__(
        self, folder: Path, *, use_case: str, max_bytes: int = MAX_BYTES, rotate_seconds: float = ROTATE_SECONDS
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._max_bytes = folder, max_bytes
        self.session = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._held, self._counts = _open_session(folder, self.session, use_case)
        self._answered = self._dropped = self._number = self._length = 0
        self._file: int | None = None
        self._used_bytes = _used_bytes(folder)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._rotator = threading.Thread(target=self._rotate_regularly, args=(rotate_seconds,), daemon=True)
        self._rotator.start()

    def write(self, answers: Sequence[Mapping[str, Any]]) -> bool:
        """Append a batch of answers, whose values are JSON's; what is no number is written as null.

        False when there was no room for it, which is counted.
        """
        if not answers:
            return True
        record = _record(b"\n".join(map(orjson.dumps, answers)))
        with self._lock:
            self._answered += len(answers)
            self._count()  # before the write, so that a death in the middle of it is seen as a loss
            written = self._append(record)
            if not written:
                self._dropped += len(answers)
                self._count()
        return written

    def close(self) -> None:
        """Hand over what is open; the shipper draws the balance."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._rotator.join()
        with self._lock:
            self._rotate()
            self._counts.close()
            os.close(self._held)

    def _count(self) -> None:
        _COUNTS.pack_into(self._counts, 0, self._answered, self._dropped)

    def _append(self, record: bytes) -> bool:
        try:
            payload = record if self._file is not None and self._length else _record(_HEADING) + record
            if self._used_bytes + len(payload) > self._max_bytes:
                return False
            return self._put(self._file if self._file is not None else self._open(), payload)
        except OSError as error:  # the disk is full or gone: an answer is worth more than its record
            logger.warning("prediction log: %s", error)
            return False

    def _open(self) -> int:
        self._number += 1
        path = self._folder / f"{self.session}-{self._number:08d}.open"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._length = 0
        return self._file

    def _put(self, file: int, payload: bytes) -> bool:
        whole = False
        try:
            whole = os.write(file, payload) == len(payload)
        finally:
            if not whole:  # nothing can be read behind half a record
                os.ftruncate(file, self._length)
        if whole:
            self._length += len(payload)
            self._used_bytes += len(payload)
        return whole

    def _rotate_regularly(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                self._hand_over()
            except OSError as error:  # a disk that is full or away comes back; a thread that died does not
                logger.warning("prediction log: %s", error)

    def _hand_over(self) -> None:
        with self._lock:
            self._rotate()
            before = self._used_bytes
        counted = _used_bytes(self._folder)  # thousands of files take a while, and answers wait for the lock
        with self._lock:
            self._used_bytes += counted - before  # what was written during the count stays counted

    def _rotate(self) -> None:
        if self._file is None:
            return
        path = self._folder / f"{self.session}-{self._number:08d}.open"
        path.rename(path.with_suffix(".done"))  # first: where this fails, the file goes on, and it is tried again
        file, self._file = self._file, None
        os.close(file)


def _open_session(folder: Path, name: str, use_case: str) -> tuple[int, mmap.mmap]:
    """The session's file, locked before anybody can see it under its name, and its counts."""
    fresh, path = folder / f"{name}.new", folder / f"{name}.session"
    about = {"use_case": use_case, "started_at": datetime.now(UTC).isoformat()}
    held = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(held, _COUNTS.pack(0, 0) + json.dumps(about).encode())
    os.fsync(held)  # or a machine that loses its power leaves an empty file, and answers of nobody
    fcntl.flock(held, fcntl.LOCK_EX)
    fresh.rename(path)
    return held, mmap.mmap(held, _COUNTS.size)


def _used_bytes(folder: Path) -> int:
    """Of what is still to be shipped: what was refused stays until a person takes it away, and makes no answer wait."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += 0 if entry.name.endswith(REFUSED) else entry.stat().st_size
            except FileNotFoundError:  # shipped during the count
                continue
    return total


def _record(content: bytes) -> bytes:
    return _HEAD.pack(len(content), zlib.crc32(content)) + content


def read_session(path: Path) -> LogSession:
    """What a session's file holds.

    Raises:
        ValueError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        answered, dropped = _COUNTS.unpack_from(content)
        about = json.loads(content[_COUNTS.size :])
        use_case, started_at = str(about["use_case"]), datetime.fromisoformat(about["started_at"])
    except (struct.error, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no session's file ({len(content)} bytes): {error}") from error
    return LogSession(name=path.stem, use_case=use_case, started_at=started_at, answered=answered, dropped=dropped)


def has_ended(path: Path) -> bool:
    """Whether the process of a session has ended, however it ended."""
    return not is_held(path)


def read_segment(path: Path) -> list[bytes]:
    """The answers of a segment, each as JSON, up to the first record that is not whole.

    Raises:
        ValueError: its records are whole, and of another version of the server.
    """
    records = _records(path.read_bytes())
    head = next(records, None)
    if head is None:
        return []
    if head not in {_HEADING, _HEADING_WITHOUT_BOUNDS}:
        return _read_earlier(path, head, records)
    return [line for record in records for line in record.split(b"\n")]


def _read_earlier(path: Path, head: bytes, records: Iterator[bytes]) -> list[bytes]:
    try:
        return read_earlier_answers(head, records)
    except ValueError as error:
        raise ValueError(f"{path} was written by another version of the server: {error}") from error


def _records(content: bytes) -> Iterator[bytes]:
    at = 0
    while at + _HEAD.size <= len(content):
        length, crc = _HEAD.unpack_from(content, at)
        payload = content[at + _HEAD.size : at + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != crc:
            return
        yield payload
        at += _HEAD.size + length
