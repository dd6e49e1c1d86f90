"""A stack seen from outside: start it, ask how it is, stop it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from adapters.retrying import wait_until
from infra.local import plan, postgres
from infra.local.environment import make_environment, write_env_file
from infra.local.home import Home, inherited_environment, open_home
from infra.local.part import Part
from infra.local.ports import find_socket_files
from infra.local.processes import ProcessIdentity, end_part, wait_until_ended
from infra.local.state_file import end_leftovers, quote_log_end, read_leader, read_state
from infra.local.supervisor import HUNG_SECONDS
from pipeline.settings import REPOSITORY
from serving.locks import is_held

STOP_SECONDS = 120
START_SECONDS = 240
FREE_SPACE_BYTES = 1_000_000_000
FREE_SPACE_SHARE = 0.01  # of the disk: with less free SeaweedFS starts, and stores nothing


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """How one part is."""

    part: str
    pid: int | None
    port: int | None
    state: str
    healthy: bool
    restarts: int
    address: str


def check_owner(folder: Path) -> None:
    """Refuse the state of another user, whose secrets and files this one could not use."""
    if (owner := folder.stat().st_uid) != os.geteuid():
        raise ValueError(
            f"{folder} belongs to user {owner}, not to you ({os.geteuid()}): "
            "`make clean` as that user, or set WINDSOCK_HOME"
        )


def check_free_space(folder: Path, needed_bytes: int = FREE_SPACE_BYTES) -> None:
    """Refuse to start on a disk that is about to be full."""
    disk = shutil.disk_usage(folder)
    if disk.free < (needed := needed_bytes + FREE_SPACE_SHARE * disk.total):
        raise ValueError(
            f"the disk of {folder} is nearly full: {disk.free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed "
            f"({FREE_SPACE_SHARE:.0%} of the disk stays free, for S3). "
            "Make room, or set WINDSOCK_HOME to a folder on another disk."
        )


class Stack:
    """The stack whose state is in this folder."""

    def __init__(self, folder: Path, *, hung_seconds: float = HUNG_SECONDS) -> None:
        self.folder, self.hung_seconds = folder.resolve(), hung_seconds
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether a supervisor holds this home."""
        path = self.folder / "lock"
        return path.exists() and is_held(path)

    def state(self) -> dict[str, Any]:
        """What the supervisor last wrote."""
        return read_state(self.folder)

    def groups(self) -> tuple[str, ...]:
        """The groups of parts that this stack was last started with, without those that were left out."""
        state = self.state()
        left_out = {name for name, part in state["parts"].items() if part["state"] == "left out"}
        return tuple(name for name in state.get("groups", ()) if name not in left_out)

    def home(self) -> Home:
        """The ports and passwords of a stack that was started at least once."""
        if not (self.folder / "ports.json").exists():
            raise ValueError(f"there is no stack in {self.folder}: `make up` starts one")
        return open_home(self.folder, usual=False, choose_ports=False)

    def environment(self) -> dict[str, str]:
        """What a process needs to use this stack."""
        return make_environment(self.home(), self.groups())

    def start(
        self,
        parts: tuple[str, ...] = plan.GROUPS,
        *,
        owner: int | None = None,
        usual_ports: bool = False,
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> bool:
        """Start the parts and wait until all are healthy; False when they already run.

        With an `owner`, the stack stops when that process is gone.

        Raises:
            ValueError: saying which part did not come up, and the end of its log.
        """
        if self.running:
            self._join_start()
            if set(parts) <= set(self.state()["groups"]):
                return False
            self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        check_owner(self.folder)
        check_free_space(self.folder)
        (self.folder / "logs").mkdir(exist_ok=True)
        last: dict[str, Any] = {}
        for last in self._launch(parts, owner, usual_ports=usual_ports):
            tell(last)
        if last.get("name") != "stack" or last.get("state") != "up":
            self._reap()
            ended = f"the supervisor ended.{quote_log_end(self.folder / 'logs' / 'supervisor.log')}"
            raise ValueError(f"the stack did not come up: {last.get('problem') or ended}")
        write_env_file(self.home(), self.groups())
        return True

    def _join_start(self) -> None:
        """Wait while another process starts this stack."""
        # The report goes to the one who started it.
        wait_until(lambda: self._is_up() or not self.running, within_seconds=START_SECONDS, every_seconds=0.2)
        if not self._is_up():
            raise ValueError(f"the stack in {self.folder} did not come up: see {self.folder / 'logs'}")

    def _is_up(self) -> bool:
        return bool(self.state()["parts"].get("stack", {}).get("state") == "up")

    def _launch(self, parts: tuple[str, ...], owner: int | None, *, usual_ports: bool) -> Iterator[dict[str, Any]]:
        self._reap()
        reading, writing = os.pipe()
        options = [
            *("--parts", ",".join(parts), "--report", str(writing), "--hung-seconds", str(self.hung_seconds)),
            *(("--owner", str(owner)) if owner else ()),
            *(("--usual-ports",) if usual_ports else ()),
        ]
        with (self.folder / "logs" / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "infra.local.supervisor", str(self.folder), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**inherited_environment(), "PYTHONPATH": str(REPOSITORY)},
                start_new_session=True,
                pass_fds=(writing,),
            )
        os.close(writing)
        with os.fdopen(reading) as report:
            yield from (json.loads(line) for line in report)

    def status(self) -> list[PartStatus]:
        """Every part by a real check."""
        if not self.running:
            return []
        known = self.state()["parts"]
        parts = plan.plan_stack(self.home(), self.groups())
        return [self._row(part, known[part.name]) for part in parts if isinstance(part, Part)]

    def _row(self, part: Part, known: dict[str, Any]) -> PartStatus:
        leader = read_leader(known)
        alive = leader is not None and leader.is_alive()
        return PartStatus(
            part=part.name,
            pid=known.get("pid") if alive else None,
            port=part.port,
            state=known["state"],
            healthy=alive and part.is_healthy(),
            restarts=known["restarts"],
            address=part.address,
        )

    def stop(self) -> bool:
        """End every process of the stack; False when none ran."""
        if not (self.folder / "ports.json").exists():
            return False
        was_running = self.running
        if was_running:
            leader = ProcessIdentity(**self.state()["supervisor"])
            if leader.is_alive():
                process = psutil.Process(leader.pid)
                process.send_signal(signal.SIGTERM)
                wait_until_ended([process], STOP_SECONDS)
            end_part(leader, f"{self.home().stack}/supervisor", seconds=5)
        self._reap()
        end_leftovers(self.home())
        for port in self.home().ports.values():
            for left in find_socket_files(port):
                left.unlink(missing_ok=True)
        return was_running

    def _reap(self) -> None:
        """Take note of the end of a supervisor that this process started."""
        if self._supervisor is not None:
            self._supervisor.wait(STOP_SECONDS)
            self._supervisor = None

    def clean(self) -> None:
        """Stop, and delete everything the stack ever stored."""
        self.stop()
        if (self.folder / "ports.json").exists():
            cluster_home = postgres.find_cluster_home(self.folder)
            shutil.rmtree(self.folder)
            if cluster_home is not None and cluster_home.exists():
                shutil.rmtree(cluster_home)
