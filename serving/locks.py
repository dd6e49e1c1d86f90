"""Whether somebody holds a file's lock: a lock outlives no process, so a pid that is used again cannot mislead."""

import fcntl
from pathlib import Path


def is_held(path: Path) -> bool:
    """Whether a process has the lock of a file; this check itself has it for an instant."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
