"""The compose file without an engine: its schema, its rules, and that it says what the embedded stack says."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
PARSED = json.dumps(yaml.safe_load(TEXT))  # what services share once for each
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
    "as well as another": (
        lambda c: c["services"]["triggerer"]["healthcheck"]["test"].__setitem__(-1, "scheduler"),
        "triggerer: its health check is that of scheduler",
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
    "forgetful": (lambda c: c["services"]["storage"]["volumes"].pop(0), "volume s3 keeps nothing"),
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
        lambda c: c["services"]["demo"].update(volumes=["/var/run/docker.sock:/var/run/docker.sock"]),
        "demo: /var/run/docker.sock:/var/run/docker.sock is neither a named volume nor a read-only file of ours",
    ),
}


@pytest.fixture
def compose() -> Compose:
    found: Compose = json.loads(PARSED)
    return found


def test_every_service_is_confined_and_only_the_pages_have_ports(compose: Compose) -> None:
    assert complaints(compose) == []


@pytest.mark.parametrize("fault", SABOTAGE)
def test_a_service_that_is_not_is_named(compose: Compose, fault: str) -> None:
    plant, complaint = SABOTAGE[fault]
    plant(compose)
    assert complaints(compose) == [complaint]


def test_networks_join_those_who_talk_and_nobody_else(compose: Compose) -> None:
    services = compose["services"]
    found = {
        net: {name for name in services if net in services[name].get("networks", ())} for net in compose["networks"]
    }
    runners = {"scheduler", "worker", "trainer"}
    servers = {*runners, "api-server", "dag-processor", "triggerer"}
    assert found == {
        "data": {*servers, "postgres", "s3", "init", "mlflow", "torchserve", "shipper", "exporter", "grafana", "demo"},
        "airflow": {*servers, "statsd", "demo"},
        "online": {*runners, "triggerer", "torchserve", "gateway", "demo"},
        "management": {*runners, "torchserve"},
        "queue": {*runners, "redis"},
        "metrics": {"exporter", "statsd", "torchserve", "gateway", "prometheus", "grafana"},
        "front": {*servers, "mlflow", "gateway", "grafana"},
    }
    assert services["storage"]["network_mode"] == "none"  # nobody is asked for a password there


def test_each_door_of_the_model_server_is_on_one_network(compose: Compose) -> None:
    server = compose["services"]["torchserve"]
    doors = {
        name: value.split("//")[1].split(":")[0] for name, value in server["environment"].items() if "BIND" in name
    }
    found = [alias for network in server["networks"].values() for alias in network.get("aliases", ())]
    assert sorted(found) == sorted(doors.values())
    assert len(set(found)) == 3


ASKED = {  # what a part that only listens would not answer
    "postgres": "select 1",
    "storage": "health",  # infra/s3/health.sh writes and reads
    "s3": "/healthz",
    "mlflow": "/api/2.0/mlflow/experiments/search",
    "torchserve": "serving.health",
    "shipper": "serving.health shipper",
    "gateway": '".servers.: 1"',
    "exporter": "windsock_",
    "statsd": "/metrics",
    "prometheus": "query instant",
    "grafana": "/api/health",
    "redis": "set health 1",
}


def test_health_is_asked_of_what_a_part_is_for(compose: Compose) -> None:
    tests = {name: " ".join(one["healthcheck"]["test"]) for name, one in compose["services"].items() if name in ASKED}
    assert [name for name, text in ASKED.items() if text not in tests[name]] == []
    airflow_s = {name for name, one in compose["services"].items() if "airflow" in one.get("command", ())}
    others = {name for name, one in compose["services"].items() if "healthcheck" in one} - ASKED.keys()
    assert others == airflow_s  # whose checks are in tests/infra/test_compose_health.py


def test_mlflow_answers_to_the_name_that_tasks_call(compose: Compose) -> None:
    called = urlsplit(runner(compose)["MLFLOW_TRACKING_URI"]).netloc
    assert called in compose["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


def test_every_module_that_a_service_runs_is_there(compose: Compose) -> None:
    named = set(re.findall(r"-m[', ]+([a-z_.]+)", str(compose["services"])))
    assert {"infra.compose.provision", "infra.compose.health", "serving.health"} <= named
    assert [module for module in named if find_spec(module) is None] == []


def test_the_image_is_told_its_commit_and_no_start_goes_without(compose: Compose) -> None:
    given = compose["services"]["init"]["build"]["args"]["WINDSOCK_CODE_SHA"]
    assert given.startswith("${WINDSOCK_CODE_SHA:?")
    dockerfile = (REPOSITORY / "infra" / "airflow" / "Dockerfile").read_text()
    assert "ARG WINDSOCK_CODE_SHA\nENV WINDSOCK_CODE_SHA=${WINDSOCK_CODE_SHA}\n" in dockerfile


def test_trainings_go_to_the_one_that_reserves_a_gpu(compose: Compose) -> None:
    trainer = compose["services"]["trainer"]
    assert trainer["command"][-2:] == ["--queues", "gpu"]
    [device] = trainer["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert compose["services"]["worker"]["scale"] == 2


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
