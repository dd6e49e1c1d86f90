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


def execution(environment: Environment) -> Iterator[Finding]:
    """Whether a task could report to the api-server."""
    url = environment.get(_URL)
    if not url:
        change = f"set {_URL} to <the api-server's address>/execution/ wherever tasks run, {RESTART}"
        yield Finding(check="execution API", said=f"{_URL} is not set", change=change)
        return
    try:
        reply = send_request("GET", f"{url.rstrip('/')}/health", server=_SERVER, timeout_seconds=60)
    except (Unavailable, ValueError) as error:
        change = f"start the api-server, or set {_URL} to an address of it that this container reaches"
        yield Finding(check="execution API", said=str(error), change=change)
        return
    if reply.status >= 400 or not reply.is_json:  # the page answers any other path
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
    connection = f"{url.rstrip('/')}/connections/windsock-doctor"
    reply = send_request("GET", connection, server=_SERVER, headers=headers, timeout_seconds=60)
    if reply.status in (401, 403):
        change = f"give {_SECRET} one value in every Airflow process, {RESTART}; a clock that is off does the same"
        return Finding(check="JWT secret", said=f"the api-server refuses our token: {reply.text[:80]}", change=change)
    if reply.status != 404:
        change = "read the api-server's log"
        return Finding(check="JWT secret", said=f"{reply.status}: {reply.text[:80]}", change=change)
    return Finding(check="JWT secret", said="the api-server takes tokens made here")
