"""Airflow as four servers in sessions of their own, on PostgreSQL, with a named administrator."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import psycopg2

from adapters.files import write_atomically
from infra import settings as common
from infra.local.home import Home
from infra.local.part import Part, SetUpStep, fetch_status, is_answered_ok
from pipeline.settings import REPOSITORY

# Which row of Airflow's job table beats while the server works; the api-server answers for itself.
JOBS: Mapping[str, str] = {
    "scheduler": "SchedulerJob",
    "dag-processor": "DagProcessorJob",
    "triggerer": "TriggererJob",
}
PASSWORDS = "passwords.json"
BEAT_SECONDS = 30  # the age at which Airflow itself calls a heartbeat dead


def airflow_settings(home: Home) -> dict[str, str]:
    """Airflow's configuration, as environment variables."""
    folder, url = home.folder / "airflow", home.url("airflow")
    chosen = {
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "CORE__PLUGINS_FOLDER": str(folder / "plugins"),
        "CORE__FERNET_KEY": home.secrets["fernet"],
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / PASSWORDS),
        "DATABASE__SQL_ALCHEMY_CONN": home.dsn("airflow").replace("postgresql://", "postgresql+psycopg2://"),
        "API__HOST": "127.0.0.1",
        "API__PORT": str(home.ports["airflow"]),
        "API__BASE_URL": url,
        "API__SECRET_KEY": home.secrets["api"],
        "API_AUTH__JWT_SECRET": home.secrets["jwt"],
        "LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
        "LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(folder / "logs" / "dag_processor"),
        "LOGGING__WORKER_LOG_SERVER_PORT": str(home.ports["airflow_logs"]),
        "LOGGING__TRIGGER_LOG_SERVER_PORT": str(home.ports["airflow_triggerer_logs"]),
    }
    threads = str(max(2, (os.cpu_count() or 2) // 2))  # tasks run beside each other
    return {
        **common.read_assignments(common.AIRFLOW),
        "AIRFLOW_HOME": str(folder),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        **{f"AIRFLOW__{name}": value for name, value in chosen.items()},
    }


def prepare_airflow_home(folder: Path, password: str) -> None:
    """The files that Airflow's servers find in their home: the administrator's password among them."""
    folder.mkdir(parents=True, exist_ok=True)
    # Airflow writes a full airflow.cfg where there is none, and four processes starting at once would race for it.
    (folder / "airflow.cfg").touch()
    write_atomically(folder / PASSWORDS, json.dumps({"admin": password}).encode())


def _set_up(home: Home, environment: Mapping[str, str]) -> None:
    prepare_airflow_home(home.folder / "airflow", home.secrets["admin"])
    log = home.logs / "airflow-database.log"
    with log.open("ab") as output:
        done = subprocess.run(
            [sys.executable, "-m", "infra.local.airflow_main", "set-up"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"Airflow's database could not be set up: {''.join(last)} (see {log})")


# The API of browsers and that of tasks. Airflow builds the latter at its first request, which takes longer than a task
# waits: so the health check makes that request.
_HEALTH_PATHS: Mapping[str, float] = {"/api/v2/monitor/health": 5, "/execution/health": 60}


def is_serving(port: int) -> bool:
    """Whether an api-server answers browsers and tasks."""
    return all(is_answered_ok(port, path, seconds=seconds) for path, seconds in _HEALTH_PATHS.items())


def _is_reachable(port: int) -> bool:
    """Whether an api-server answers at all."""
    return all(fetch_status(port, path, seconds=seconds) is not None for path, seconds in _HEALTH_PATHS.items())


def is_beating(dsn: str, job: str, host: str | None = None) -> bool | None:
    """Whether a server of this kind beats, on the given host or on any; None where the database cannot be asked.

    Args:
        dsn: of Airflow's database.
        job: one of JOBS.
        host: as the server calls it.
    """
    query = """
        select 1 from job where job_type = %s and state = 'running' and latest_heartbeat > now() - %s * interval '1 s'
        and hostname = coalesce(%s, hostname)
    """
    try:
        connection = psycopg2.connect(dsn, connect_timeout=5, options="-c statement_timeout=5000")
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(query, (job, BEAT_SECONDS, host))
            return cursor.fetchone() is not None
    except (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.UndefinedTable):
        return None  # it is not there, was killed meanwhile, has no room, or no tables yet


def _server(home: Home, environment: Mapping[str, str], name: str, options: tuple[str, ...]) -> Part:
    port = home.ports["airflow"] if name == "api-server" else None
    is_healthy: Callable[[], bool]
    is_alive: Callable[[], bool]
    if port is not None:
        is_healthy, is_alive = partial(is_serving, port), partial(_is_reachable, port)
    else:
        beats = partial(is_beating, home.dsn("airflow"), JOBS[name])
        is_healthy, is_alive = (lambda: beats() is True), (lambda: beats() is not False)
    return Part(
        name=name,
        command=(sys.executable, "-m", "infra.local.airflow_main", name, *options),
        environment=environment,
        directory=home.folder / "airflow",
        address=home.url("airflow") if port is not None else "",
        is_healthy=is_healthy,
        is_alive=is_alive,
        needs=("postgres", "s3"),
        prepare=partial(prepare_airflow_home, home.folder / "airflow", home.secrets["admin"]),
        port=port,
        stop_signal=signal.SIGTERM,
        stop_seconds=6,  # the scheduler would wait for its tasks to finish; they are safe to kill
        start_seconds=180,
    )


def plan_airflow(
    home: Home, environment: Mapping[str, str], mark: Callable[[str], dict[str, str]]
) -> list[Part | SetUpStep]:
    """Airflow's servers, and the step that makes its tables and pools."""
    configured = {**environment, **airflow_settings(home)}
    # Logs are read from the files: the servers that would hand them out to other machines are left out.
    options = {
        "api-server": (),
        "scheduler": ("--skip-serve-logs",),
        "dag-processor": (),
        "triggerer": ("--skip-serve-logs",),
    }
    servers = [_server(home, {**configured, **mark(name)}, name, extra) for name, extra in options.items()]
    return [
        SetUpStep(
            name="airflow-database",
            run=lambda: _set_up(home, {**configured, **mark("airflow-database")}),
            needs=("postgres",),
        ),
        *servers,
    ]
