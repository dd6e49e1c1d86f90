"""Airflow's door for tasks: its address, and whether it takes the tokens that this process would make."""

import os
import subprocess
import sys
from collections.abc import Iterator

from adapters.errors import Unavailable
from adapters.http import send_request
from infra.doctor.finding import RESTART, Environment, Finding

_URL, _SECRET = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "AIRFLOW__API_AUTH__JWT_SECRET"
_SERVER = "the api-server"


def check_execution_api(environment: Environment) -> Iterator[Finding]:
    """Whether a task could report to the api-server."""
    url = environment.get(_URL)
    if not url:
        yield Finding(
            check="execution API",
            observation=f"{_URL} is not set",
            remedy=f"set {_URL} to <the api-server's address>/execution/ wherever tasks run, {RESTART}",
        )
        return
    try:
        reply = send_request("GET", f"{url.rstrip('/')}/health", server=_SERVER, timeout_seconds=60)
    except (Unavailable, ValueError) as error:
        yield Finding(
            check="execution API",
            observation=str(error),
            remedy=f"start the api-server, or set {_URL} to an address of it that this container reaches",
        )
        return
    if reply.status >= 400 or not reply.is_json:  # the page answers any other path
        yield Finding(
            check="execution API",
            observation=f"{url}: not the execution API",
            remedy=f"set {_URL} to <the api-server's address>/execution/: something else answers there",
        )
        return
    yield Finding(check="execution API", observation=f"{url} answers")
    yield _check_token(url, environment)


def _check_token(url: str, environment: Environment) -> Finding:
    """Ask as a task does, with a token signed by this process's secret, for a connection that nobody has."""
    made = subprocess.run(
        [sys.executable, "-m", "infra.doctor.token"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        return Finding(
            check="JWT secret",
            observation=(made.stderr.strip().splitlines() or [""])[-1],
            remedy=f"set {_SECRET} where tasks run, {RESTART}",
        )
    reply = send_request(
        "GET",
        f"{url.rstrip('/')}/connections/windsock-doctor",
        server=_SERVER,
        headers={"Authorization": f"Bearer {made.stdout.split()[-1]}"},  # Airflow may have said something before
        timeout_seconds=60,
    )
    if reply.status in (401, 403):
        return Finding(
            check="JWT secret",
            observation=f"the api-server refuses our token: {reply.text[:80]}",
            remedy=f"give {_SECRET} one value in every Airflow process, {RESTART}; a clock that is off does the same",
        )
    if reply.status != 404:
        return Finding(
            check="JWT secret",
            observation=f"{reply.status}: {reply.text[:80]}",
            remedy="read the api-server's log",
        )
    return Finding(check="JWT secret", observation="the api-server takes tokens made here")
