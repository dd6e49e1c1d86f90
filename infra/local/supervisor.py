"""The process that starts the parts, restarts what dies or hangs, tells how they are, and takes all down with it."""

import argparse
import contextlib
import fcntl
import json
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
from infra.local.part import Part, Step
from infra.local.plan import plan
from infra.local.processes import Identity, end, identify, members, spawn

START_ATTEMPTS = 3
BACK_OFF_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30)
CALM_SECONDS = 120  # a part that ran this long starts again at the shortest back-off
HUNG_SECONDS, HUNG_CHECKS = 180, 6  # a part that was silent so often, within so long, is started again


class NotUpError(Exception):
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
        items = plan(home, tuple(name for name in groups if name not in left_out))
        self.home = home
        self.parts = [item for item in items if isinstance(item, Part)]
        self.steps = [item for item in items if isinstance(item, Step)]
        self._ready = {item.name: threading.Event() for item in items}
        self._lock = threading.Lock()
        self._spawning = threading.Lock()
        self.stopping = threading.Event()
        self.problem: str | None = None
        self.hung_seconds = hung_seconds
        self._unwell: set[str] = set()
        self._report = report
        self._begun = time.monotonic()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._state: dict[str, Any] = {
            "stack": home.stack,
            "groups": groups,
            "supervisor": asdict(identify(os.getpid())),
            "parts": {
                p.name: {"state": "waiting", "restarts": 0, "port": p.port, "address": p.address} for p in self.parts
            },
        }
        for name, problem in left_out.items():
            self.tell(name, state="left out", restarts=0, problem=problem)

    def tell(self, name: str, **change: Any) -> None:
        """Note a change in the state file, the log, and to whoever waits for the start."""
        with self._lock:
            self._state["parts"].setdefault(name, {}).update(change)
            text = json.dumps(self._state, indent=1)
            seconds = round(time.monotonic() - self._begun, 1)
            event = json.dumps(
                {"name": name, "seconds": seconds, "state": self._state["parts"][name]["state"], **change}
            )
            with contextlib.suppress(OSError):  # a full disk or a reader who left must not take the stack down
                print(event, flush=True)
                fresh = self.home.folder / "state.json.new"
                fresh.write_text(text)
                fresh.replace(self.home.folder / "state.json")
            self._send(event)

    def _send(self, event: str) -> None:
        if self._report is not None:
            with contextlib.suppress(OSError):
                os.write(self._report, f"{event}\n".encode())

    def close_report(self) -> None:
        """Whoever waited for the start need wait no longer."""
        with self._lock:
            if self._report is not None:
                os.close(self._report)
                self._report = None

    def _await(self, needs: tuple[str, ...]) -> bool:
        for name in needs:
            while not self._ready[name].wait(0.2):
                if self.stopping.is_set():
                    return False
        return not self.stopping.is_set()

    def _fail(self, name: str, problem: str) -> None:
        self.problem = self.problem or f"{name}: {problem}"
        self.tell(name, state="failed", problem=problem)
        self.stopping.set()

    def run_step(self, step: Step) -> None:
        """Run a step once what it needs is there."""
        if not self._await(step.needs):
            return
        self.tell(step.name, state="running")
        try:
            step.run()
        except Exception as error:  # noqa: BLE001  # the edge of a thread: whatever it was is reported and stops the start
            self._fail(step.name, str(error))
            return
        self._ready[step.name].set()
        self.tell(step.name, state="done")

    def keep(self, part: Part) -> None:
        """Bring a part up and keep it up until the stack stops."""
        try:
            if self._await(part.needs):
                part.prepare()
                self._cycle(part)
        except Exception as error:  # noqa: BLE001  # the edge of a thread: whatever it was is reported and stops the stack
            self._fail(part.name, str(error))

    def _cycle(self, part: Part) -> None:
        restarts, recent = 0, 0
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                if self._start(part, restarts):
                    self._attend(part)
            except NotUpError as error:
                if not self._ready[part.name].is_set() and restarts + 1 >= START_ATTEMPTS:
                    raise
                self.tell(part.name, problem=str(error))
            if self.stopping.is_set():
                return
            restarts += 1
            recent = 0 if time.monotonic() - began > CALM_SECONDS else recent
            code = self._processes[part.name].poll()
            self.tell(part.name, state="restarting", restarts=restarts, last_exit=code)
            self.stopping.wait(BACK_OFF_SECONDS[min(recent, len(BACK_OFF_SECONDS) - 1)])
            recent += 1

    def _start(self, part: Part, restarts: int) -> bool:
        marker = f"{self.home.stack}/{part.name}"
        before = self._state["parts"][part.name]
        leader = leader_of(before)
        if members(leader, marker):  # what the dead one left behind would do its work twice
            end(leader, marker, first=signal.SIGQUIT if part.name == "postgres" else signal.SIGTERM, seconds=5)
        with self._spawning:
            if self.stopping.is_set():
                return False
            process = spawn(part, self.home.logs / f"{part.name}.log")
            self._processes[part.name] = process
            self.tell(part.name, state="starting", restarts=restarts, **asdict(identify(process.pid)))
        if not self._await_healthy(part, process):
            return False
        if not self._ready[part.name].is_set():
            part.provision()
        self._ready[part.name].set()
        self.tell(part.name, state="up", problem=None)
        return True

    def _await_healthy(self, part: Part, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + part.start_seconds
        while not part.healthy():
            if process.poll() is not None:
                raise NotUpError(
                    f"ended with code {process.returncode} while starting.{tail(self.home.logs / f'{part.name}.log')}"
                )
            if time.monotonic() > deadline:
                if self._ready[part.name].is_set() and part.lives():
                    return True  # it was up before, and what ails it is nothing that a new start mends
                raise NotUpError(
                    f"not healthy after {part.start_seconds:.0f} s.{tail(self.home.logs / f'{part.name}.log')}"
                )
            if self.stopping.wait(0.1):
                return False
        return True

    def _attend(self, part: Part) -> None:
        """Until the part's process has ended. One that hangs, though all it needs works, is ended.

        A server may live and do nothing: stopped, in a deadlock, or waiting on its way out for what never comes. Times
        asked are counted, not seconds: a machine that slept is no part's fault.
        """
        process, silent = self._processes[part.name], 0
        while not self.stopping.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.hung_seconds / HUNG_CHECKS)
                return
            silent = silent + 1 if self._hangs(part) else 0
            if silent >= HUNG_CHECKS and not self.stopping.is_set():
                self.tell(part.name, problem=f"hung: no answer for {self.hung_seconds:.0f} s")
                leader = leader_of(self._state["parts"][part.name])
                patience = min(part.stop_seconds, self.hung_seconds)
                end(leader, f"{self.home.stack}/{part.name}", first=part.stop_signal, seconds=patience)

    def _hangs(self, part: Part) -> bool:
        """Whether a part gives no sign of life, though all it needs works."""
        try:
            healthy = part.healthy()
            lives = healthy or part.lives()
        except Exception as error:  # noqa: BLE001  # at the edge of a thread: a check that fails is not the part's fault
            self.tell(part.name, problem=f"could not be asked: {error}")
            return False
        (self._unwell.discard if healthy else self._unwell.add)(part.name)
        return not lives and all(self._works(name) for name in self._all_needs(part))

    def _works(self, name: str) -> bool:
        return self._state["parts"][name]["state"] in ("up", "done") and name not in self._unwell

    def stop_parts(self) -> None:
        """End every part, those that others need last."""
        with self._spawning:  # from here on nothing is spawned: `stopping` is set
            left = {part.name: part for part in self.parts}
        for step in self.steps:
            end(None, f"{self.home.stack}/{step.name}", seconds=3)
        while left:
            needed = {need for part in left.values() for need in self._all_needs(part)}
            batch = [part for name, part in left.items() if name not in needed]
            threads = [threading.Thread(target=self._stop_part, args=(part,)) for part in batch]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            left = {name: part for name, part in left.items() if part not in batch}

    def _all_needs(self, part: Part) -> set[str]:
        needs = {p.name: set(p.needs) for p in self.parts} | {s.name: set(s.needs) for s in self.steps}
        found: set[str] = set()
        waiting = set(part.needs)
        while waiting:
            found |= waiting
            waiting = {need for name in waiting for need in needs[name]} - found
        return found

    def _stop_part(self, part: Part) -> None:
        known = self._state["parts"][part.name]
        end(leader_of(known), f"{self.home.stack}/{part.name}", first=part.stop_signal, seconds=part.stop_seconds)
        if part.name in self._processes:
            self._processes[part.name].wait()
        if known["state"] != "failed":
            self.tell(part.name, state="stopped")

    def run(self, owner: Identity | None) -> int:
        """Until a signal, the end of the owner, or a part that does not come up. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stopping.set())
        workers = [threading.Thread(target=self.keep, args=(part,)) for part in self.parts]
        workers += [threading.Thread(target=self.run_step, args=(step,)) for step in self.steps]
        for worker in workers:
            worker.start()
        reported = False
        while not self.stopping.wait(0.1 if not reported else 1):
            if not reported and all(event.is_set() for event in self._ready.values()):
                self.tell("stack", state="up")
                self.close_report()
                reported = True
            if owner is not None and not owner.alive():
                self.stopping.set()
        self.stop_parts()
        for worker in workers:
            worker.join()
        self.tell("stack", state="stopped" if self.problem is None else "failed", problem=self.problem)
        self.close_report()
        return 0 if self.problem is None else 1


def leader_of(known: Mapping[str, Any]) -> Identity | None:
    """The process that leads a part, by what the state file says of it; None before its first start."""
    return Identity(pid=known["pid"], started=known["started"]) if "pid" in known else None


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists() or not (text := log.read_text(errors="replace").strip()):
        return f" Its log {log} is empty."
    return "\n".join([f" The end of {log}:", *(f"    {line}" for line in text.splitlines()[-lines:])])


def sweep(home: Home) -> None:
    """End what a supervisor that was killed left running."""
    path = home.folder / "state.json"
    known = json.loads(path.read_text())["parts"] if path.exists() else {}
    for name, part in known.items():
        leader = leader_of(part)
        if members(leader, f"{home.stack}/{name}"):
            print(json.dumps({"name": name, "state": "left over, ending it"}), flush=True)
            end(leader, f"{home.stack}/{name}", first=signal.SIGINT if name == "postgres" else signal.SIGTERM)


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
    owner = identify(given.owner) if given.owner else None
    old = open_home(given.home, usual=given.usual_ports, choose_ports=not (given.home / "ports.json").exists())
    sweep(old)
    (given.home / "state.json").unlink(missing_ok=True)  # nobody may take the last one's state for this one's
    home = open_home(given.home, usual=given.usual_ports, choose_ports=True)
    groups = tuple(given.parts.split(","))
    problem = gateway.obtain(home) if "gateway" in groups else None
    left_out = {} if problem is None else {"gateway": problem}
    return Supervisor(home, groups, given.report, given.hung_seconds, left_out=left_out).run(owner)


if __name__ == "__main__":
    sys.exit(main())
