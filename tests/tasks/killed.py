"""Run a piece of code in a process of its own, which may kill itself with -9 in the middle of it."""

import os
import signal
import subprocess
import sys

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
    }


def run(settings: Settings, code: str, *, killed: bool) -> None:
    """Run PRELUDE and code; it must end by SIGKILL, or well, as asked."""
    ended = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], env=environment(settings), cwd=REPOSITORY, check=False
    )
    assert ended.returncode == (-signal.SIGKILL if killed else 0)
