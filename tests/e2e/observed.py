"""A stack that has run the loop, observed as compose observes it: exporter, Prometheus, and every panel's query.

Run alone against a stack that `make demo` left running: `python -m tests.e2e.observed .windsock`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import requests
from prometheus_client import start_http_server
from prometheus_client.core import CollectorRegistry

from adapters.gateway import Gateway
from infra.local.home import inherited_environment
from infra.local.ports import find_free_port
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY
from tests.dashboards import BOARDS, RULES, Asked, asked, selectors
from tests.prometheus_stand import Prometheus, prometheus
from tests.repeated import repeated
from tests.serving.online import EVENT
from tests.statsd_stand import Recorded

USE_CASE = "flights"
ONLY_ELSEWHERE = {
    *('windsock_performance{metric="mae"}', 'windsock_first_performance{metric="mae"}'),  # of regressions
    "windsock_stream_horizon_seconds",  # of sources that live by the clock
}


@contextmanager
def exporter(stack: Stack) -> Iterator[str]:
    """Ours, as it is started in compose; its address."""
    environment = {**inherited_environment(), **stack.environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    port = find_free_port(set())
    command = [sys.executable, "-m", "infra.prometheus.exporter", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("metrics on"), "the exporter did not start"
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(20) == 0


@contextmanager
def airflow() -> Iterator[str]:
    """Recorded; the stack's own Airflow does not send its metrics anywhere."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Recorded())
    server, thread = start_http_server(0, "127.0.0.1", registry=registry)
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def traffic(stack: Stack) -> Iterator[None]:
    """Clients who ask, so that latencies of the last minutes exist."""
    e = stack.environment()
    maps = Path(e["WINDSOCK_GATEWAY_MAPS"])
    gateway = Gateway(e["WINDSOCK_GATEWAY_URL"], e["WINDSOCK_GATEWAY_ADMIN"], maps, e["WINDSOCK_GATEWAY_KEY"])
    with repeated(lambda: gateway.ask(USE_CASE, [EVENT]), seconds=0.1):
        yield


@contextmanager
def observed(stack: Stack, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes all there is of the stack."""
    ports = stack.home().ports
    configuration = REPOSITORY / "infra" / "prometheus" / "prometheus.yaml"
    with exporter(stack) as ours, airflow() as recorded, traffic(stack):
        targets = {
            "warehouse": ours,
            "airflow": recorded,
            "gateway": f"127.0.0.1:{ports['gateway_metrics']}",
            "torchserve": f"127.0.0.1:{ports['inference_metrics']}",
        }
        with prometheus(folder, configuration, targets) as running:
            yield running


def _numbers(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["value"][1] for sample in samples if sample["value"][1] != "NaN"]


def without_data(
    running: Prometheus, stack: Stack, boards: dict[str, dict[str, Any]] = BOARDS, *, patience_seconds: float = 240
) -> list[str]:
    """Every query of a panel, and every series an alert reads, that shows nothing.

    Some have nothing until `watch`, a task once a minute, has looked at requests of the version that just went full.
    """
    panels = list(asked(boards, USE_CASE))
    series = {s for rule in RULES for s in selectors(rule["expr"])} - ONLY_ELSEWHERE
    pending = [q for q in panels if q.language == "promql"] + [Asked("rules", "promql", s) for s in sorted(series)]
    deadline = time.monotonic() + patience_seconds
    while pending and time.monotonic() < deadline:
        pending = [q for q in pending if not _numbers(running.ask(q.query))]
        time.sleep(0.5)  # two scrapes are needed for a rate
    empty = [q for q in panels if q.language == "sql" and not _rows(stack, q.query)]
    return [f"{q.where}: {q.query}" for q in (*pending, *empty)]


def _rows(stack: Stack, query: str) -> list[Any]:
    connection = psycopg2.connect(stack.environment()["WINDSOCK_OBSERVER_DSN"])
    try:
        with connection, connection.cursor() as at:
            at.execute(query)
            return at.fetchall()
    finally:
        connection.close()


def unhealthy_rules(running: Prometheus) -> list[str]:
    """Rules that could not be evaluated."""
    groups = requests.get(f"{running.url}/api/v1/rules", timeout=10).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    return [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]


if __name__ == "__main__":
    running_stack = Stack(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as work, observed(running_stack, Path(work)) as server:
        print(*without_data(server, running_stack), *unhealthy_rules(server), f"up: {server.up()}", sep="\n")
