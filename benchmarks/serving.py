"""Our servers beside four others that answer with the same model, or beside an earlier build of ours, in one run.

Run by `make bench` or `python -m benchmarks.serving`. The contenders take turns, several rounds of them, and the median
is told: what else the machine does then meets all of them alike. See benchmarks/README.md.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import builds, lookup
from benchmarks.load import Measured, middle, press, require_wrk
from benchmarks.servers import Contender, all_of, check
from benchmarks.table import keep_results
from benchmarks.world import UNLIMITED, World, opened
from serving.predictor import Predictor

CONCURRENCIES = (1, 8, 64)
BASE = "mlflow serve"
_DRAIN_SECONDS = 120

Figures = dict[tuple[str, int], list[Measured]]
Work = dict[tuple[str, int], dict[str, float]]  # processor time by part, seconds


def measure(world: World, contenders: Sequence[Contender], *, rounds: int, seconds: int) -> tuple[Figures, Work]:
    """Every contender at every concurrency, in turn, as many times as there are rounds."""
    figures: Figures = {}
    work: Work = {}
    spool = world.stack.folder / "torchserve" / "spool"
    for number in range(1, rounds + 1):
        for connections in CONCURRENCIES:
            for one in contenders:
                press(one.url, one.bodies, connections=connections, seconds=1, key=one.key)
                drain(spool)
                before = one.cpu_seconds()
                seen = press(one.url, one.bodies, connections=connections, seconds=seconds, key=one.key)
                figures.setdefault((one.name, connections), []).append(seen)
                print(f"round {number} c={connections:<2} {one.name:20} {seen}", flush=True)
                drain(spool)  # the work that an answer leaves behind is its work, too
                spent = work.setdefault((one.name, connections), {})
                for part, seconds_spent in one.cpu_seconds().items():
                    spent[part] = spent.get(part, 0.0) + seconds_spent - before.get(part, 0.0)
    return figures, work


def drain(spool: Path) -> None:
    """Wait until every answer is in the warehouse, so that the next contender has the machine."""
    began = time.monotonic()
    while waiting := [*spool.glob("*.done"), *(path for path in spool.glob("*.open") if path.stat().st_size)]:
        if time.monotonic() - began > _DRAIN_SECONDS:
            raise ValueError(f"{len(waiting)} segments of answers are still not in the warehouse")
        time.sleep(0.05)  # the shipper tells nobody


def losses(world: World) -> dict[str, int]:
    """What the warehouse says of all answers so far."""
    [row] = world.outside.warehouse.query(
        "select sum(answered)::bigint as answered, sum(shipped)::bigint as shipped, sum(dropped)::bigint as dropped,"
        " sum(lost)::bigint as lost, sum(repeated)::bigint as repeated from online_losses"
    )
    return {name: int(value or 0) for name, value in row.items()}


def table(figures: Figures, memory_mb: dict[str, float]) -> str:
    """As Markdown."""
    lines = [
        "| server | c | requests/s | x mlflow | p50 ms | p95 ms | p99 ms | errors | RSS MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (name, connections), rounds in sorted(figures.items(), key=lambda item: item[0][1]):
        seen = middle(rounds)
        ratio = seen.rps / middle(figures[BASE, connections]).rps
        lines.append(
            f"| {name} | {connections} | {seen.rps:,.0f} | {ratio:.1f} | {seen.p50_ms:.1f} | {seen.p95_ms:.1f} |"
            f" {seen.p99_ms:.1f} | {seen.errors} | {memory_mb[name]:.0f} |"
        )
    return "\n".join(lines)


def work_table(figures: Figures, work: Work) -> str:
    """Processor time of one request by part, as Markdown."""
    lines = ["| server | c | processor time of a request, microseconds |", "|---|--:|---|"]
    for (name, connections), spent in sorted(work.items(), key=lambda item: item[0][1]):
        requests = middle(figures[name, connections]).requests
        parts = {part: seconds / requests * 1e6 for part, seconds in spent.items()}
        told = ", ".join(f"{part} {value:.0f}" for part, value in parts.items() if value >= 1)
        lines.append(f"| {name} | {connections} | {sum(parts.values()):,.0f} ({told}) |")
    return "\n".join(lines)


def _list_rounds(figures: Figures) -> list[dict[str, Any]]:
    return [
        {"server": name, "connections": connections, "rounds": [asdict(one) for one in rounds]}
        for (name, connections), rounds in figures.items()
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="keep the stack's state here, and use it again")
    parser.add_argument("--only", help="names of contenders, with commas between them")
    parser.add_argument(
        "--against", type=Path, help="a checkout of an earlier build, with its .venv, instead of others"
    )
    parser.add_argument("--feast", type=Path, help="with --against: the Python of an environment with feast[redis]")
    told = parser.parse_args(arguments)
    require_wrk()
    if told.against is not None:
        text, found = builds.run(
            told.against.resolve(), feast=told.feast, rounds=told.rounds, seconds=told.seconds, folder=told.folder
        )
        print(f"\n{text}\n")
        keep_results("serving-against", **builds.to_document(found))
        return 0
    os.environ["GATEWAY_RATE"] = UNLIMITED
    with opened(told.folder) as world, all_of(world, world.bundle.parent / "contenders") as contenders:
        expected = Predictor.load(world.bundle).predict(world.points).tolist()
        chosen = [one for one in contenders if told.only is None or one.name in {BASE, *told.only.split(",")}]
        differences = {one.name: check(one, expected) for one in chosen}
        figures, work = measure(world, chosen, rounds=told.rounds, seconds=told.seconds)
        memory = {one.name: one.memory_mb() for one in chosen}
        looked_up = lookup.measure(world)
        counted = losses(world)
    print(
        f"\n{table(figures, memory)}\n\n{work_table(figures, work)}\n\nfeature lookup: {looked_up}\n"
        f"prediction log: {counted}"
    )
    print(f"largest difference to the predictor's answers: {max(differences.values()):.1e}")
    keep_results(
        "serving",
        rounds=_list_rounds(figures),
        memory_mb=memory,
        lookup=asdict(looked_up),
        log=counted,
        differences=differences,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
