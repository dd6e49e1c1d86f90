"""A definition that cannot serve is stopped by `plan`: its search never begins, and its twin's does."""

from typing import Any

import optuna
import pytest

import features
from adapters.connect import Outside
from pipeline.spec import UseCase
from tasks.build_features import build
from tasks.train import study
from tests.tasks.build_features.test_build import put
from tests.tasks.check_use_case.test_servable import ENGINELESS


@pytest.fixture
def built(bag: Any, outside: Outside, use_case: UseCase, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The DAG of a use case with features of two weeks: enough for a search to begin, too few for it to go on."""
    from adapters import connect
    from tasks import failure

    put(outside, use_case, 0, 1)
    build.build_snapshot(use_case, outside)
    for module in (connect, failure):
        monkeypatch.setattr(module, "outside", lambda: outside)
    return bag.dags["flights.train"]


def list_study_names(outside: Outside) -> list[str]:
    return list(optuna.get_all_study_names(study._open_storage(outside)))


def run(dag: Any) -> dict[str, str]:
    return {task.task_id: task.state for task in dag.test().get_task_instances()}


def test_the_search_of_a_definition_that_can_serve_begins(built: Any, outside: Outside) -> None:
    states = run(built)
    assert (states["plan"], states["tune"], states["refit"]) == ("success", "failed", "upstream_failed")
    assert len(list_study_names(outside)) == 1


def test_the_search_of_one_that_cannot_serve_never_begins_and_is_tried_once(
    built: Any, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had been built by it: that the dataset is of another definition is not what stops it."""
    monkeypatch.setitem(features._DEFINITIONS, "flights", ENGINELESS)
    outside.warehouse.execute("update snapshots set features_digest = %s", (ENGINELESS.digest(),))
    states = run(built)
    assert (states["plan"], states["tune"], states["refit"]) == ("failed", "upstream_failed", "upstream_failed")
    assert list_study_names(outside) == []
