"""What a task loads before it works: many run once a minute, and a heavy library takes longer than all they do."""

import json
import subprocess
import sys

import pytest

from pipeline.settings import REPOSITORY

HEAVY = {"torch", "mlflow", "great_expectations", "evidently", "optuna", "scipy", "pandas", "matplotlib"}
LIGHT = (
    *("tasks.ingest.land", "tasks.ingest.validate", "tasks.build_features.build"),
    *("tasks.build_features.online_features", "tasks.score", "tasks.monitor.monitor", "tasks.monitor.retrain"),
    *("tasks.promote.evaluate", "tasks.promote.promote", "tasks.deploy.deploy", "tasks.deploy.watch"),
    *("tasks.pending_work", "tasks.reproduce", "tasks.build_features.rebuild", "tasks.ingest.quarantine"),
)


def loaded_by(*modules: str) -> set[str]:
    """The top-level modules that a process has after importing these and nothing else."""
    code = "import importlib, json, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print(json.dumps([*sys.modules]))"
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.usefixtures("processes")
def test_a_step_loads_what_is_heavy_only_when_it_comes_to_need_it() -> None:
    assert HEAVY & loaded_by(*LIGHT) == set()
    assert HEAVY & loaded_by("models.bundle") == {"torch"}
