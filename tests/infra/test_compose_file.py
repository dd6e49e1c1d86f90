"""The compose file without an engine: its schema, its rules, and that it says what the embedded stack says."""

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import settings as common
from infra.compose import env
from infra.local import airflow
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY, read_settings
from tests.infra.compose_rules import complaints

FILE = REPOSITORY / "docker-compose.yaml"
TEXT = FILE.read_text()
TEMPLATE = (REPOSITORY / ".env.example").read_text()
Compose = dict[str, Any]
SABOTAGE: dict[str, tuple[Callable[[Compose], Any], str]] = {
    "root": (lambda c: c["services"]["mlflow"].pop("user"), "mlflow: may run as root"),
    "capability": (lambda c: c["services"]["s3"].update(cap_add=["NET_ADMIN"]), "s3: has capabilities"),
    "privileges": (lambda c: c["services"]["demo"].pop("security_opt"), "demo: may gain privileges"),
    "memory": (lambda c: c["services"]["torchserve"].pop("mem_limit"), "torchserve: has no mem_limit"),
    "log": (lambda c: c["services"]["gateway"].pop("logging"), "gateway: has no limit to its log"),
    "latest": (lambda c: c["services"]["s3"].update(image="haproxy:latest"), "s3: haproxy:latest is not pinned"),
    "unwell": (lambda c: c["services"]["shipper"].pop("healthcheck"), "shipper: has no health check"),
    "hasty": (
        lambda c: c["services"]["gateway"]["depends_on"]["torchserve"].update(condition="service_started"),
        "gateway: does not wait until torchserve is well",
    ),
    "database port": (
        lambda c: c["services"]["postgres"].update(ports=["127.0.0.1:5432:5432"]),
        "postgres: has a port",
    ),
    "world": (
        lambda c: c["services"]["mlflow"].update(ports=["5000:5000"]),
        "mlflow: 5000:5000 is open to others than this machine",
    ),
    "outward": (lambda c: c["networks"].update(data={}), "network data leads outside"),
    "host": (lambda c: c["services"]["storage"].update(network_mode="host"), "storage: is on the network host"),
    "password": (
        lambda c: c["services"]["storage"]["environment"].update(AWS_SECRET_ACCESS_KEY="changeme"),
        "storage: AWS_SECRET_ACCESS_KEY has a value of its own",
    ),
    "default password": (
        lambda c: c["services"]["postgres"]["environment"].update(POSTGRES_PASSWORD="${SECRET_WINDSOCK:-windsock}"),
        "postgres: POSTGRES_PASSWORD has a value of its own",
    ),
    "engine": (
        lambda c: c["services"]["demo"].update(volumes=["/var/run/docker.sock:/var/run/docker.sock"]),
        "demo: /var/run/docker.sock:/var/run/docker.sock is neither a named volume nor a read-only file of ours",
    ),
}


@pytest.fixture
def compose() -> Compose:
    found: Compose = yaml.safe_load(TEXT)
    return copy.deepcopy(found)  # what is merged from one place is one object


def test_every_service_is_confined_and_only_the_pages_have_ports(compose: Compose) -> None:
    assert complaints(compose) == []


@pytest.mark.parametrize("fault", SABOTAGE)
def test_a_service_that_is_not_is_named(compose: Compose, fault: str) -> None:
    compose = yaml.load(yaml.dump(compose, Dumper=Unshared), yaml.SafeLoader)
    plant, complaint = SABOTAGE[fault]
    plant(compose)
    assert complaints(compose) == [complaint]


class Unshared(yaml.SafeDumper):
    """Writes what several services share once for each."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  # its signature
        return True


def test_the_management_of_the_model_server_is_reached_by_who_runs_tasks_only(compose: Compose) -> None:
    on_it = {name for name, service in compose["services"].items() if "management" in service.get("networks", ())}
    runners = {name for name in on_it if {"scheduler", "worker"} & set(service_command(compose, name))}
    assert on_it == {"torchserve", *runners}


def service_command(compose: Compose, name: str) -> list[str]:
    return [word for part in compose["services"][name].get("command", []) for word in str(part).split()]


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "check-jsonschema"
    command = [program, "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_what_the_compose_specification_allows() -> None:
    done = schema_check(FILE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_key_is_not(tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_text(TEXT.replace("mem_limit: 3g", "memory_limit: 3g"))
    done = schema_check(tmp_path / FILE.name)
    assert done.returncode == 1
    assert "memory_limit" in done.stdout + done.stderr


def test_compose_itself_takes_it(tmp_path: Path) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not installed here")
    (tmp_path / "env").write_text(env.fill(TEMPLATE, {}, "0" * 40))
    command = ["docker", "compose", "--env-file", tmp_path / "env", "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_it_is_told_is_in_the_example_and_nothing_else_is() -> None:
    told = set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT))
    assert told | {"COMPOSE_PROFILES"} == common.assignments(TEMPLATE).keys()  # which compose itself reads


def runner(compose: Compose) -> dict[str, str]:
    """The environment of a task, as compose makes it."""
    service = compose["services"]["scheduler"]
    files = [common.read(REPOSITORY / name) for name in service["env_file"]]
    given = {name: re.sub(r"\$\{[^}]*\}", "x", str(value)) for name, value in service["environment"].items()}
    return {name: value for part in (*files, given) for name, value in part.items()}


def test_a_task_finds_all_it_needs(compose: Compose) -> None:
    image = {"WINDSOCK_HOME": "/var/lib/windsock", "WINDSOCK_CODE_SHA": "0" * 40}
    found = read_settings({**image, **runner(compose)})
    assert found.gateway_url == "http://gateway:8088"
    assert found.inference_url == "http://torchserve-inference:8085"


def test_airflow_is_told_what_the_embedded_one_is(compose: Compose, stack: Stack) -> None:
    embedded = {name for name in airflow.settings(stack.home()) if name.startswith("AIRFLOW__")}
    ours = {name for name in runner(compose) if name.startswith("AIRFLOW__")}
    # Where logs lie is Airflow's own choice in a container, where no server hands them out; only there are queues
    # and StatsD.
    own = ("AIRFLOW__LOGGING__", "AIRFLOW__CELERY__", "AIRFLOW__METRICS__")
    assert {name for name in embedded ^ ours if not name.startswith(own)} == set()
