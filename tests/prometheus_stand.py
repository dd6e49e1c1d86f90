"""Prometheus and promtool, of the system or of Debian's package, and a Prometheus that scrapes what a test wants."""

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from infra.local import system_programs
from infra.local.ports import find_free_port
from tests.waiting import until


@cache
def program(name: str) -> str:
    """`prometheus` or `promtool`; the test is skipped, with the reason, where neither the system nor apt has it."""
    folder = Path(tempfile.mkdtemp(prefix="windsock-prometheus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if (problem := system_programs.fetch_program("prometheus", folder)) is not None:
        pytest.skip(problem)
    found = system_programs.find_program(name, folder, package="prometheus")
    assert found is not None
    return found.path  # static, so that it needs no libraries beside it


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        reply = requests.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10).json()
        assert reply["status"] == "success", f"{expression}: {reply.get('error')}"
        found: list[dict[str, Any]] = reply["data"]["result"]
        return found

    def up(self) -> dict[str, bool]:
        """Which jobs answered their last scrape."""
        return {sample["metric"]["job"]: sample["value"][1] == "1" for sample in self.ask("up")}


@contextmanager
def prometheus(folder: Path, configuration: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """The repository's configuration, scraping these addresses every 3 s in place of the services' names."""
    said = yaml.safe_load(configuration.read_text())
    said["global"] = {"evaluation_interval": "3s"}
    said["rule_files"] = [str(configuration.parent / name) for name in said["rule_files"]]
    port = find_free_port(set())
    for job in said["scrape_configs"]:
        job |= {"scrape_interval": "3s", "scrape_timeout": "3s"}
        job["static_configs"] = [{"targets": [{**targets, "prometheus": f"127.0.0.1:{port}"}[job["job_name"]]]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(said))
    command = [program("prometheus"), f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        running = Prometheus(f"http://127.0.0.1:{port}")
        until(lambda: process.poll() is not None or _ready(running.url))
        assert process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
        yield running
    finally:
        process.terminate()
        process.wait(20)


def _ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/-/ready", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False
