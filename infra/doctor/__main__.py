"""`make doctor`: every check, on the embedded stack or inside a container; 0 only if nothing has to be changed."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from infra import settings
from infra.doctor import airflow, machine, stores
from infra.doctor.finding import Environment, Finding
from infra.local.__main__ import default_home
from infra.local.airflow import settings as airflow_settings
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY

PORTS = ("AIRFLOW_PORT", "MLFLOW_PORT", "GATEWAY_PORT")
_INSIDE = ("exec", "--no-TTY", "scheduler", "python", "-m", "infra.doctor", "--running")


def stack(environment: Environment) -> Iterator[Finding]:
    """What a process sees of the stack that its environment names."""
    yield from stores.databases(environment)
    yield from stores.objects(environment)
    yield from stores.tracking(environment)
    yield from airflow.execution(environment)


def here(folder: Path) -> Iterator[Finding]:
    """What this machine, or this container, has."""
    import torch  # noqa: PLC0415  # takes seconds

    yield machine.room(folder)
    yield machine.memory(machine.total_memory())
    yield machine.accelerator(Path("/dev"), usable=torch.cuda.is_available())


def compose(*words: str) -> subprocess.CompletedProcess[str]:
    """`docker compose`, in this repository."""
    command = ["docker", "compose", *words]
    return subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)


def _told(findings: Iterator[Finding]) -> bool:
    wrong = 0
    for finding in findings:
        print(finding, flush=True)
        wrong += not finding.well
    return wrong == 0


def _embedded(home: Path) -> bool:
    found = Stack(home)
    if not found.running:
        print(f"no embedded stack runs in {home}: `make up` starts one")
        return True
    print(f"the embedded stack in {home}")
    return _told(stack({**found.environment(), **airflow_settings(found.home())}))


def _composed() -> bool:
    written = REPOSITORY / ".env"
    if shutil.which("docker") is None or not written.exists():
        print("no composed stack: `make compose-up` starts one")
        return True
    if compose("ps", "--quiet", "scheduler").stdout.strip():
        print("the composed stack, as its scheduler sees it")
        done = compose(*_INSIDE)
        print(done.stdout, end="")
        return done.returncode == 0
    known = settings.read(written)
    print("the composed stack is down")
    return _told(machine.ports({name: int(known[name]) for name in PORTS}))


def main() -> int:
    """0 when nothing has to be changed."""
    parser = argparse.ArgumentParser(prog="python -m infra.doctor", description=__doc__)
    parser.add_argument("--home", type=Path, default=default_home(), help="where the embedded stack keeps its state")
    parser.add_argument("--running", action="store_true", help="check the stack that the environment names")
    told = parser.parse_args()
    if told.running:
        folder = Path(os.environ["WINDSOCK_HOME"])
        return 0 if all([_told(here(folder)), _told(stack(os.environ))]) else 1
    return 0 if all([_told(here(REPOSITORY)), _embedded(told.home), _composed()]) else 1


if __name__ == "__main__":
    sys.exit(main())
