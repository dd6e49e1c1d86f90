"""The product's triage and gate on planted matrices: a champion that knows nothing goes, an equal one stays."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import recalibration
from benchmarks.contenders.retraining_rules import Detector, measure_excess, watch_psi
from benchmarks.live_policy import LivePolicy
from benchmarks.model_matrix import Fit, MatrixModel, ModelMatrix
from benchmarks.policies import lose_costs, lose_metric, measure_losses
from models.recalibration import add_to_logits
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.profile import make_profile
from tasks.monitor.drift import SCORE
from tasks.train.split import split

WEEK, FIRST, ROWS = timedelta(days=7), datetime(2013, 4, 1, tzinfo=UTC), 2000  # rows of a week
HISTORY, WEEKS = 8, 6


def _times(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype("datetime64[us]")).cast(pa.timestamp("us", "UTC"))


def _plant(use_case: UseCase, ignorant: set[int], *, off: float = 0.0) -> ModelMatrix:
    """Models that know the chance of each row, all `off` by so many logits, and some that say 0.3 or so of any."""
    use_case = use_case.model_copy(
        update={
            "gate": use_case.gate.model_copy(update={"min_rows": 1000, "slices": (), "resamples": 400}),
            "monitor": use_case.monitor.model_copy(update={"structural_features": ()}),
        }
    )
    draw, count = np.random.default_rng(3), ROWS * (HISTORY + WEEKS)
    seconds = np.sort(draw.uniform(0, (HISTORY + WEEKS) * 7 * 86400, count))
    begin = np.datetime64((FIRST - HISTORY * WEEK).replace(tzinfo=None), "us")
    at = begin + (seconds * 1e6).astype("timedelta64[us]")
    x = draw.normal(-1.2, 1.2, count)
    chance = 1 / (1 + np.exp(-x))
    rows = pa.table(
        {
            "entity_key": [str(n) for n in range(count)],
            "event_time": _times(at + np.timedelta64(2, "h")),
            "prediction_time": _times(at),
            "x": x,
            "label": (draw.random(count) < chance).astype(float),
            "label_time": _times(at + np.timedelta64(5, "h")),
        }
    )
    partitions = tuple(Interval(FIRST + n * WEEK, FIRST + (n + 1) * WEEK) for n in range(WEEKS))
    models = {}
    for place, partition in enumerate(partitions):
        for fit in Fit:
            score = (
                np.clip(0.3 + draw.normal(0, 0.02, count), 0, 1)
                if place in ignorant
                else add_to_logits(chance, np.full(count, off))
            )
            cutoff = partition.start if fit == Fit.REFITTED else split(use_case, partition.start).cutoff
            old = int(np.searchsorted(at, np.datetime64(cutoff.replace(tzinfo=None), "us")))
            members = np.stack([score + 1e-4 * draw.normal(size=count) for _ in range(3)]).clip(0, 1)
            members[:, :old] = np.nan
            learnt = rows.slice(0, old).append_column(SCORE, pa.array(score[:old]))
            models[partition.start, fit] = MatrixModel(
                version=f"{partition.start:%Y-%m-%d}-{fit}", fit=fit, as_of=partition.start, cutoff=cutoff,
                profile=make_profile(learnt, use_case), members=members.astype(np.float32),
            )  # fmt: skip
    return ModelMatrix(use_case=use_case, rows=rows, partitions=partitions, models=models)


@pytest.mark.parametrize("deployed", list(Fit))
def test_a_champion_that_knows_nothing_is_replaced_once(use_case: UseCase, deployed: Fit) -> None:
    played = LivePolicy(_plant(use_case, {0}), deployed).play(0)
    assert played.course.serving.tolist() == [0, 1, 1, 1, 1, 1]
    assert played.course.trainings == 1
    assert "promoted" in played.decisions["2013-04-01"]


def test_a_champion_that_is_off_is_recalibrated_and_not_retrained(use_case: UseCase) -> None:
    live = LivePolicy(_plant(use_case, set(), off=-0.3), Fit.JUDGED)
    played = live.play(0)
    assert played.course.trainings == 0
    assert played.intercepts[0] == 0
    assert played.intercepts[1] == pytest.approx(0.3, abs=0.1)
    assert "recalibrated" in played.decisions["2013-04-01"]
    untouched = LivePolicy(_plant(use_case, set()), Fit.JUDGED).play(0)
    assert untouched.intercepts == (0.0,) * WEEKS


def test_sabotage_without_the_dial_it_stays_off(use_case: UseCase) -> None:
    monitor = use_case.monitor.model_copy(update={"recalibration": None})
    matrix = _plant(use_case.model_copy(update={"monitor": monitor}), set(), off=-0.3)
    assert LivePolicy(matrix, Fit.JUDGED).play(0).intercepts == (0.0,) * WEEKS


def test_what_is_recalibrated_loses_less_than_what_is_not(use_case: UseCase) -> None:
    matrix = _plant(use_case, set(), off=-0.3)
    settings = use_case.monitor.recalibration
    assert settings is not None
    lines = {line["estimator"]: line["gains"] for line in recalibration.summarise(matrix, Fit.JUDGED, settings, [0])}
    losses = measure_losses(matrix, Fit.JUDGED, lambda label, score: lose_metric("log_loss", label, score))
    bare, ours = (
        recalibration.measure_recalibrated(matrix, Fit.JUDGED, estimate, settings.half_life_days)
        for name, estimate in recalibration.estimators(settings).items()
        if name in {"nothing", "intercept, shrunk by what days tell (ours)"}
    )
    assert np.allclose(bare[0], losses[0])
    assert (ours[0, 1:] < 0.995 * losses[0, 1:]).all()
    assert set(lines) == set(recalibration.estimators(settings))


def test_models_that_know_nothing_either_are_held(use_case: UseCase) -> None:
    live = LivePolicy(_plant(use_case, set(range(WEEKS))), Fit.JUDGED)
    course = live.play(0).course
    assert course.serving.tolist() == [0] * WEEKS
    assert course.trainings >= 1


def test_a_promotion_to_what_knows_nothing_is_surely_worse_and_one_away_from_it_is_not(use_case: UseCase) -> None:
    live = LivePolicy(_plant(use_case, {1}), Fit.JUDGED)
    assert live.is_surely_worse(0, 1) is True
    assert live.is_surely_worse(1, 2) is False
    assert live.is_surely_worse(0, 4) is None  # less than four weeks follow


def test_losses_are_those_of_the_models(use_case: UseCase) -> None:
    matrix = _plant(use_case, {0})
    rows = matrix.known(FIRST + WEEK, FIRST + 2 * WEEK)
    log_loss = measure_losses(matrix, Fit.JUDGED, lambda label, score: lose_metric("log_loss", label, score))
    assert log_loss[0, 1] > 1.1 * log_loss[1, 1]
    assert np.isnan(log_loss[1, 0])
    costs = measure_losses(matrix, Fit.JUDGED, lambda label, score: lose_costs(matrix.use_case, label, score))
    assert costs[0, 1] == np.count_nonzero(matrix.label[rows] == 0)  # it warns of all, and each in vain costs 1


def test_a_champion_that_does_as_on_its_holdout_has_no_excess(use_case: UseCase) -> None:
    matrix = _plant(use_case, set())
    excess = measure_excess(matrix, Fit.JUDGED, lambda label, score: lose_metric("log_loss", label, score))
    losses = measure_losses(matrix, Fit.JUDGED, lambda label, score: lose_metric("log_loss", label, score))
    assert np.all(np.abs(excess[0]) < 0.1 * losses[0])


def test_without_a_shift_psi_is_quiet(use_case: UseCase) -> None:
    live = LivePolicy(_plant(use_case, set()), Fit.JUDGED)
    assert watch_psi(live)(0) is None
    assert watch_psi(live, threshold=-1.0)(0) == 0


def test_a_model_is_not_asked_about_rows_that_it_may_have_learnt(use_case: UseCase) -> None:
    matrix = _plant(use_case, set())
    model = matrix.models[FIRST, Fit.JUDGED]
    assert len(model.score(matrix.known(model.cutoff, FIRST)))
    with pytest.raises(ValueError, match="before its cut-off"):
        model.score(matrix.known(model.cutoff - WEEK, FIRST))


def test_what_is_known_is_what_had_a_label_by_then(use_case: UseCase) -> None:
    matrix = _plant(use_case, set())
    end = FIRST + WEEK
    known = matrix.known(FIRST, end, end)
    assert (
        0
        < len(known)
        < len(matrix.known(FIRST, end))
        == matrix.between(FIRST, end).stop - matrix.between(FIRST, end).start
    )
    assert matrix.label_time[known].max() <= np.datetime64(end.replace(tzinfo=None), "us")


def test_a_detector_of_errors_is_set_off_where_they_jump(use_case: UseCase) -> None:
    pytest.importorskip("river", reason="the extra `bench` is not installed: `make policies` installs it")
    matrix = _plant(use_case, set())
    assert Detector("ADWIN", matrix, Fit.JUDGED, by_day=False).find_alarm(0) is None
    wrong = matrix.models[FIRST, Fit.JUDGED].members.copy()
    jump = matrix.between(FIRST + 3 * WEEK, FIRST + WEEKS * WEEK)
    wrong[:, jump] = 1 - wrong[:, jump]
    models = {**matrix.models, (FIRST, Fit.JUDGED): replace(matrix.models[FIRST, Fit.JUDGED], members=wrong)}
    jumped = replace(matrix, models=models)
    assert Detector("ADWIN", jumped, Fit.JUDGED, by_day=False).find_alarm(0) == 3
    assert Detector("ADWIN", jumped, Fit.JUDGED, by_day=True).find_alarm(0) is None  # forty means are too few for it
