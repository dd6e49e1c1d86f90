"""A file is there whole or not at all, and one process at a time changes what a lock stands for."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write beside the place, to the disk, and move in; what was begun and failed leaves nothing.

    `mode` is the file's from the first moment: by default only its owner may read it.

    Raises:
        OSError: no room, or no right to write; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a crash after the move would else leave an empty file
            os.fchmod(file.fileno(), mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def hold_lock(path: Path) -> Iterator[int]:
    """Wait until nobody else holds this lock; its file's number, for processes that are to hold it, too.

    The system frees it when this process and those it was handed to have ended, however they ended.
    """
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
