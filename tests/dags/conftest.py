"""An Airflow database of this session's own, set up before anything imports Airflow."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.stack import Stack
from pipeline.settings import REPOSITORY
from tests.conftest import make_database


@pytest.fixture(scope="session")
def airflow_home(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """AIRFLOW_HOME with a migrated database and the pools our DAGs name."""
    assert "airflow.configuration" not in sys.modules, "something imported Airflow before it was configured"
    home = tmp_path_factory.mktemp("airflow")
    address = make_database(stack, "airflow_dags", "airflow")
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__ALLOWED_DESERIALIZATION_CLASSES_REGEXP": r"(airflow|pipeline)\..*",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address.replace("postgresql://", "postgresql+psycopg2://"),
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        from airflow.utils import db

        db.upgradedb()
        yield home


@pytest.fixture(scope="session")
def bag(airflow_home: Path) -> Any:
    """Every DAG, as Airflow parses it."""
    return parse(REPOSITORY / "dags")


def parse(folder: Path) -> Any:
    """The DagBag of a folder; a file that does not parse fails the test."""
    from airflow.dag_processing.dagbag import DagBag

    found = DagBag(os.fspath(folder), collect_dags=False)
    found.collect_dags(os.fspath(folder))
    assert not found.import_errors, found.import_errors
    return found
