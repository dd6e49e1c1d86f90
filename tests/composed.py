"""A project of docker-compose in an engine, for tests: start it, ask it, and what it may not lose."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.gateway import Gateway, GatewayReply
from infra.compose.env import fill_template
from infra.local.ports import find_free_port
from infra.private import read_code_sha
from infra.settings import parse_assignments
from pipeline.settings import REPOSITORY
from tests.e2e.test_loop import COMPARED
from tests.serving.online import EVENT

_PSQL = 'PGPASSWORD="$POSTGRES_PASSWORD" psql -h 127.0.0.1 -U windsock -d {} --no-align --tuples-only --file -'
_OBJECTS = "from adapters.connect import outside; print(*outside().lake.list(''), sep='\\n')"
_PORTS = ("AIRFLOW_PORT", "MLFLOW_PORT", "GATEWAY_PORT")


@dataclass(frozen=True)
class Composed:
    """A project: its name, and the file that stands for .env."""

    project: str
    env_file: Path

    def __call__(self, *words: str, said: str = "", check: bool = True) -> str:
        """What `docker compose` prints."""
        command = ["docker", "compose", "--project-name", self.project, "--env-file", str(self.env_file), *words]
        done = subprocess.run(command, cwd=REPOSITORY, input=said, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    @property
    def told(self) -> dict[str, str]:
        """What is set for it."""
        return parse_assignments(self.env_file.read_text())

    def services(self) -> dict[str, list[dict[str, object]]]:
        """The containers that keep running, by service."""
        rows = [json.loads(line) for line in self("ps", "--format", "json").splitlines()]
        return {row["Service"]: [one for one in rows if one["Service"] == row["Service"]] for row in rows}

    def healthy(self) -> bool:
        """Whether all of them are."""
        return {row["Health"] for rows in self.services().values() for row in rows} == {"healthy"}

    def ask(self) -> GatewayReply:
        """As a client does, through the gateway."""
        gateway = Gateway(f"http://127.0.0.1:{self.told['GATEWAY_PORT']}", "", Path(), self.told["SECRET_GATEWAY"])
        return gateway.ask("flights", EVENT)

    def fetch(self, database: str, query: str) -> str:
        """What a query answers."""
        return self("exec", "-T", "postgres", "sh", "-c", _PSQL.format(database), said=query)

    def facts(self) -> dict[str, str]:
        """What the loop came to."""
        return {name: self.fetch("warehouse", query) for name, query in COMPARED.items()}

    def kept(self) -> dict[str, str]:
        """What may not be lost: also every object, and what the model answers."""
        objects = self("exec", "-T", "scheduler", "python", "-c", _OBJECTS)
        return {**self.facts(), "objects": objects, "answer": str(self.ask().body["probability"])}


@contextmanager
def composed(project: str, folder: Path, given: Mapping[str, str]) -> Iterator[Composed]:
    """A project that is built, up and healthy, and gone with its data afterwards.

    Where WINDSOCK_KEEP names a folder, the stack stays, and the next session goes on with it.
    """
    if not os.environ.get("WINDSOCK_TEST_COMPOSE"):
        pytest.skip("builds and runs a dozen containers: `make test-compose` runs this")
    kept = os.environ.get("WINDSOCK_KEEP")
    env_file = Path(kept or folder) / f"{project}.env"
    if not env_file.exists():
        ports = set[int]()
        while len(ports) < len(_PORTS):
            ports.add(find_free_port(ports))
        own = dict(zip(_PORTS, map(str, ports), strict=True))
        told = {"COMPOSE_PROFILES": "", **own, **given}  # an engine without a registry has no Grafana
        env_file.write_text(fill_template((REPOSITORY / ".env.example").read_text(), told, read_code_sha()))
    found = Composed(project, env_file)
    try:
        found("build")
        found("up", "--detach", "--wait")
        yield found
    finally:
        if not kept:
            found("--profile", "*", "down", "--volumes", "--timeout", "5")
