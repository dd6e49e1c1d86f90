"""20 versions replace each other under load, and a worker is killed: no client may notice.

`python -m benchmarks.swaps`, or `make bench`. Exits with 1 when a request failed, when one took 250 ms longer
than 99 of 100 do at other times, or when a killed worker showed. Versions come by what the rollout uses.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.clients import KEY, RECORD, read
from benchmarks.servers import write_events
from benchmarks.world import UNLIMITED, World, opened
from pipeline.settings import REPOSITORY

CLIENTS = 16
STEADY_REQUESTS = 10_000
EXCESS_MS = 250.0
AFTER_KILL_REQUESTS = 3_000
_PATIENCE_SECONDS = 600

Records = np.ndarray[tuple[int], np.dtype[np.void]]


@dataclass(frozen=True)
class Load:
    """Clients at work."""

    out: Path

    def count(self) -> int:
        """How many answers there are."""
        return self.out.stat().st_size // RECORD.itemsize if self.out.exists() else 0

    def wait_for(self, requests: int) -> None:
        """Until so many answers are there."""
        _until(lambda: self.count() >= requests)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What the clients saw."""

    name: str
    requests: int
    failed: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    above: int  # slower than the limit
    versions: int


def told(name: str, records: Records, limit_ms: float) -> Phase:
    """A phase in figures."""
    bad = (records["status"] != 200) | (records["static"] != 0)
    taken = records["milliseconds"]
    return Phase(
        name=name,
        requests=len(records),
        failed=int(bad.sum()),
        p50_ms=float(np.percentile(taken, 50)),
        p99_ms=float(np.percentile(taken, 99)),
        max_ms=float(taken.max()),
        above=int((taken > limit_ms).sum()),
        versions=len(set(records["version"][~bad].tolist())),
    )


@contextmanager
def clients(world: World, bodies: Path, out: Path) -> Iterator[Load]:
    """16 of them, until this is left."""
    settings = world.outside.settings
    command = [sys.executable, "-m", "benchmarks.clients", f"{settings.gateway_url}/v1/{world.use_case.name}/predict"]
    environment = {**os.environ, KEY: str(settings.gateway_key), "PYTHONPATH": str(REPOSITORY)}
    started = subprocess.Popen([*command, str(bodies), str(out), f"--connections={CLIENTS}"], env=environment)
    try:
        yield Load(out)
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=90)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise ValueError(f"nothing came of it within {_PATIENCE_SECONDS} s")
        time.sleep(0.05)  # another process counts


def swap(world: World, load: Load, *, swaps: int, requests: int) -> None:
    """Spread over the requests: register the next version, send everybody to it, retire the last but one."""
    server, name = world.outside.endpoint, world.use_case.name
    assert server is not None
    for number in range(2, swaps + 2):
        load.wait_for(requests * (number - 1) // (swaps + 1))
        began = time.monotonic()
        world.register(str(number))
        world.send_everybody_to(str(number))
        server.make_default(name, str(number))
        if number > 2:
            world.retire(str(number - 2))
        print(f"version {number} answers after {time.monotonic() - began:.1f} s, request {load.count()}", flush=True)
    load.wait_for(requests)


def kill_worker(world: World, version: str) -> None:
    """`kill -9` for the only worker of the only version."""
    assert world.outside.endpoint is not None
    assert set(world.outside.endpoint.versions(world.use_case.name)) == {version}
    [java] = [row.pid for row in world.stack.status() if row.part == "torchserve" and row.pid is not None]
    workers = [p for p in psutil.Process(java).children(recursive=True) if "model_service_worker" in str(p.cmdline())]
    [worker] = workers
    worker.kill()
    print("the worker is killed", flush=True)


def table(phases: Sequence[Phase]) -> str:
    """As Markdown."""
    lines = [
        "| phase | requests | failed | p50 ms | p99 ms | slowest ms | above the limit | versions |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {p.name} | {p.requests:,} | {p.failed} | {p.p50_ms:.1f} | {p.p99_ms:.1f} | {p.max_ms:.0f} | {p.above} |"
        f" {p.versions} |"
        for p in phases
    ]
    return "\n".join(lines)


def broken(phases: Sequence[Phase], *, swaps: int, requests: int) -> list[str]:
    """The claims that do not hold."""
    _, swapped, killed = phases
    claims = {
        f"fewer than {requests} requests": swapped.requests >= requests,
        f"{swapped.failed} requests failed while versions changed": swapped.failed == 0,
        f"{swapped.above} requests were slower than the limit": swapped.above == 0,
        f"{swapped.versions} versions answered, not {swaps + 1}": swapped.versions == swaps + 1,
        f"{killed.failed} requests failed after the kill": killed.failed == 0,
    }
    return [text for text, holds in claims.items() if not holds]


def main(arguments: Sequence[str]) -> int:
    """Three phases: nothing happens; versions change; the worker dies."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swaps", description=__doc__)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="keep the stack's state here, and use it again")
    asked = parser.parse_args(arguments)
    os.environ["GATEWAY_RATE"] = UNLIMITED
    with opened(asked.folder) as world, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bodies = write_events(world, folder / "events")
        _forget_versions(world)
        world.register("1")
        world.send_everybody_to("1")
        with clients(world, bodies, folder / "warm") as load:
            load.wait_for(STEADY_REQUESTS // 10)
        with clients(world, bodies, folder / "steady") as load:
            load.wait_for(STEADY_REQUESTS)
        limit_ms = float(np.percentile(read(folder / "steady")["milliseconds"], 99)) + EXCESS_MS
        with clients(world, bodies, folder / "swapped") as load:
            swap(world, load, swaps=asked.swaps, requests=asked.requests)
        world.retire(str(asked.swaps))
        with clients(world, bodies, folder / "killed") as load:
            load.wait_for(1000)
            kill_worker(world, str(asked.swaps + 1))
            load.wait_for(load.count() + AFTER_KILL_REQUESTS)
        names = {"steady": "steady", "swapped": f"{asked.swaps} swaps", "killed": "worker killed"}
        phases = [told(text, read(folder / name), limit_ms) for name, text in names.items()]
    print(f"\n{table(phases)}\n\nthe limit: p99 of the steady phase + {EXCESS_MS:.0f} ms = {limit_ms:.0f} ms")
    for problem in (problems := broken(phases, swaps=asked.swaps, requests=asked.requests)):
        print(f"NOT SO: {problem}")
    return 1 if problems else 0


def _forget_versions(world: World) -> None:
    """A folder that is used again may know versions from the last time."""
    server = world.outside.endpoint
    assert server is not None
    known = sorted(server.versions(world.use_case.name))
    if not known:
        return
    server.make_default(world.use_case.name, known[0])
    for version in (*known[1:], known[0]):
        server.retire(world.use_case.name, version)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
