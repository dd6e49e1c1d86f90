"""Whether this container's Airflow server works: `python -m infra.compose.health scheduler`."""

import os
import socket
import sys

from infra.local import airflow


def is_server_healthy(server: str) -> bool:
    """The api-server answers browsers and tasks, a worker its queue; any other beats under this container's name."""
    if server == "worker":
        return _takes_tasks(f"celery@{socket.gethostname()}")
    if server == "api-server":
        return airflow.is_serving(int(os.environ["AIRFLOW__API__PORT"]))
    dsn = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("postgresql+psycopg2://", "postgresql://")
    return airflow.is_beating(dsn, airflow.JOBS[server], socket.gethostname()) is True


def _takes_tasks(worker: str) -> bool:
    from celery import Celery  # noqa: PLC0415  # the other servers do without

    return bool(Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"]).control.inspect([worker], timeout=5).ping())


if __name__ == "__main__":
    sys.exit(0 if is_server_healthy(sys.argv[1]) else f"{sys.argv[1]} does not work")
