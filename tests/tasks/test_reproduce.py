from dataclasses import replace

import pytest

from tasks import dataset, tune
from tasks import reproduce as reproduction
from tasks.refit import refit
from tests.tasks import toy


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(dataset, "load", dataset.load)  # put back afterwards
    toy.install()


def test_the_drill_a_registered_model_is_reproduced_and_what_differs_is_said(mlflow_stack, rows, outside):
    case = toy.use_case().model_copy(update={"seed": int(outside.settings.lake_bucket[-7:], 16)})
    study = tune.search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside)
    version = refit(case, toy.SNAPSHOT, study, toy.AS_OF, "drill", None, outside).model_version

    same = reproduction.reproduce(case, version, outside)
    assert same.ok
    assert same.bitwise_equal
    assert (same.max_weight_difference, same.max_score_difference, same.warnings) == (0.0, 0.0, [])
    assert same.metrics == same.reproduced_metrics
    assert "reproduced, bit for bit" in same.lines()[0]

    elsewhere = type(outside)(replace(outside.settings, code_sha="f" * 40))
    [warning] = reproduction.reproduce(case, version, elsewhere).warnings
    assert "git checkout 000" in warning

    toy.install(seed=1)
    other_rows = reproduction.reproduce(case, version, outside)
    assert not other_rows.ok
    assert "DIFFERS" in other_rows.lines()[0]
    assert any("weights differ" in problem for problem in other_rows.problems)

    toy.install(rows=5000)
    assert "were trained on" in reproduction.reproduce(case, version, outside).problems[0]

    with pytest.raises(ValueError, match="no model version '999999'"):
        reproduction.reproduce(case, "999999", outside)


def test_the_command_says_what_is_wrong_and_does_not_end_with_0(mlflow_stack, outside, monkeypatch, capsys):
    monkeypatch.setattr("adapters.connect.outside", lambda: outside)
    assert reproduction.main(["nonsense", "1"]) == 2
    assert "no use case 'nonsense'" in capsys.readouterr().err
    assert reproduction.main(["flights", "999999"]) == 2
    assert "no model version '999999'" in capsys.readouterr().err
