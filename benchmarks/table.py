"""What a training benchmark ends with: a table of medians and ratios from one run, printed, and kept as JSON.

Beside seconds on the wall stand processor seconds, children's included: on a machine that others use as well they say
what the work itself costs, where the wall says as much about the neighbours.
"""

import json
import os
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from infra.private import read_code_sha

RESULTS = Path(__file__).parent / "results"
COMMIT = read_code_sha()  # of the code that runs: a commit made meanwhile is another's


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@dataclass(kw_only=True)
class Measured:
    """One contestant: what it is, its seconds (one figure a repetition), and what else is worth knowing."""

    name: str
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, *, share: float = 1.0) -> Iterator[None]:
        """One more repetition, or a share of one."""
        wall, processor = time.perf_counter(), _processor_seconds()
        yield
        self.wall.append((time.perf_counter() - wall) / share)
        self.processor.append((_processor_seconds() - processor) / share)


def table(measured: Sequence[Measured], *, ours: str) -> str:
    """Medians, and how many times what ours takes each takes."""
    [reference] = [one for one in measured if one.name == ours]
    width = max(len(one.name) for one in measured)
    lines = [f"{'':{width}}  wall s     min     max   ratio   cpu s   ratio"]
    for one in measured:
        wall, processor = median(one.wall), median(one.processor)
        ratios = wall / median(reference.wall), processor / median(reference.processor)
        times = f"{wall:8.2f}{min(one.wall):8.2f}{max(one.wall):8.2f}{ratios[0]:8.2f}{processor:8.2f}{ratios[1]:8.2f}"
        lines.append(f"{one.name:{width}}{times}  {', '.join(f'{k} {v}' for k, v in one.facts.items())}")
    return "\n".join(lines)


def keep(name: str, measured: Sequence[Measured], folder: Path, **about: Any) -> Path:
    """Write the measurements beside what they were taken on."""
    document = {
        "benchmark": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": COMMIT,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        **about,
        "measured": [
            {"name": m.name, "wall_seconds": m.wall, "processor_seconds": m.processor, **m.facts} for m in measured
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1))
    return path


def keep_results(name: str, **found: Any) -> None:
    """Keep what was found, with the commit and the machine's load, as a file of its own."""
    document = {
        "commit": COMMIT,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()},
        **found,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(document, indent=1))
    print(f"kept in {path}")
