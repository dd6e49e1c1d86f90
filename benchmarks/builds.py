"""Our servers beside those of an earlier build, in one run: `python -m benchmarks.serving --against CHECKOUT`.

Each build runs by its own Python, with a stack, a model and the answers' log of its own; both have the same events, and
take turns. With `--feast PYTHON`, of an environment that has `feast[redis]`, a lookup of the same features is measured
there.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import Measured, middle, press
from benchmarks.servers import Contender
from infra.local.home import inherited_environment
from infra.local.ports import find_free_port
from infra.local.system_programs import fetch_program, find_program
from pipeline.settings import REPOSITORY

CONNECTIONS = (1, 8, 64)
JAVA = "torchserve"  # the part whose time no build of ours decides
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Build:
    """A build at work."""

    name: str
    contender: Contender
    spool: Path
    points: Path
    process: "subprocess.Popen[str]"

    def measure_lookup(self) -> dict[str, float]:
        """Milliseconds of a lookup at 200 a second."""
        assert self.process.stdin is not None
        self.process.stdin.write("lookup\n")
        self.process.stdin.flush()
        return _read_told(self.process, "LOOKUP")


@dataclass(frozen=True)
class Comparison:
    """All rounds: by build and connections what wrk saw, and the processor seconds of each part."""

    seen: Mapping[tuple[str, int], list[Measured]]
    spent: Mapping[tuple[str, int], list[dict[str, float]]]
    lookups: Mapping[str, list[dict[str, float]]]
    feast: list[dict[str, float]]

    def microseconds(self, name: str, connections: int) -> dict[str, float]:
        """Processor time of a request by part: the rounds' medians."""
        both = zip(self.spent[name, connections], self.seen[name, connections], strict=True)
        rounds = [{part: value / seen.requests * 1e6 for part, value in spent.items()} for spent, seen in both]
        return {part: median(each[part] for each in rounds) for part in rounds[0]}


@contextmanager
def hosted(name: str, checkout: Path, python: Path, folder: Path) -> Iterator[Build]:
    """A build's servers, once they answer as their predictor does."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [str(python), "-P", str(_HERE / "hosted.py"), str(folder)],
        cwd=checkout,
        env={**inherited_environment(), "PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        told = _read_told(process, "READY")
        contender = Contender(
            name=name, url=told["url"], bodies=Path(told["bodies"]), processes=told["processes"], key=told["key"]
        )
        print(f"{name} answers, at most {told['difference']:.1e} from its predictor", flush=True)
        yield Build(name, contender, Path(told["spool"]), Path(told["points"]), process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def compare(builds: Sequence[Build], feast: Path | None, *, rounds: int, seconds: int) -> Comparison:
    """Every build at every number of connections, in turn, as many times as there are rounds."""
    from benchmarks.serving import drain  # which is what calls this

    seen: dict[tuple[str, int], list[Measured]] = {}
    spent: dict[tuple[str, int], list[dict[str, float]]] = {}
    lookups: dict[str, list[dict[str, float]]] = {}
    told: list[dict[str, float]] = []
    for number in range(1, rounds + 1):
        for connections in CONNECTIONS:
            for build in builds:
                one = build.contender
                press(one.url, one.bodies, connections=connections, seconds=2, key=one.key)
                drain(build.spool)
                before = one.cpu_seconds()
                measured = press(one.url, one.bodies, connections=connections, seconds=seconds, key=one.key)
                drain(build.spool)
                work = {part: value - before.get(part, 0.0) for part, value in one.cpu_seconds().items()}
                seen.setdefault((build.name, connections), []).append(measured)
                spent.setdefault((build.name, connections), []).append(work)
                print(f"round {number} c={connections:<2} {build.name:8} {measured}", flush=True)
        for build in builds:
            lookups.setdefault(build.name, []).append(build.measure_lookup())
            print(f"round {number} lookup {build.name:8} {lookups[build.name][-1]}", flush=True)
        if feast is not None:
            told.append(measure_feast(feast, builds[-1].points))
            print(f"round {number} lookup feast    {told[-1]}", flush=True)
    return Comparison(seen, spent, lookups, told)


def measure_feast(python: Path, points: Path) -> dict[str, float]:
    """Milliseconds of a lookup by feast in Redis, at the rate of `benchmarks.lookup`."""
    with tempfile.TemporaryDirectory(prefix="windsock-feast-") as made:
        folder = Path(made)
        if problem := fetch_program("redis-server", folder):
            raise ValueError(f"feast is measured on Redis: {problem}")
        redis = find_program("redis-server", folder)
        assert redis is not None
        port = find_free_port(set())
        command = [redis.path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", made]
        with subprocess.Popen(
            command, env={**inherited_environment(), **redis.environment}, stdout=subprocess.DEVNULL
        ) as server:
            try:
                script = [str(python), str(_HERE / "contenders" / "feast_lookup.py"), str(points), str(port), made]
                done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True, cwd=made)
            finally:
                server.terminate()
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def table(found: Comparison, theirs: str, ours: str) -> str:
    """The bars of the issue, as Markdown: what is lower the better is told as its share of the other build's."""
    one = {name: middle(found.seen[name, 1]) for name in (theirs, ours)}
    many = {name: middle(found.seen[name, 64]) for name in (theirs, ours)}
    work = {name: sum(found.microseconds(name, 1).values()) for name in (theirs, ours)}
    lookup = {name: median(each["lookup_p99_ms"] for each in found.lookups[name]) for name in (theirs, ours)}
    rows = [
        ("p50 ms, 1 connection", {name: seen.p50_ms for name, seen in one.items()}, "<= 0.33"),
        ("requests/s, 1 connection", {name: seen.rps for name, seen in one.items()}, ">= 3"),
        ("processor microseconds a request, 1 connection", work, "<= 0.33"),
        ("lookup p99 ms at 200/s", lookup, "<= 0.25"),
        ("requests/s, 64 connections", {name: seen.rps for name, seen in many.items()}, ">= 1.8"),
    ]
    lines = [f"| | {theirs} | {ours} | ratio | bar |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {what} | {of[theirs]:,.1f} | {of[ours]:,.1f} | {of[ours] / of[theirs]:.2f} | {bar} |"
        for what, of, bar in rows
    ]
    if found.feast:
        feast = median(each["p99_ms"] for each in found.feast)
        lines.append(f"| lookup p99 ms, feast on Redis instead of {theirs} | {feast:.1f} | {lookup[ours]:.1f} |"
                     f" {lookup[ours] / feast:.2f} | < 1 |")  # fmt: skip
    return "\n".join([*lines, "", work_table(found, (theirs, ours))])


