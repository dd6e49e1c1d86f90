"""Locks of files: one outlives no process, so that a pid that is used again cannot mislead."""

import fcntl
import os
import time
from pathlib import Path

_ATTEMPTS, _PAUSE_SECONDS = 10, 0.1


def take_lock(path: Path) -> bool:
    """Whether this process has the lock of a file now, until it ends; the file is made."""
    # A check whether it is held has it for an instant.
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        else:
            return True
    return False


def is_held(path: Path) -> bool:
    """Whether a process has the lock of a file; this check itself has it for an instant."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
