"""The compose file without an engine: its schema, its rules, and that it says what the embedded stack says."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import settings as common
from infra.compose import env
from infra.local import airflow
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY, read_settings
from tests.infra.compose_rules import FILE, TEXT, Compose, complaints, runner

TEMPLATE = (REPOSITORY / ".env.example").read_text()
SABOTAGE: dict[str, tuple[Callable[[Compose], Any], str]] = {
    "root": (lambda c: c["services"]["mlflow"].pop("user"), "mlflow: may run as root"),
    "capability": (lambda c: c["services"]["s3"].update(cap_add=["NET_ADMIN"]), "s3: has capabilities"),
    "privileges": (lambda c: c["services"]["demo"].pop("security_opt"), "demo: may gain privileges"),
    "memory": (lambda c: c["services"]["torchserve"].pop("mem_limit"), "torchserve: has no mem_limit"),
    "log": (lambda c: c["services"]["gateway"].pop("logging"), "gateway: has no limit to its log"),
    "latest": (
        lambda c: c["services"]["grafana"].update(image="grafana/grafana:latest"),
        "grafana: grafana/grafana:latest is not pinned",
    ),
    "unwell": (lambda c: c["services"]["shipper"].pop("healthcheck"), "shipper: has no health check"),
    "hasty": (
        lambda c: c["services"]["grafana"]["depends_on"]["prometheus"].update(condition="service_started"),
        "grafana: does not wait until prometheus is well",
    ),
    "database port": (
        lambda c: c["services"]["postgres"].update(ports=["127.0.0.1:5432:5432"]),
        "postgres: has the ports ['5432']",
    ),
    "another port": (
        lambda c: c["services"]["gateway"]["ports"].append("127.0.0.1:8090:8090"),
        "gateway: has the ports ['8088', '8090']",
    ),
    "world": (
        lambda c: c["services"]["mlflow"].update(ports=["5000:5000"]),
        "mlflow: 5000:5000 is open to others than this machine",
    ),
    "outward": (lambda c: c["networks"].update(data={}), "network data leads outside"),
    "namespace": (lambda c: c["services"]["postgres"].update(pid="host"), "postgres: shares pid with the machine"),
    "orphans": (lambda c: c["services"]["torchserve"].pop("init"), "torchserve: keeps its dead children"),
    "gone": (lambda c: c["services"]["gateway"].update(restart="no"), "gateway: does not return"),
    "again": (lambda c: c["services"]["init"].update(restart="always"), "init: runs again and again"),
    "always well": (
        lambda c: c["services"]["mlflow"]["healthcheck"].update(test=["CMD", "true"]),
        "mlflow: has no health check",
    ),
    "well anyway": (
        lambda c: c["services"]["redis"]["healthcheck"].update(test=["CMD-SHELL", "redis-cli set health 1 || true"]),
        "redis: its health check cannot fail",
    ),
    "elsewhere": (
        lambda c: c["services"]["postgres"].update(volumes=["postgres:/var/lib/postgres"]),
        "postgres: does not keep /var/lib/postgresql/data",
    ),
    "password in an address": (
        lambda c: c["services"]["exporter"]["environment"].update(
            WINDSOCK_OBSERVER_DSN="postgresql://observer:changeme@postgres:5432/${WAREHOUSE:-}"
        ),
        "exporter: WINDSOCK_OBSERVER_DSN has a value of its own",
    ),
    "as well as another": (
        lambda c: c["services"]["triggerer"]["healthcheck"]["test"].__setitem__(-1, "scheduler"),
        "triggerer: its health check is that of scheduler",
    ),
    "mapless": (
        lambda c: c["services"]["gateway"]["volumes"].pop(),
        "gateway: GATEWAY_MAPS is a folder that it does not keep",
    ),
    "early": (
        lambda c: c["services"]["shipper"]["depends_on"].pop("init"),
        "shipper: does not wait until there are tables",
    ),
    "lost": (
        lambda c: c["services"]["scheduler"]["environment"].update(MLFLOW_TRACKING_URI="http://127.0.0.1:5000"),
        "scheduler: MLFLOW_TRACKING_URI leads to 127.0.0.1, which is nobody it reaches",
    ),
    "unreachable": (
        lambda c: c["services"]["worker"]["networks"].remove("management"),
        "worker: WINDSOCK_MANAGEMENT_URL leads to torchserve-management, which is nobody it reaches",
    ),
    "forgetful": (lambda c: c["volumes"].update(answers={}), "volume answers keeps nothing"),
    "empty password": (
        lambda c: c["services"]["grafana"]["environment"].update(GF_SECURITY_ADMIN_PASSWORD="${SECRET_GRAFANA:-}"),
        "grafana: GF_SECURITY_ADMIN_PASSWORD has a value of its own",
    ),
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
        lambda c: c["services"]["demo"]["volumes"].append("/var/run/docker.sock:/var/run/docker.sock"),
        "demo: /var/run/docker.sock:/var/run/docker.sock is neither a named volume nor a read-only file of ours",
    ),
}


def test_every_service_is_confined_and_only_the_pages_have_ports(compose: Compose) -> None:
    assert complaints(compose) == []


@pytest.mark.parametrize("fault", SABOTAGE)
def test_a_service_that_is_not_is_named(compose: Compose, fault: str) -> None:
    plant, complaint = SABOTAGE[fault]
    plant(compose)
    assert complaints(compose) == [complaint]


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "check-jsonschema"
    command = [program, "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("processes")
def test_it_is_what_the_compose_specification_allows() -> None:
    done = schema_check(FILE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("processes")
def test_a_misspelt_key_is_not(tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_text(TEXT.replace("mem_limit: 3g", "memory_limit: 3g"))
    done = schema_check(tmp_path / FILE.name)
    assert done.returncode == 1
    assert "memory_limit" in done.stdout + done.stderr


@pytest.mark.usefixtures("processes")
def test_compose_itself_takes_it(tmp_path: Path) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not installed here")
    (tmp_path / "env").write_text(env.fill_template(TEMPLATE, {}, "0" * 40))
    command = ["docker", "compose", "--env-file", tmp_path / "env", "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_it_is_told_is_in_the_example_and_nothing_else_is() -> None:
    told = set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT))
    assert told == common.parse_assignments(TEMPLATE).keys()


def test_a_task_finds_all_it_needs(compose: Compose) -> None:
    image = {"WINDSOCK_HOME": "/var/lib/windsock", "WINDSOCK_CODE_SHA": "0" * 40}
    found = read_settings({**image, **runner(compose)})
    assert found.gateway_url == "http://gateway:8088"
    assert found.inference_url == "http://torchserve-inference:8085"


def test_airflow_is_told_what_the_embedded_one_is(compose: Compose, stack: Stack) -> None:
    embedded = {name for name in airflow.airflow_settings(stack.home()) if name.startswith("AIRFLOW__")}
    ours = {name for name in runner(compose) if name.startswith("AIRFLOW__")}
    # Where logs lie is Airflow's own choice in a container, where no server hands them out; only there are queues
    # and StatsD.
    own = ("AIRFLOW__LOGGING__", "AIRFLOW__CELERY__", "AIRFLOW__METRICS__")
    assert {name for name in embedded ^ ours if not name.startswith(own)} == set()
