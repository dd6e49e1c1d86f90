"""The variables by which a process uses a stack: they follow from the groups of parts that the stack really has."""

from collections.abc import Collection
from pathlib import Path

from adapters.files import write_atomically
from infra import settings as common
from infra.local import gateway, postgres, stream, torchserve
from infra.local.home import Home
from infra.private import read_code_sha


def make_environment(home: Home, groups: Collection[str]) -> dict[str, str]:
    """The contents of the env file of a stack with these groups of parts.

    What the machine has installed plays no role: a stack that was started without the gateway names none, so that its
    tasks do not wait for one.
    """
    return {
        **common.read_assignments(common.COMMON),
        "WINDSOCK_HOME": str(home.folder),
        "WINDSOCK_CODE_SHA": read_code_sha(),
        "WINDSOCK_WAREHOUSE_DSN": home.dsn("warehouse"),
        "WINDSOCK_OBSERVER_DSN": postgres.postgres_dsn(
            home.ports["postgres"], "warehouse", "observer", home.secrets["observer"]
        ),
        "WINDSOCK_SOURCE_DSN": home.dsn("source"),
        "WINDSOCK_FOLLOWER_DSN": stream.follower_dsn(home),
        "WINDSOCK_STUDIES_DSN": home.dsn("optuna"),
        "WINDSOCK_S3_ENDPOINT": home.url("s3"),
        "AWS_ACCESS_KEY_ID": home.secrets["s3_access"],
        "AWS_SECRET_ACCESS_KEY": home.secrets["s3_secret"],
        "MLFLOW_TRACKING_URI": home.url("mlflow"),
        "MLFLOW_PAGE": home.url("mlflow"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "AIRFLOW_URL": home.url("airflow"),
        "AIRFLOW_PAGE": home.url("airflow"),
        "AIRFLOW_ADMIN_USER": "admin",
        "AIRFLOW_ADMIN_PASSWORD": home.secrets["admin"],
        **(torchserve.endpoint_variables(home) if "torchserve" in groups else {}),
        **(gateway.gateway_variables(home) if "gateway" in groups else {}),
    }


def write_env_file(home: Home, groups: Collection[str]) -> Path:
    """The env file: KEY=VALUE, one a line, readable by its owner only."""
    path = home.folder / "env"
    write_atomically(
        path, "".join(f"{name}={value}\n" for name, value in make_environment(home, groups).items()).encode()
    )
    return path
