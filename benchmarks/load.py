"""Load by wrk: one thread, as many keep-alive connections as asked for, real bodies in turn."""

import json
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What wrk saw."""

    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: int
    requests: int


def require_wrk() -> None:
    """Stop where there is no wrk.

    Raises:
        ValueError: saying how to get it.
    """
    if shutil.which("wrk") is None:
        raise ValueError("the load comes from wrk, which is not on the PATH: `apt-get install wrk`")


def press(url: str, bodies: Path, *, connections: int, seconds: int, key: str | None = None) -> Measured:
    """Ask as fast as the server answers."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=10s", f"-s{SCRIPT}", url]
    command += ["--", str(bodies), *([key] if key else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    return Measured(
        rps=(seen["requests"] - seen["errors"]) / seen["seconds"],
        p50_ms=seen["p50_ms"],
        p95_ms=seen["p95_ms"],
        p99_ms=seen["p99_ms"],
        errors=seen["errors"],
        requests=seen["requests"],
    )


def middle(rounds: list[Measured]) -> Measured:
    """The median of each figure; of errors the sum."""
    values = [asdict(one) for one in rounds]
    figures = {name: median(one[name] for one in values) for name in ("rps", "p50_ms", "p95_ms", "p99_ms")}
    return Measured(**figures, errors=sum(one.errors for one in rounds), requests=sum(one.requests for one in rounds))
