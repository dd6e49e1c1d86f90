"""The state folder of a stack: its ports and passwords, made once."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapters.files import write_atomically
from infra.local import ports as port_numbers
from infra.local import postgres
from infra.private import make_secret

# Settings of other installations, which would silently change this one.
_FOREIGN = ("AIRFLOW", "_AIRFLOW", "MLFLOW_", "AWS_", "PG", "DVC_", "WINDSOCK_", "OTEL_")
_DROPPED = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_SECRETS = (
    postgres.ADMIN,
    *postgres.DATABASES,
    *postgres.ROLES,
    "gateway",
    "s3_access",
    "s3_secret",
    "admin",
    "jwt",
    "api",
    "fernet",
    "stack",
)


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where a stack lives, and what opens it."""

    folder: Path
    ports: Mapping[str, int]
    secrets: Mapping[str, str] = field(repr=False)

    @property
    def stack(self) -> str:
        """The name that marks every process of this stack."""
        return self.secrets["stack"]

    @property
    def logs(self) -> Path:
        """One file a part."""
        return self.folder / "logs"

    def dsn(self, database: str) -> str:
        """The address of one of the databases, opened by the role that owns it."""
        return postgres.postgres_dsn(self.ports["postgres"], database, database, self.secrets[database])

    @property
    def admin_dsn(self) -> str:
        """The address for the administrator of all databases."""
        return postgres.postgres_dsn(self.ports["postgres"], "postgres", postgres.ADMIN, self.secrets[postgres.ADMIN])

    def url(self, part: str) -> str:
        """The address of an HTTP part."""
        return f"http://127.0.0.1:{self.ports[part]}"


def _keep_secrets(path: Path) -> dict[str, str]:
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    complete = {name: known.get(name) or make_secret(name) for name in _SECRETS}
    if complete != known:
        write_atomically(path, json.dumps(complete, indent=1).encode())
    return complete


def open_home(folder: Path, *, usual: bool, choose_ports: bool) -> Home:
    """The home in this folder, made if it is not there; `choose_ports` only while its stack is down."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    memory = folder / "ports.json"
    numbers = port_numbers.remember_ports(memory, usual=usual) if choose_ports else json.loads(memory.read_text())
    return Home(folder=folder, ports=numbers, secrets=_keep_secrets(folder / "secrets.json"))


def inherited_environment() -> dict[str, str]:
    """This process's environment without what belongs to other installations."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN) and k not in _DROPPED}
    extra = {
        k: os.environ[k] for k in ("WINDSOCK_PARAMS", "WINDSOCK_PORTS", "WINDSOCK_TASK_NICENESS") if k in os.environ
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**kept, **extra, "PATH": path}
