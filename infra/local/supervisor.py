"""The process that starts the parts, restarts what dies or hangs, tells how they are, and takes all down with it."""

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from infra.local import gateway
from infra.local.home import Home, open_home
from infra.local.part import Part, SetUpStep
from infra.local.plan import plan_stack
from infra.local.processes import ProcessIdentity, end_part, find_members, identify_process, spawn_part
from infra.local.state_file import StateRecorder, end_leftovers, forget_state, quote_log_end, read_leader

START_ATTEMPTS = 3
BACK_OFF_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30)
CALM_SECONDS = 120  # a part that ran this long starts again at the shortest back-off
HUNG_SECONDS, HUNG_CHECKS = 180, 6  # a part that was silent so often, within so long, is started again


class PartStartError(Exception):
    """A part or step did not come up; the text is for people."""


class Supervisor:
    """One thread a part; the state file and the report are written whenever something changes."""

    def __init__(
        self,
        home: Home,
        groups: tuple[str, ...],
        report: int | None,
        hung_seconds: float,
        *,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`left_out`: the groups that cannot be had here, and why."""
        items = plan_stack(home, tuple(name for name in groups if name not in left_out))
        self.home = home
        self.parts = [item for item in items if isinstance(item, Part)]
        self.steps = [item for item in items if isinstance(item, SetUpStep)]
        self._needs = {item.name: item.needs for item in items}
        self._ready = {item.name: threading.Event() for item in items}
        self._spawning = threading.Lock()
        self.stopping = threading.Event()
        self.problem: str | None = None
        self.hung_seconds = hung_seconds
        self._unhealthy: set[str] = set()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        state: dict[str, Any] = {
            "stack": home.stack,
            "groups": groups,
            "supervisor": asdict(identify_process(os.getpid())),
            "parts": {
                p.name: {"state": "waiting", "restarts": 0, "port": p.port, "address": p.address} for p in self.parts
            },
        }
        self.recorder = StateRecorder(home.folder, state, report)
        for name, problem in left_out.items():
            self.recorder.record(name, state="left out", restarts=0, problem=problem)

    def _await(self, needs: tuple[str, ...]) -> bool:
        for name in needs:
            while not self._ready[name].wait(0.2):
                if self.stopping.is_set():
                    return False
        return not self.stopping.is_set()

    def _fail(self, name: str, problem: str) -> None:
        self.problem = self.problem or f"{name}: {problem}"
        self.recorder.record(name, state="failed", problem=problem)
        self.stopping.set()

    def run_step(self, step: SetUpStep) -> None:
        """Run a step once what it needs is there."""
        if not self._await(step.needs):
            return
        self.recorder.record(step.name, state="running")
        try:
            step.run()
        except Exception as error:  # noqa: BLE001  # the edge of a thread: whatever it was is reported and stops the start
            self._fail(step.name, str(error))
            return
        self._ready[step.name].set()
        self.recorder.record(step.name, state="done")

    def keep_up(self, part: Part) -> None:
        """Bring a part up and keep it up until the stack stops."""
        try:
            if self._await(part.needs):
                part.prepare()
                self._run_again(part)
        except Exception as error:  # noqa: BLE001  # the edge of a thread: whatever it was is reported and stops the stack
            self._fail(part.name, str(error))

    def _run_again(self, part: Part) -> None:
        restarts, recent = 0, 0
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                if self._start(part, restarts):
                    self._watch(part)
            except PartStartError as error:
                if not self._ready[part.name].is_set() and restarts + 1 >= START_ATTEMPTS:
                    raise
                self.recorder.record(part.name, problem=str(error))
            if self.stopping.is_set():
                return
            restarts += 1
            recent = 0 if time.monotonic() - began > CALM_SECONDS else recent
            code = self._processes[part.name].poll()
            self.recorder.record(part.name, state="restarting", restarts=restarts, last_exit=code)
            self.stopping.wait(BACK_OFF_SECONDS[min(recent, len(BACK_OFF_SECONDS) - 1)])
            recent += 1

    def _start(self, part: Part, restarts: int) -> bool:
        marker = self._marker(part.name)
        leader = read_leader(self.recorder.parts[part.name])
        if find_members(leader, marker):  # what the dead one left behind would do its work twice
            end_part(leader, marker, first=signal.SIGQUIT if part.name == "postgres" else signal.SIGTERM, seconds=5)
        with self._spawning:
            if self.stopping.is_set():
                return False
            process = spawn_part(part, self._log(part))
            self._processes[part.name] = process
            self.recorder.record(
                part.name, state="starting", restarts=restarts, **asdict(identify_process(process.pid))
            )
        if not self._await_healthy(part, process):
            return False
        if not self._ready[part.name].is_set():
            part.provision()
        self._ready[part.name].set()
        self.recorder.record(part.name, state="up", problem=None)
        return True

    def _log(self, part: Part) -> Path:
        return self.home.logs / f"{part.name}.log"

    def _marker(self, name: str) -> str:
        return f"{self.home.stack}/{name}"

    def _await_healthy(self, part: Part, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + part.start_seconds
        while not part.is_healthy():
            if process.poll() is not None:
                raise PartStartError(
                    f"ended with code {process.returncode} while starting.{quote_log_end(self._log(part))}"
                )
            if time.monotonic() > deadline:
                if self._ready[part.name].is_set() and part.is_alive():
                    return True  # it was up before, and what ails it is nothing that a new start mends
                raise PartStartError(f"not healthy after {part.start_seconds:.0f} s.{quote_log_end(self._log(part))}")
            if self.stopping.wait(0.1):
                return False
        return True

    def _watch(self, part: Part) -> None:
        """Until the part's process has ended. One that hangs, though all it needs works, is ended.

        A server may live and do nothing: stopped, in a deadlock, or waiting on its way out for what never comes. Times
        asked are counted, not seconds: a machine that slept is no part's fault.
        """
        process, silent = self._processes[part.name], 0
        while not self.stopping.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.hung_seconds / HUNG_CHECKS)
                return
            silent = silent + 1 if self._is_hung(part) else 0
            if silent >= HUNG_CHECKS and not self.stopping.is_set():
                self.recorder.record(part.name, problem=f"hung: no answer for {self.hung_seconds:.0f} s")
                self._end(part, min(part.stop_seconds, self.hung_seconds))

    def _is_hung(self, part: Part) -> bool:
        """Whether a part gives no sign of life, though all it needs works."""
        try:
            healthy = part.is_healthy()
            lives = healthy or part.is_alive()
        except Exception as error:  # noqa: BLE001  # at the edge of a thread: a check that fails is not the part's fault
            self.recorder.record(part.name, problem=f"could not be asked: {error}")
            return False
        (self._unhealthy.discard if healthy else self._unhealthy.add)(part.name)
        return not lives and all(
            self.recorder.parts[name]["state"] in ("up", "done") and name not in self._unhealthy
            for name in self._all_needs(part.name)
        )

    def stop_parts(self) -> None:
        """End every part, those that others need last."""
        with self._spawning:  # from here on nothing is spawned: `stopping` is set
            left = {part.name: part for part in self.parts}
        for step in self.steps:
            end_part(None, self._marker(step.name), seconds=3)
        while left:
            needed = {need for name in left for need in self._all_needs(name)}
            batch = [part for name, part in left.items() if name not in needed]
            threads = [threading.Thread(target=self._stop_part, args=(part,)) for part in batch]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            left = {name: part for name, part in left.items() if part not in batch}

    def _all_needs(self, name: str) -> set[str]:
        """What a part or step needs, and what that needs in turn."""
        return {*self._needs[name]}.union(*map(self._all_needs, self._needs[name]))

    def _end(self, part: Part, seconds: float) -> None:
        leader = read_leader(self.recorder.parts[part.name])
        end_part(leader, self._marker(part.name), first=part.stop_signal, seconds=seconds)

    def _stop_part(self, part: Part) -> None:
        self._end(part, part.stop_seconds)
        if part.name in self._processes:
            self._processes[part.name].wait()
        if self.recorder.parts[part.name]["state"] != "failed":
            self.recorder.record(part.name, state="stopped")

    def run(self, owner: ProcessIdentity | None) -> int:
        """Until a signal, the end of the owner, or a part that does not come up. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stopping.set())
        workers = [threading.Thread(target=self.keep_up, args=(part,)) for part in self.parts]
        workers += [threading.Thread(target=self.run_step, args=(step,)) for step in self.steps]
        for worker in workers:
            worker.start()
        reported = False
        while not self.stopping.wait(0.1 if not reported else 1):
            if not reported and all(event.is_set() for event in self._ready.values()):
                self.recorder.record("stack", state="up")
                self.recorder.close_report()
                reported = True
            if owner is not None and not owner.is_alive():
                self.stopping.set()
        self.stop_parts()
        for worker in workers:
            worker.join()
        self.recorder.record("stack", state="stopped" if self.problem is None else "failed", problem=self.problem)
        self.recorder.close_report()
        return 0 if self.problem is None else 1


def main() -> int:
    """Supervise one home."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--parts", required=True)
    parser.add_argument("--owner", type=int)
    parser.add_argument("--report", type=int)
    parser.add_argument("--usual-ports", action="store_true")
    parser.add_argument(
        "--hung-seconds", type=float, default=HUNG_SECONDS, help="without an answer a part starts again"
    )
    given = parser.parse_args()
    given.home.mkdir(parents=True, exist_ok=True)
    lock = (given.home / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another supervisor holds this home", flush=True)
        return 3
    owner = identify_process(given.owner) if given.owner else None
    end_leftovers(open_home(given.home, usual=given.usual_ports, choose_ports=not (given.home / "ports.json").exists()))
    forget_state(given.home)
    home = open_home(given.home, usual=given.usual_ports, choose_ports=True)
    groups = tuple(given.parts.split(","))
    problem = gateway.fetch_haproxy(home) if "gateway" in groups else None
    return Supervisor(
        home,
        groups,
        given.report,
        given.hung_seconds,
        left_out={} if problem is None else {"gateway": problem},
    ).run(owner)


if __name__ == "__main__":
    sys.exit(main())
