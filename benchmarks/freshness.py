"""How soon an answer knows a row of the source: from its commit on, at 50 rows a second, through the gateway.

`python -m benchmarks.freshness`. The rows of real days come into the source at an even pace, some in each commit, and
its clock with them; the same event is asked about all the while, and each answer says until when all is known. All
is on: the log is followed, events are answered as they are due, answers are written down.
"""

import argparse
import bisect
import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from adapters.retrying import wait_until
from benchmarks.table import keep_results
from benchmarks.world import UNLIMITED, VERSION, World, ingested_interval, opened
from infra.replay.flights_source import FLIGHTS_SOURCE
from infra.replay.live_source import LiveSource

ROWS_A_SECOND = 50
COMMITS_A_SECOND = 10
ASKED_A_SECOND = 40
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """Seconds from a commit to the first answer that knows it; an answer comes every 25 ms."""

    commits: int
    rows: int
    seconds: float
    p50_seconds: float
    p90_seconds: float
    p99_seconds: float
    slowest_seconds: float
    failed: int


class _Asker(threading.Thread):
    """Asks about one event, and notes when an answer knew until when."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        settings = world.outside.settings
        self._connection = http.client.HTTPConnection(urlsplit(str(settings.gateway_url)).netloc, timeout=30)
        self._headers = {"Authorization": f"Bearer {settings.gateway_key}", "Content-Type": "application/json"}
        self._path, self._body = f"/v1/{world.use_case.name}/predict", json.dumps(world.events[0])
        self.seen: list[tuple[float, datetime]] = []  # ordered by both
        self.failed = 0
        self.over = threading.Event()

    def run(self) -> None:
        """Until it is over."""
        while not self.over.wait(1 / ASKED_A_SECOND):
            self._connection.request("POST", self._path, self._body, self._headers)
            answer = self._connection.getresponse()
            document: Any = json.load(answer)
            if answer.status != 200:
                self.failed += 1
                continue
            known_until = datetime.fromisoformat(document["known_until"])
            if not self.seen or known_until > self.seen[-1][1]:
                self.seen.append((time.perf_counter(), known_until))


def measure(world: World, *, seconds: float) -> Freshness:
    """Rows come for so long; it ends when an answer knows the last one."""
    source = LiveSource(world.outside.source, FLIGHTS_SOURCE)
    since = ingested_interval(world.use_case).end
    source.open(since)
    moments = _list_steps(source, since, int(seconds * COMMITS_A_SECOND))
    asker, commits = _Asker(world), list[tuple[float, datetime]]()
    asker.start()
    began = time.perf_counter()
    for number, moment in enumerate(moments):
        time.sleep(max(0.0, began + number / COMMITS_A_SECOND - time.perf_counter()))
        source.tell(moment)
        commits.append((time.perf_counter(), moment))
    ended = time.perf_counter()

    def is_known() -> bool:
        return bool(asker.seen) and asker.seen[-1][1] >= moments[-1]

    if not wait_until(is_known, within_seconds=_PATIENCE_SECONDS):
        raise ValueError(f"no answer knew the last row within {_PATIENCE_SECONDS:.0f} s")
    asker.over.set()
    asker.join()
    known = [known_until for _, known_until in asker.seen]
    lags = [asker.seen[bisect.bisect_left(known, moment)][0] - at for at, moment in commits]
    rows = sum(source.rows_between(name, since, moments[-1]).num_rows for name in source.tables)
    p50, p90, p99 = (float(np.quantile(lags, share, method="higher")) for share in (0.5, 0.9, 0.99))
    return Freshness(
        commits=len(commits),
        rows=rows,
        seconds=ended - began,
        p50_seconds=p50,
        p90_seconds=p90,
        p99_seconds=p99,
        slowest_seconds=max(lags),
        failed=asker.failed,
    )


def _list_steps(source: LiveSource, since: datetime, commits: int) -> list[datetime]:
    """The moments up to which each commit tells: so that about as many rows come in each."""
    known = np.sort(np.concatenate([source.list_known(name) for name in source.tables]))
    coming = known[np.searchsorted(known, int(since.timestamp() * 1e6)) :]
    each = ROWS_A_SECOND // COMMITS_A_SECOND
    last = np.unique(coming[each - 1 : each * commits : each])  # rows of one moment come together
    return [datetime.fromtimestamp(moment / 1e6, since.tzinfo) + timedelta(microseconds=1) for moment in last.tolist()]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freshness", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, help="keep the stack's state here, and use it again")
    told = parser.parse_args(arguments)
    os.environ["GATEWAY_RATE"] = UNLIMITED
    with opened(told.folder, is_followed=True) as world:
        world.register(VERSION)
        world.send_everybody_to(VERSION)
        found = measure(world, seconds=told.seconds)
    print(found)
    keep_results("freshness", **asdict(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