def work_table(found: Comparison, names: Sequence[str]) -> str:
    """Processor time of a request: TorchServe's own share, which is java's, and the rest by part."""
    lines = ["| build | c | java | the rest | of it |", "|---|--:|--:|--:|---|"]
    for connections in CONNECTIONS:
        for name in names:
            parts = found.microseconds(name, connections)
            java = parts.pop(JAVA)
            told = ", ".join(f"{part} {value:.0f}" for part, value in parts.items() if value >= 1)
            lines.append(f"| {name} | {connections} | {java:.0f} | {sum(parts.values()):.0f} | {told} |")
    return "\n".join(lines)


def run(
    checkout: Path, *, feast: Path | None, rounds: int, seconds: int, folder: Path | None
) -> tuple[str, Comparison]:
    """Both builds, and the table."""
    names = _commit(checkout), "ours"
    with ExitStack() as running:
        place = folder or Path(running.enter_context(tempfile.TemporaryDirectory(prefix="windsock-builds-")))
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o755)  # PostgreSQL runs as nobody where this runs as root
        builds = [
            running.enter_context(hosted(names[0], checkout, checkout / ".venv/bin/python", place / "theirs")),
            running.enter_context(hosted(names[1], REPOSITORY, Path(sys.executable), place / "ours")),
        ]
        found = compare(builds, feast, rounds=rounds, seconds=seconds)
    return table(found, *names), found


def to_document(found: Comparison) -> dict[str, Any]:
    """Every round, as JSON."""
    return {
        "rounds": [
            {
                "build": name,
                "connections": connections,
                "seen": [vars(each) for each in rounds],
                "processor_seconds": found.spent[name, connections],
            }
            for (name, connections), rounds in found.seen.items()
        ],
        "lookups": found.lookups,
        "feast": found.feast,
    }


def _read_told(process: "subprocess.Popen[str]", mark: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"{mark} "):
            return dict(json.loads(line.removeprefix(f"{mark} ")))
        print(line, end="", flush=True)
    raise ValueError("a build's servers ended before they answered")


def _commit(checkout: Path) -> str:
    told = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=True
    )
    return told.stdout.strip()
