"""The composed stack in an engine, from the build to its return after a loss (`make test-compose`).

The tests of this file follow each other on one stack: it takes minutes to start and to replay.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.gateway import Gateway, Reply
from infra.compose.env import fill
from infra.local.home import code_sha
from infra.local.ports import free_port
from infra.settings import assignments
from pipeline.settings import REPOSITORY
from tests.infra.test_airflow import until
from tests.serving.online import EVENT

pytestmark = pytest.mark.compose
PROJECT = "windsock-test"
TABLES = ("batches", "snapshots", "ledger", "decisions", "predictions")
# What answers a stranger on each network. All else is closed: management, the stores behind S3, shells.
OPEN = {
    "data": {"postgres:5432", "s3:8333", "mlflow:5000", "api-server:8080"},
    "airflow": {"api-server:8080"},
    "online": {"torchserve:8085", "gateway:8088", "gateway:8090"},
    "metrics": {"torchserve:8087", "gateway:8088", "gateway:8090"},
    "front": {"mlflow:5000", "api-server:8080", "gateway:8088", "gateway:8090"},
}
_SCAN = """
import asyncio, socket, sys

async def open_ports(name, address):
    async def one(port):
        async with gate:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 5)
            except OSError:
                return
            writer.close()
            print(f"{name}:{port}")
    gate = asyncio.Semaphore(500)
    await asyncio.gather(*(one(port) for port in range(1, 65536)))

for pair in sys.argv[1:]:
    asyncio.run(open_ports(*pair.split("=")))
"""
_OBJECTS = """
from adapters.connect import outside
lake = outside().lake
print(*sorted(lake.list("")), sep="\\n")
"""


@dataclass(frozen=True)
class Composed:
    """A running project."""

    env_file: Path

    def __call__(self, *words: str, check: bool = True) -> str:
        command = ["docker", "compose", "--project-name", PROJECT, "--env-file", str(self.env_file), *words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{words[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    @property
    def told(self) -> dict[str, str]:
        return assignments(self.env_file.read_text())

    def services(self) -> dict[str, dict[str, str]]:
        """Those that keep running, by name."""
        return {row["Service"]: row for row in map(json.loads, self("ps", "--format", "json").splitlines())}

    def ask(self) -> Reply:
        gateway = Gateway(f"http://127.0.0.1:{self.told['GATEWAY_PORT']}", "", Path(), self.told["SECRET_GATEWAY"])
        return gateway.ask("flights", EVENT)

    def rows(self, table: str) -> str:
        """How many, and a digest of them."""
        query = f"select count(*), md5(string_agg(t::text, '' order by t::text)) from {table} t"
        return self("exec", "-T", "postgres", "sh", "-c", _PSQL.format(query))

    def kept(self) -> dict[str, str]:
        """What may not be lost."""
        return {table: self.rows(table) for table in TABLES} | {
            "objects": self("exec", "-T", "scheduler", "python", "-c", _OBJECTS),
            "answer": str(self.ask().body["probability"]),
        }


_PSQL = 'PGPASSWORD="$POSTGRES_PASSWORD" psql -h 127.0.0.1 -U windsock -d warehouse --tuples-only -c "{}"'


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    if not os.environ.get("WINDSOCK_TEST_COMPOSE"):
        pytest.skip("builds and runs ten containers: `make test-compose` runs this")
    ports = set[int]()
    while len(ports) < 3:
        ports.add(free_port(ports))
    given = dict(zip(("AIRFLOW_PORT", "MLFLOW_PORT", "GATEWAY_PORT"), map(str, ports), strict=True))
    kept = os.environ.get("WINDSOCK_KEEP")  # a folder: the stack stays, and the next session goes on with it
    env_file = (Path(kept) if kept else tmp_path_factory.mktemp("compose")) / "compose.env"
    if not env_file.exists():
        template = (REPOSITORY / ".env.example").read_text()
        env_file.write_text(fill(template, {**given, "WEEKS": "1"}, code_sha()))
    composed = Composed(env_file)
    try:
        composed("build")
        composed("up", "--detach", "--wait")
        yield composed
    finally:
        if not kept:
            composed("--profile", "*", "down", "--volumes", "--timeout", "5")


def test_every_service_is_healthy_as_nobody_and_only_pages_have_ports(composed: Composed) -> None:
    services = composed.services()
    assert len(services) == 12
    assert {row["Health"] for row in services.values()} == {"healthy"}
    published = {name: row["Publishers"] for name, row in services.items()}
    addresses = {port["URL"] for ports in published.values() for port in ports or () if port["PublishedPort"]}  # type: ignore[index]
    assert addresses == {"127.0.0.1"}
    assert {composed("exec", "-T", name, "id", "-u") for name in services} == {"10001"}


def test_the_replay_ends_well_and_the_gateway_answers(composed: Composed) -> None:
    said = composed("run", "--rm", "-T", "demo")
    assert f"http://127.0.0.1:{composed.told['AIRFLOW_PORT']}" in said
    answer = composed.ask()
    assert (answer.status, answer.body["model_version"]) == (200, "1")
    assert 0 < answer.body["probability"] < 1


def test_the_doctor_has_nothing_to_say(composed: Composed) -> None:
    assert "WRONG" not in composed("exec", "-T", "scheduler", "python", "-m", "infra.doctor", "--running")


def test_a_stranger_on_a_network_reaches_what_it_serves_and_no_management(composed: Composed) -> None:
    for network, wanted in OPEN.items():
        inspected = subprocess.run(
            ["docker", "network", "inspect", f"{PROJECT}_{network}"], capture_output=True, text=True, check=True
        )
        [found] = json.loads(inspected.stdout)
        members = [(one["Name"], one["IPv4Address"].partition("/")[0]) for one in found["Containers"].values()]
        pairs = [f"{name.removeprefix(f'{PROJECT}-').removesuffix('-1')}={address}" for name, address in members]
        scan = ["docker", "run", "--rm", f"--network={PROJECT}_{network}", "windsock-airflow", "python", "-c", _SCAN]
        done = subprocess.run([*scan, *pairs], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == wanted, network


def test_every_container_returns_by_itself_and_nothing_is_lost(composed: Composed) -> None:
    before = composed.kept()
    for name in composed.services():
        container = composed("ps", "--quiet", name)
        started = _inspected(container, "{{.State.StartedAt}}")
        composed("exec", "-T", name, "sh", "-c", "kill -9 -1", check=False)
        until(lambda since=started, one=container: _inspected(one, "{{.State.StartedAt}}") != since)  # type: ignore[misc]
        until(lambda: {row["Health"] for row in composed.services().values()} == {"healthy"}, seconds=300)
        assert composed.kept() == before, name


def test_down_and_up_again_loses_nothing(composed: Composed) -> None:
    before = composed.kept()
    composed("down")
    composed("up", "--detach", "--wait")
    assert composed.kept() == before


def _inspected(container: str, what: str) -> str:
    done = subprocess.run(
        ["docker", "inspect", f"--format={what}", container], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
