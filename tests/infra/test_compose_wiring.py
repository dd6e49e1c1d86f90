"""The parts of the compose file fit: who reaches whom, by which name, role and health check; without an engine."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from infra.local.home import inherited_environment
from infra.local.postgres import FOLLOWING
from pipeline.settings import REPOSITORY
from tests.infra.compose_rules import Compose, runner


def test_networks_join_those_who_talk_and_nobody_else(compose: Compose) -> None:
    services = compose["services"]
    found = {
        net: {name for name in services if net in services[name].get("networks", ())} for net in compose["networks"]
    }
    runners = {"scheduler", "worker", "trainer"}
    servers = {*runners, "api-server", "dag-processor", "triggerer"}
    assert found == {
        "data": {
            *servers,
            "postgres",
            "s3",
            "init",
            "mlflow",
            "torchserve",
            "shipper",
            "exporter",
            "grafana",
            "demo",
            "stream",
        },
        "airflow": {*servers, "statsd", "demo"},
        "online": {*runners, "triggerer", "torchserve", "gateway", "demo", "stream"},
        "management": {*runners, "torchserve"},
        "queue": {*runners, "redis"},
        "metrics": {"exporter", "statsd", "torchserve", "gateway", "prometheus", "grafana"},
        "front": {*servers, "mlflow", "gateway", "grafana", "stream"},
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
    "stream": "is_held",
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
    assert others == airflow_s  # whose checks are in tests/infra/test_airflow.py


def test_prometheus_scrapes_each_who_has_numbers_where_it_listens(compose: Compose) -> None:
    services, told = compose["services"], yaml.safe_load((REPOSITORY / "infra/prometheus/prometheus.yaml").read_text())
    targets = {target for job in told["scrape_configs"] for one in job["static_configs"] for target in one["targets"]}
    listening = {"exporter": "9187", "gateway": "8090", "torchserve": "8087", "statsd": "9102"}
    assert all(f":{port}" in str(services[name]) for name, port in listening.items())
    members = {name for name, one in services.items() if "metrics" in one.get("networks", ())}
    assert members == listening.keys() | {"prometheus", "grafana"}
    [alias] = services["torchserve"]["networks"]["metrics"]["aliases"]
    called = {name: name for name in listening} | {"torchserve": alias}
    assert targets == {"localhost:9090", *(f"{called[name]}:{port}" for name, port in listening.items())}


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


# The others are called as their addresses are.
ROLES = {
    "WINDSOCK_STUDIES_DSN": "optuna",
    "WINDSOCK_ADMIN_DSN": "windsock",
    "WINDSOCK_SOURCE_ADMIN_DSN": "windsock",
}


def test_each_opens_postgres_by_its_own_role_and_postgres_is_told_to_stop_fast(compose: Compose) -> None:
    told = {
        (name, str(value)) for one in compose["services"].values() for name, value in one.get("environment", {}).items()
    }
    roles = {name: value.split("//")[1].split(":")[0] for name, value in told if name.endswith("_DSN")}
    assert roles == {name: ROLES.get(name, name.split("_")[1].lower()) for name in roles}
    assert len(roles) == 8
    assert compose["services"]["postgres"]["stop_signal"] == "SIGINT"  # SIGTERM waits for every client to leave


def test_the_source_can_be_followed_there_as_in_the_embedded_stack(compose: Compose) -> None:
    told = dict(word.split("=") for word in compose["services"]["postgres"]["command"] if word != "-c")
    assert FOLLOWING.items() <= told.items()


def test_the_demo_begins_when_all_that_the_loop_needs_is_well(compose: Compose) -> None:
    services, waited = compose["services"], set[str]()
    pending = {"demo"}
    while pending:
        waited |= pending
        pending = {other for name in pending for other in services[name].get("depends_on", {})} - waited
    assert {name for name, one in services.items() if "profiles" not in one} - waited == {"exporter", "prometheus"}


@pytest.mark.usefixtures("processes")
def test_the_executor_of_the_workers_can_be_loaded_with_the_versions_we_pin(tmp_path: Path) -> None:
    """No resolver knows which Celery the provider can be imported with."""
    command = [sys.executable, "-c", "import airflow.providers.celery.executors.celery_executor_utils"]
    environment = {
        **inherited_environment(),
        "AIRFLOW_HOME": str(tmp_path),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_trainings_go_to_the_one_that_reserves_a_gpu(compose: Compose) -> None:
    trainer = compose["services"]["trainer"]
    assert trainer["command"][-2:] == ["--queues", "gpu"]
    [device] = trainer["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert compose["services"]["worker"]["scale"] == 2
