"""`make doctor`: every check, on the embedded stack or inside a container; 0 only if nothing has to be changed."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from infra import settings
from infra.doctor import airflow, machine, stores
from infra.doctor.finding import Environment, Finding
from infra.local.__main__ import default_home
from infra.local.airflow import airflow_settings
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY

PORTS = {"AIRFLOW_PORT": 8080, "MLFLOW_PORT": 5000, "GATEWAY_PORT": 8088, "GRAFANA_PORT": 3000}
CHOICES = ("EXECUTOR", "COMPOSE_PROFILES", "WORKER_QUEUES")  # which the shell may also make, as compose reads it
SEES = "scheduler"  # which reaches all that a task reaches


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


def _told(findings: Iterable[Finding]) -> bool:
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


def containers(listed: subprocess.CompletedProcess[str]) -> Finding:
    """Whether the engine answers, and the container runs in which the stack is checked; or none does."""
    running = listed.stdout.split()
    if listed.returncode:
        change = "start the engine (`docker info` says more), or see what it said above"
        return Finding(check="containers", said="docker compose does not list them", change=change)
    if running and SEES not in running:
        change = f"`docker compose up --detach --wait`; `docker compose logs {SEES}` says why it ended"
        return Finding(check="containers", said=f"{len(running)} run, and {SEES} does not", change=change)
    return Finding(check="containers", said=f"{len(running)} run")


def runners(told: Mapping[str, str]) -> Finding:
    """Whether those who are to run tasks are started, and are given some."""
    executor = told.get("EXECUTOR") or "LocalExecutor"
    profiles = told.get("COMPOSE_PROFILES", "").split(",")
    said = f"{executor}, profiles {told.get('COMPOSE_PROFILES') or 'none'}"
    change = ""
    if executor == "CeleryExecutor" and "celery" not in profiles:
        change = "add `celery` to COMPOSE_PROFILES in .env: nobody takes the tasks"
    elif executor != "CeleryExecutor" and {"celery", "gpu"} & {*profiles}:
        change = "set EXECUTOR=CeleryExecutor in .env: the workers are given nothing to do"
    elif "gpu" in profiles and "gpu" in (told.get("WORKER_QUEUES") or "default,gpu").split(","):
        change = "set WORKER_QUEUES=default in .env: workers without a GPU take trainings, too"
    return Finding(check="executor", said=said, change=change)


def _composed(*, ports: bool) -> bool:
    written = REPOSITORY / ".env"
    if shutil.which("docker") is None or not written.exists():
        print("no composed stack: `make compose-up` starts one")
        return True
    print("the composed stack")
    known = {**settings.read_assignments(written), **{name: os.environ[name] for name in CHOICES if name in os.environ}}
    suited = _told([runners(known)])
    listed = compose("ps", "--services", "--status", "running")
    found = containers(listed)
    if not _told([found]):
        return False
    if not listed.stdout.strip():
        wanted = {name: int(known.get(name) or port) for name, port in PORTS.items()}
        return suited and (not ports or _told(machine.ports(wanted)))
    done = compose("exec", "--no-TTY", SEES, "python", "-m", "infra.doctor", "--running")
    print(done.stdout, end="")
    return suited and done.returncode == 0


def main() -> int:
    """0 when nothing has to be changed."""
    parser = argparse.ArgumentParser(prog="python -m infra.doctor", description=__doc__)
    parser.add_argument("--home", type=Path, default=default_home(), help="where the embedded stack keeps its state")
    parser.add_argument("--running", action="store_true", help="check the stack that the environment names")
    told = parser.parse_args()
    if told.running:
        folder = Path(os.environ["WINDSOCK_HOME"])
        return 0 if all([_told(here(folder)), _told(stack(os.environ))]) else 1
    taken = Stack(told.home).running  # by the embedded stack, which may have the usual ports
    return 0 if all([_told(here(REPOSITORY)), _embedded(told.home), _composed(ports=not taken)]) else 1


if __name__ == "__main__":
    sys.exit(main())
