"""Run a piece of code in a process of its own, which may kill itself with -9 in the middle of it."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TextIO

from pipeline.settings import REPOSITORY, Settings

PRELUDE = """
import os, signal
from datetime import datetime, timedelta, UTC
from adapters.connect import outside
from pipeline.settings import settings
from pipeline.spec import use_cases
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
outside = outside()
"""
# Loading these takes longer than most of what is killed. One process loads them, uses nothing of them, and is forked.
_HEAVY = ["adapters.registry", "tasks.train.refit", "tasks.train.search", "tasks.monitor.monitor", "tests.tasks.toy"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([*_HEAVY, "tests.tasks.real_room"])


def environment(settings: Settings) -> dict[str, str]:
    """A test's settings as a child process reads them."""
    return {
        **os.environ,
        "WINDSOCK_HOME": str(settings.home),
        "WINDSOCK_PARAMS": str(settings.params),
        "WINDSOCK_CODE_SHA": settings.code_sha,
        "WINDSOCK_WAREHOUSE_DSN": settings.warehouse_dsn,
        "WINDSOCK_SOURCE_DSN": settings.source_dsn,
        "WINDSOCK_STUDIES_DSN": settings.studies_dsn,
        "WINDSOCK_S3_ENDPOINT": settings.s3_endpoint,
        "AWS_ACCESS_KEY_ID": settings.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key,
        "WINDSOCK_LAKE_BUCKET": settings.lake_bucket,
        "WINDSOCK_VERSIONS_BUCKET": settings.versions_bucket,
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "WINDSOCK_FOLLOWER_DSN": settings.follower_dsn or "",
        **settings.webhooks,
    }


def _execute(variables: Mapping[str, str], code: str, said: Connection) -> None:
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(REPOSITORY)
    exec(compile(code, "<a process of its own>", "exec"), {"__name__": "__main__"})  # noqa: S102  # as `python -c` does


@contextmanager
def started(variables: Mapping[str, str], code: str) -> Iterator[tuple[Any, TextIO]]:
    """A process that runs this code with these environment variables, and what it prints; it has ended afterwards."""
    reading, writing = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_execute, args=(variables, code, writing))
    process.start()
    writing.close()
    try:
        with os.fdopen(os.dup(reading.fileno())) as lines:
            yield process, lines
            lines.read()
    except BaseException:
        process.kill()
        raise
    finally:
        reading.close()
        process.join()


def run_code(variables: Mapping[str, str], code: str, *, killed: bool) -> None:
    """Run the code; it must end by SIGKILL, or well, as asked."""
    with started(variables, code) as (process, lines):
        said = lines.read()
    assert process.exitcode == (-signal.SIGKILL if killed else 0), said


def run(settings: Settings, code: str, *, killed: bool) -> None:
    """Run PRELUDE and code; it must end by SIGKILL, or well, as asked."""
    run_code(environment(settings), PRELUDE + code, killed=killed)
