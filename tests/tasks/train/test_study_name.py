from dataclasses import replace
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

import features
from tasks.build_features import dataset
from tasks.train import record, study_name
from tasks.train.split import split
from tasks.train.study import StudyResult
from tasks.train.study_name import name_study
from tasks.train.trainer import make_recipe
from tests.tasks import toy

TRAIN = {
    "metric": "log_loss", "trials": 3, "trials_at_once": 3, "workers": 2, "rungs": (1, 2, 4), "keep_share": 0.34,
    "patience_epochs": 3, "batch_rows": 128, "ensemble_seeds": 2, "validation_days": 7, "holdout_days": 7,
    "min_rows": 500, "networks": ("mlp",), "hidden_units": (16, 32), "layers": (1, 2), "dropout": (0.1, 0.4),
    "learning_rate": (0.001, 0.005), "weight_decay": (0.0001, 0.3), "label_smoothing": (0.0, 0.0),
}  # fmt: skip
PARAMS = {
    "network": "mlp", "hidden_units": 16, "layers": 1, "dropout": 0.25, "learning_rate": 0.002, "weight_decay": 0.01,
    "label_smoothing": 0.0,
}  # fmt: skip

PREFIX = f"toy/{'a' * 32}.dir/20130210T0000/"
# As `tasks.tune.study_name` and `tasks.refit.Job.key` of commit 6d6a10f computed them for these very parameters.
OLD_NAME = f"{PREFIX}7f4ca6a65067/3f38fb93249c"
OLD_KEY = "626dd8710b05e6adecb8b89ccc546297ed1aa808bd7cab9fc2e1682a66696f9d"


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setattr(dataset, "load_rows", dataset.load_rows)  # put back afterwards
    toy.install()


def fixed_case(**train):
    case = toy.use_case(**{**TRAIN, **train})
    return case.model_copy(
        update={"seed": 2013, "time": case.time.model_copy(update={"label_delay_hours": 24})},
    )


def test_the_name_changes_with_whatever_changes_a_trial():
    base = toy.use_case()
    definition = features.definition("toy")

    def name(use_case=base, snapshot=toy.SNAPSHOT, as_of=toy.AS_OF, definition=definition):
        return name_study(use_case, snapshot, as_of, definition)

    others = [
        name(use_case=toy.use_case(dropout=(0.0, 0.1))),
        name(use_case=toy.use_case(holdout_days=8)),
        name(use_case=base.model_copy(update={"seed": 1})),
        name(use_case=base.model_copy(update={"time": base.time.model_copy(update={"label_delay_hours": 48})})),
        name(snapshot=replace(toy.SNAPSHOT, version="b" * 32)),
        name(as_of=toy.AS_OF - timedelta(days=7)),
        name(definition=replace(definition, numeric_sql={**definition.numeric_sql, "another": "1.0"})),
    ]
    assert len({name(), *others}) == 8
    assert name(use_case=toy.use_case(trials=99)) == name()
    assert name(use_case=base.model_copy(update={"title": "another"})) == name()


def test_the_name_changes_with_the_revision_of_the_search_and_not_with_its_workers_or_how_a_moment_is_written(
    monkeypatch,
):
    definition = features.definition("toy")

    def name(as_of=toy.AS_OF, **train):
        return name_study(fixed_case(**train), toy.SNAPSHOT, as_of, definition)

    before = name()
    assert name(workers=7) == name(ensemble_seeds=9) == name(as_of=toy.AS_OF.replace(tzinfo=ZoneInfo("UTC"))) == before
    monkeypatch.setattr(study_name, "SEARCH_REVISION", study_name.SEARCH_REVISION + 1)
    assert name() != before


def test_the_days_of_the_holdout_name_a_study_only_through_the_moments_that_they_move(monkeypatch):
    definition, moments = features.definition("toy"), split(fixed_case(), toy.AS_OF)

    def name(**train):
        return name_study(fixed_case(**train), toy.SNAPSHOT, toy.AS_OF, definition)

    assert name(holdout_days=8) != name()
    monkeypatch.setattr(study_name, "split", lambda *_: moments)
    assert name(holdout_days=8) == name()


def test_no_move_and_no_rename_of_a_module_changes_a_name():
    """A name written down: whoever changes this expectation restarts every search."""
    definition = features.definition("toy")
    name = name_study(fixed_case(), toy.SNAPSHOT, toy.AS_OF, definition)
    assert name == f"{PREFIX}2-{definition.digest()[:12]}/511f969859d6"


def test_a_refit_of_an_old_study_has_the_key_that_it_had_so_that_a_retry_finds_what_was_registered():
    definition, case = features.definition("toy"), fixed_case()
    study = StudyResult(
        study_name=OLD_NAME, best_params=PARAMS, best_value=0.5, best_epochs=3, trials=3, seconds=1.0,
        energy_joules=None,
    )  # fmt: skip
    work = record.TrainingJob(
        use_case=case,
        snapshot=toy.SNAPSHOT,
        study=study,
        as_of=toy.AS_OF,
        reason="drift",
        decision_id="toy-20130210T0000",
        definition=definition,
        moments=split(case, toy.AS_OF),
        recipe=replace(make_recipe(case, definition, PARAMS, epochs=3), seeds=(2013, 2014)),
    )
    assert work.key == OLD_KEY
