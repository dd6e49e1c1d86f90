"""Runs a command whose whole process group ends with us: when we fail, are interrupted, or are killed outright."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# A watcher in the command's own session reads a pipe of which only we hold the other end: when we are gone, even by
# SIGKILL, its read ends and it kills the group. (`dvc repro` killed alone would orphan its stage.)
_LEASHED = 'exec 3<&0; (read -r _ <&3; kill -9 -$$) >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'


class CommandFailed(RuntimeError):  # noqa: N818  # reads as what happened
    """A command ended with an error; the message ends with what it printed last."""


def run(command: Sequence[str], *, folder: Path, environment: Mapping[str, str], kept_open: Sequence[int] = ()) -> str:
    """What a command printed, standard error included.

    Args:
        command: the program and its arguments.
        folder: where it runs.
        environment: all it sees of the environment.
        kept_open: files handed to it, such as a lock to be held until its whole group is gone.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    process = subprocess.Popen(
        ["/bin/sh", "-c", _LEASHED, "leash", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
        pass_fds=kept_open,
    )
    try:
        # Not communicate(): it would let go of the leash at once.
        printed = process.stdout.read().decode(errors="replace") if process.stdout else ""
        process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):  # nobody is left in the group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    if process.returncode:
        raise CommandFailed(f"`{' '.join(command)}` ended with {process.returncode}:\n{printed[-4000:]}")
    return printed
