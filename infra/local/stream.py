"""The stream: follows the sources of the use cases that ask for it; planned only where one does."""

import signal
import sys
from collections.abc import Callable, Mapping

from psycopg2.extensions import make_dsn

from infra.local import postgres
from infra.local.home import Home
from infra.local.part import Part
from pipeline.settings import REPOSITORY, find_params
from serving.locks import is_held


def follower_dsn(home: Home) -> str:
    """The source database, opened by the role that may replicate and read."""
    return postgres.postgres_dsn(home.ports["postgres"], "source", postgres.FOLLOWER, home.secrets[postgres.FOLLOWER])


def source_admin_dsn(home: Home) -> str:
    """The source database, as its administrator opens it."""
    return str(make_dsn(home.admin_dsn, dbname="source"))


def plan_stream(home: Home, environment: Mapping[str, str], mark: Callable[[str], dict[str, str]]) -> list[Part]:
    """The stream of this home; none where no use case follows its source."""
    from pipeline.spec import use_cases  # noqa: PLC0415  # pydantic, loaded while PostgreSQL starts

    try:
        known = use_cases(find_params(environment))
    except ValueError:  # Airflow's page says what is wrong with it, and for that the stack must come up
        known = {}
    if not any(use_case.source.follow for use_case in known.values()):
        return []
    lock = home.folder / "stream" / "stream.lock"
    return [
        Part(
            name="stream",
            command=(sys.executable, "-m", "tasks.stream.follow"),
            environment={**environment, "PYTHONPATH": str(REPOSITORY), **mark("stream")},
            directory=home.folder,
            address=str(lock),
            is_healthy=lambda: lock.exists() and is_held(lock),
            needs=("warehouse",),
            stop_signal=signal.SIGTERM,
        )
    ]
