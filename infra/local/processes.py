"""Processes that can be told apart later (by pid and start time), in sessions that are ended as a whole."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from adapters.retrying import wait_until
from infra.local.part import Part, run_as

MARKER = "WINDSOCK_PART"  # in the environment of everything a part starts: <stack>/<part>


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process that is not mistaken for a later one with the same pid. `started` is in seconds since 1970."""

    pid: int
    started: float

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 2 and _is_running(process)
        except psutil.NoSuchProcess:
            return False


def identify_process(pid: int) -> ProcessIdentity:
    """The identity of a running process."""
    return ProcessIdentity(pid=pid, started=psutil.Process(pid).create_time())


def spawn_part(part: Part, log: Path) -> subprocess.Popen[bytes]:
    """Start a part as the leader of its own session, writing to its log."""
    part.directory.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            part.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(part.environment),
            cwd=part.directory,
            start_new_session=True,
            **run_as(part.account),
        )


def _is_ours(process: psutil.Process, leader: ProcessIdentity | None, marker: str) -> bool:
    try:
        if leader is not None and os.getsid(process.pid) == leader.pid:
            # A session keeps its leader's pid from being used again; a leader with another start time is a stranger.
            return process.pid != leader.pid or leader.is_alive()
        value: str = process.environ().get(MARKER, "")
    except (psutil.Error, OSError):
        return False
    return value == marker or value.startswith(f"{marker}/")


def find_members(leader: ProcessIdentity | None, marker: str) -> list[psutil.Process]:
    """The living processes of a part: its session, its descendants, and what carries its mark."""
    known = leader if leader is not None and (leader.is_alive() or not psutil.pid_exists(leader.pid)) else None
    found = {p.pid: p for p in psutil.process_iter() if p.pid != os.getpid() and _is_ours(p, known, marker)}
    for process in list(found.values()):
        with contextlib.suppress(psutil.Error):
            found.update({child.pid: child for child in process.children(recursive=True)})
    return [p for p in found.values() if p.pid != os.getpid() and _is_running(p)]


def _is_running(process: psutil.Process) -> bool:
    """Whether a process still holds its files and ports: one whose first thread has ended does until the last one has.

    A zombie of one thread has ended: in a container whose first process collects no orphans, it stays one for ever.
    """
    try:
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False


def _send(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)  # psutil refuses when the pid was used again


def wait_until_ended(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all have ended, at most so long; returns those that have not."""
    # They are not our children: there is nothing to wait on.
    wait_until(lambda: not any(_is_running(p) for p in processes), within_seconds=seconds, every_seconds=0.02)
    return [p for p in processes if _is_running(p)]


def end_part(leader: ProcessIdentity | None, marker: str, *, first: int = signal.SIGTERM, seconds: float = 20) -> None:
    """End a part: its leader by `first`, whatever is left after `seconds` by SIGKILL. Returns when all are gone."""
    everything = find_members(leader, marker)
    leaders = [p for p in everything if leader is not None and p.pid == leader.pid]
    _send(leaders or everything, first)
    wait_until_ended(leaders or everything, seconds)
    rest = find_members(leader, marker)
    _send(rest, signal.SIGTERM)
    stubborn = wait_until_ended(rest, 3)
    _send(stubborn, signal.SIGKILL)
    wait_until_ended(stubborn, 10)
