from dataclasses import replace

import pytest

from adapters.registry import Registry
from tasks import reproduce
from tasks.build_features import dataset
from tasks.train import reproduction, search
from tasks.train.refit import refit
from tasks.train.winner import JUDGED_TWIN_TAG, fit_winner
from tests.tasks import toy


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(dataset, "load_rows", dataset.load_rows)  # put back afterwards
    toy.install()


def test_the_drill_a_registered_model_is_reproduced_and_what_differs_is_said(mlflow_stack, rows, outside, monkeypatch):
    case = toy.use_case().model_copy(update={"seed": int(outside.settings.lake_bucket[-7:], 16)})
    search.run_search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside)
    study = search.load_study_result(case, toy.SNAPSHOT, toy.AS_OF, outside)
    version = refit(case, toy.SNAPSHOT, study, toy.AS_OF, "drill", None, outside).model_version

    same = reproduction.reproduce(case, version, outside)
    assert same.ok
    assert same.bitwise_equal
    assert (same.max_weight_difference, same.max_score_difference, same.warnings) == (0.0, 0.0, [])
    assert same.metrics == same.reproduced_metrics
    assert "reproduced, bit for bit" in same.lines()[0]

    elsewhere = type(outside)(replace(outside.settings, code_sha="f" * 40))
    with pytest.raises(
        ValueError, match=r"cannot be compared: trained by code 000.*git checkout 000.*allow-other-code"
    ):
        reproduction.reproduce(case, version, elsewhere)
    allowed = reproduction.reproduce(case, version, elsewhere, allow_other_code=True)
    assert allowed.ok
    assert "git checkout 000" in allowed.warnings[0]

    recorded = outside.registry.metrics(case.name, version)
    with monkeypatch.context() as patched:
        patched.setattr(
            Registry, "metrics", lambda *_: recorded | {"validation_auc": recorded["validation_auc"] + 0.01}
        )
        [problem] = reproduction.reproduce(case, version, outside).problems
    assert problem.startswith("validation_auc: ")
    for kept, problems in (("validation_auc", []), ("validation_none", ["no validation metric was recorded"])):
        with monkeypatch.context() as patched:  # as before there were other metrics
            patched.setattr(Registry, "metrics", lambda *_, kept=kept: {k: v for k, v in recorded.items() if k == kept})
            assert reproduction.reproduce(case, version, outside).problems == problems

    toy.install(seed=1)
    other_rows = reproduction.reproduce(case, version, outside)
    assert not other_rows.ok
    assert "DIFFERS" in other_rows.lines()[0]
    assert any("weights differ" in problem for problem in other_rows.problems)

    toy.install(rows=5000)
    assert "were trained on" in reproduction.reproduce(case, version, outside).problems[0]

    with pytest.raises(ValueError, match="no model version '999999'"):
        reproduction.reproduce(case, "999999", outside)


def test_a_refitted_winner_is_reproduced_from_its_own_rows_and_held_to_its_twin(mlflow_stack, rows, outside):
    case = toy.use_case().model_copy(update={"seed": int(outside.settings.lake_bucket[-7:], 16)})
    search.run_search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside)
    study = search.load_study_result(case, toy.SNAPSHOT, toy.AS_OF, outside)
    candidate = refit(case, toy.SNAPSHOT, study, toy.AS_OF, "drill", None, outside)
    version = fit_winner(case, candidate, outside).version

    same = reproduction.reproduce(case, version, outside)
    assert (same.ok, same.bitwise_equal) == (True, True)
    assert f"what was validated is version {candidate.model_version}" in same.warnings[0]

    longer = replace(study, best_epochs=study.best_epochs + 1)
    other = refit(case, toy.SNAPSHOT, longer, toy.AS_OF, "drill", None, outside).model_version
    outside.registry._client.set_model_version_tag(case.name, version, JUDGED_TWIN_TAG, other)
    assert reproduction.reproduce(case, version, outside).problems == [f"its recipe is not that of version {other}"]

    toy.install(seed=1)
    assert any("weights differ" in problem for problem in reproduction.reproduce(case, version, outside).problems)


CLEAN, OTHER = "a" * 40, "b" * 40


@pytest.mark.parametrize(("then", "now"), [(CLEAN, OTHER), (f"{CLEAN}-dirty", OTHER), (CLEAN, f"{OTHER}-dirty")])
def test_code_of_another_commit_is_not_compared_unless_that_is_allowed(then, now):
    with pytest.raises(ValueError, match="cannot be compared"):
        reproduction._about_code(then, now, allowed=False)
    assert "trained by code" in reproduction._about_code(then, now, allowed=True)[0]


def test_changed_files_upon_the_same_commit_are_a_warning_and_none_are_nothing():
    for then, now in ((f"{CLEAN}-dirty", CLEAN), (CLEAN, f"{CLEAN}-dirty"), (f"{CLEAN}-dirty", f"{CLEAN}-dirty")):
        assert "files differed from the commit" in reproduction._about_code(then, now, allowed=False)[0]
    assert reproduction._about_code(CLEAN, CLEAN, allowed=False) == []


def test_the_command_ends_with_2_on_code_of_another_commit(outside, monkeypatch, capsys):
    asked = []

    def refuse(*_, allow_other_code):
        asked.append(allow_other_code)
        return reproduction._about_code(CLEAN, OTHER, allowed=False)

    monkeypatch.setattr("adapters.connect.outside", lambda: outside)
    monkeypatch.setattr(reproduction, "reproduce", refuse)
    assert reproduce.main(["flights", "1"]) == 2
    assert "cannot be compared" in capsys.readouterr().err
    reproduce.main(["flights", "1", "--allow-other-code"])
    assert asked == [False, True]


def test_the_command_says_what_is_wrong_and_does_not_end_with_0(mlflow_stack, outside, monkeypatch, capsys):
    monkeypatch.setattr("adapters.connect.outside", lambda: outside)
    assert reproduce.main(["nonsense", "1"]) == 2
    assert "no use case 'nonsense'" in capsys.readouterr().err
    assert reproduce.main(["flights", "999999"]) == 2
    assert "no model version '999999'" in capsys.readouterr().err
