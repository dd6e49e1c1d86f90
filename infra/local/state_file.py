"""The state of a stack, as its supervisor records it: in a file, in its log, and to whoever awaits the start."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.files import write_atomically
from infra.local.home import Home
from infra.local.processes import ProcessIdentity, end_part, find_members

_NAME = "state.json"


def read_state(folder: Path) -> dict[str, Any]:
    """What the supervisor of this folder recorded last."""
    path = folder / _NAME
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    return state


def forget_state(folder: Path) -> None:
    """Nobody may take the last supervisor's record for the next one's."""
    (folder / _NAME).unlink(missing_ok=True)


def read_leader(recorded: Mapping[str, Any]) -> ProcessIdentity | None:
    """The process that leads a part, by what is recorded of it; None before its first start."""
    return ProcessIdentity(pid=recorded["pid"], started=recorded["started"]) if "pid" in recorded else None


def quote_log_end(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists() or not (text := log.read_text(errors="replace").strip()):
        return f" Its log {log} is empty."
    return "\n".join([f" The end of {log}:", *(f"    {line}" for line in text.splitlines()[-lines:])])


def end_leftovers(home: Home) -> None:
    """End what a supervisor that was killed left running."""
    for name, recorded in read_state(home.folder)["parts"].items():
        leader, marker = read_leader(recorded), f"{home.stack}/{name}"
        if find_members(leader, marker):
            print(json.dumps({"name": name, "state": "left over, ending it"}), flush=True)
            end_part(leader, marker, first=signal.SIGINT if name == "postgres" else signal.SIGTERM)


class StateRecorder:
    """Writes the state file, the log, and the report that ends once the stack is up; any thread may record."""

    def __init__(self, folder: Path, state: dict[str, Any], report: int | None) -> None:
        self.parts: dict[str, dict[str, Any]] = state["parts"]
        self._path, self._state, self._report = folder / _NAME, state, report
        self._lock = threading.Lock()
        self._begun = time.monotonic()

    def record(self, name: str, **change: Any) -> None:
        """Note a change of one part."""
        with self._lock:
            self.parts.setdefault(name, {}).update(change)
            seconds = round(time.monotonic() - self._begun, 1)
            event = json.dumps({"name": name, "seconds": seconds, "state": self.parts[name]["state"], **change})
            with contextlib.suppress(OSError):  # a full disk or a reader who left must not take the stack down
                print(event, flush=True)
                write_atomically(self._path, json.dumps(self._state, indent=1).encode())
            if self._report is not None:
                with contextlib.suppress(OSError):
                    os.write(self._report, f"{event}\n".encode())

    def close_report(self) -> None:
        """End the wait of whoever awaits the start."""
        with self._lock:
            if self._report is not None:
                os.close(self._report)
                self._report = None
