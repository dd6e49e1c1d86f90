"""`make doctor`: every check, on the embedded stack or inside a container; 0 only if nothing has to be changed."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from infra import settings
from infra.doctor import airflow, machine, stores, stream
from infra.doctor.finding import Environment, Finding
from infra.local.__main__ import default_home
from infra.local.airflow import airflow_settings
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY

PORTS = {"AIRFLOW_PORT": 8080, "MLFLOW_PORT": 5000, "GATEWAY_PORT": 8088, "GRAFANA_PORT": 3000}
CHOICES = ("EXECUTOR", "COMPOSE_PROFILES", "WORKER_QUEUES")  # which the shell may also make, as compose reads it
TASK_CONTAINER = "scheduler"  # which reaches all that a task reaches


def check_stack(environment: Environment) -> Iterator[Finding]:
    """What a process sees of the stack that its environment names."""
    yield from stores.check_databases(environment)
    yield from stores.check_buckets(environment)
    yield from stores.check_mlflow(environment)
    yield from airflow.check_execution_api(environment)
    yield from stream.check_streams(environment)


def check_machine(folder: Path) -> Iterator[Finding]:
    """What this machine, or this container, has."""
    import torch  # noqa: PLC0415  # takes seconds

    yield machine.check_disk(folder)
    yield machine.check_memory(machine.read_memory_limit())
    yield machine.check_gpu(Path("/dev"), usable=torch.cuda.is_available())


def run_compose(*words: str) -> subprocess.CompletedProcess[str]:
    """`docker compose`, in this repository."""
    return subprocess.run(["docker", "compose", *words], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)


def _report(findings: Iterable[Finding]) -> bool:
    wrong = 0
    for finding in findings:
        print(finding, flush=True)
        wrong += not finding.is_ok
    return wrong == 0


def _check_embedded(home: Path) -> bool:
    embedded = Stack(home)
    if not embedded.running:
        print(f"no embedded stack runs in {home}: `make up` starts one")
        return True
    print(f"the embedded stack in {home}")
    return _report(check_stack({**embedded.environment(), **airflow_settings(embedded.home())}))


def check_containers(listed: subprocess.CompletedProcess[str]) -> Finding:
    """Whether the engine answers, and the container runs in which the stack is checked; or none does."""
    running = listed.stdout.split()
    if listed.returncode:
        return Finding(
            check="containers",
            observation="docker compose does not list them",
            remedy="start the engine (`docker info` says more), or see what it said above",
        )
    if running and TASK_CONTAINER not in running:
        return Finding(
            check="containers",
            observation=f"{len(running)} run, and {TASK_CONTAINER} does not",
            remedy=f"`docker compose up --detach --wait`; `docker compose logs {TASK_CONTAINER}` says why it ended",
        )
    return Finding(check="containers", observation=f"{len(running)} run")


def check_executor(chosen: Mapping[str, str]) -> Finding:
    """Whether those who are to run tasks are started, and are given some."""
    executor = chosen.get("EXECUTOR") or "LocalExecutor"
    profiles = chosen.get("COMPOSE_PROFILES", "").split(",")
    remedy = ""
    if executor == "CeleryExecutor" and "celery" not in profiles:
        remedy = "add `celery` to COMPOSE_PROFILES in .env: nobody takes the tasks"
    elif executor != "CeleryExecutor" and {"celery", "gpu"} & {*profiles}:
        remedy = "set EXECUTOR=CeleryExecutor in .env: the workers are given nothing to do"
    elif "gpu" in profiles and "gpu" in (chosen.get("WORKER_QUEUES") or "default,gpu").split(","):
        remedy = "set WORKER_QUEUES=default in .env: workers without a GPU take trainings, too"
    observation = f"{executor}, profiles {chosen.get('COMPOSE_PROFILES') or 'none'}"
    return Finding(check="executor", observation=observation, remedy=remedy)


def _check_composed(*, ports: bool) -> bool:
    written = REPOSITORY / ".env"
    if shutil.which("docker") is None or not written.exists():
        print("no composed stack: `make compose-up` starts one")
        return True
    print("the composed stack")
    known = {**settings.read_assignments(written), **{name: os.environ[name] for name in CHOICES if name in os.environ}}
    suited = _report([check_executor(known)])
    listed = run_compose("ps", "--services", "--status", "running")
    if not _report([check_containers(listed)]):
        return False
    if not listed.stdout.strip():
        wanted = {name: int(known.get(name) or port) for name, port in PORTS.items()}
        return suited and (not ports or _report(machine.check_ports(wanted)))
    done = run_compose("exec", "--no-TTY", TASK_CONTAINER, "python", "-m", "infra.doctor", "--running")
    print(done.stdout, end="")
    return suited and done.returncode == 0


def main() -> int:
    """0 when nothing has to be changed."""
    parser = argparse.ArgumentParser(prog="python -m infra.doctor", description=__doc__)
    parser.add_argument("--home", type=Path, default=default_home(), help="where the embedded stack keeps its state")
    parser.add_argument("--running", action="store_true", help="check the stack that the environment names")
    arguments = parser.parse_args()
    if arguments.running:
        here = check_machine(Path(os.environ["WINDSOCK_HOME"]))
        return 0 if all([_report(here), _report(check_stack(os.environ))]) else 1
    taken = Stack(arguments.home).running  # by the embedded stack, which may have the usual ports
    checked = [_report(check_machine(REPOSITORY)), _check_embedded(arguments.home), _check_composed(ports=not taken)]
    return 0 if all(checked) else 1


if __name__ == "__main__":
    sys.exit(main())
