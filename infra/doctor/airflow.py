"""Airflow's door for tasks: its address, and whether it takes the tokens that this process would make."""

import os
import subprocess
import sys
from collections.abc import Iterator

import requests

from infra.doctor.finding import RESTART, Environment, Finding

_URL, _SECRET = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "AIRFLOW__API_AUTH__JWT_SECRET"


def execution(environment: Environment) -> Iterator[Finding]:
    """Whether a task could report to the api-server."""
    url = environment.get(_URL)
    if not url:
        change = f"set {_URL} to <the api-server's address>/execution/ wherever tasks run, {RESTART}"
        yield Finding(check="execution API", said=f"{_URL} is not set", change=change)
        return
    try:
        answer = requests.get(f"{url.rstrip('/')}/health", timeout=60)
    except requests.RequestException as error:
        change = f"start the api-server, or set {_URL} to an address of it that this container reaches"
        yield Finding(check="execution API", said=f"{url}: {type(error).__name__}", change=change)
        return
    if not answer.ok or "json" not in answer.headers.get("Content-Type", ""):  # the page answers any other path
        change = f"set {_URL} to <the api-server's address>/execution/: something else answers there"
        yield Finding(check="execution API", said=f"{url}: not the execution API", change=change)
        return
    yield Finding(check="execution API", said=f"{url} answers")
    yield _token(url, environment)


def _token(url: str, environment: Environment) -> Finding:
    """Ask as a task does, with a token signed by this process's secret, for a connection that nobody has."""
    made = subprocess.run(
        [sys.executable, "-m", "infra.doctor.token"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        said = (made.stderr.strip().splitlines() or [""])[-1]
        return Finding(check="JWT secret", said=said, change=f"set {_SECRET} where tasks run, {RESTART}")
    headers = {"Authorization": f"Bearer {made.stdout.split()[-1]}"}  # Airflow may have said something before
    answer = requests.get(f"{url.rstrip('/')}/connections/windsock-doctor", headers=headers, timeout=60)
    if answer.status_code in (401, 403):
        change = f"give {_SECRET} one value in every Airflow process, {RESTART}; a clock that is off does the same"
        return Finding(check="JWT secret", said=f"the api-server refuses our token: {answer.text[:80]}", change=change)
    if answer.status_code != 404:
        change = "read the api-server's log"
        return Finding(check="JWT secret", said=f"{answer.status_code}: {answer.text[:80]}", change=change)
    return Finding(check="JWT secret", said="the api-server takes tokens made here")
