"""The health checks of Airflow's containers say what works, and nothing else."""

import pytest

from infra.compose import health
from infra.local.airflow import JOBS, settings
from infra.local.ports import free_port
from infra.local.stack import Stack


@pytest.fixture
def container(airflow_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a container that runs what the embedded stack runs."""
    for name, value in settings(airflow_stack.home()).items():
        if name.startswith("AIRFLOW__"):
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("server", ["api-server", *JOBS])
def test_a_server_that_works_is_healthy(container: None, server: str) -> None:
    assert health.healthy(server)


@pytest.mark.parametrize("server", JOBS)
def test_one_that_beats_in_another_container_is_not_this_one(
    container: None, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setattr(health.socket, "gethostname", lambda: "another")  # what a container is known by
    assert not health.healthy(server)


def test_without_its_database_none_is_healthy(container: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"postgresql+psycopg2://airflow:x@127.0.0.1:{free_port(set())}/airflow"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", nowhere)
    assert not any(health.healthy(server) for server in JOBS)


def test_an_api_server_that_is_not_there_is_not_healthy(container: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__PORT", str(free_port(set())))
    assert not health.healthy("api-server")
