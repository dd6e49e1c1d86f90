import numpy as np
import pytest

from models.metrics import METRICS, as_loss, higher_is_better, measure, measure_all


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(1)
    score = np.round(draw.random(500), 2)  # rounded, so that there are ties
    return score, (draw.random(500) < score).astype(float)


def test_metrics_equal_their_definitions_ties_included(rows):
    score, label = rows
    positive, negative = score[label == 1], score[label == 0]
    pairs = positive[:, None] - negative[None, :]
    assert measure("auc", score, label) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-12)
    assert measure("brier", score, label) == pytest.approx(np.mean((score - label) ** 2))
    thresholds = np.unique(score)[::-1]
    recall = [label[score >= t].sum() / label.sum() for t in thresholds]
    precision = [label[score >= t].mean() for t in thresholds]
    assert measure("pr_auc", score, label) == pytest.approx(np.sum(np.diff([0, *recall]) * precision), abs=1e-12)
    assert measure("calibration_gap", score, label) == abs(measure("bias", score, label))


def test_a_certain_and_wrong_probability_costs_much_but_not_infinitely():
    assert measure("log_loss", [0.0, 1.0], [1.0, 0.0]) == pytest.approx(16.118, abs=1e-3)


def test_a_perfect_score_is_best_and_a_reversed_one_worst(rows):
    _, label = rows
    assert measure("auc", label, label) == 1.0
    assert measure("auc", 1 - label, label) == 0.0


@pytest.mark.parametrize(
    ("score", "label"), [([np.nan], [1.0]), ([0.5], [np.inf]), ([], []), ([0.5, 0.5], [1.0]), ([0.5], [0.3])]
)
def test_what_cannot_be_measured_is_an_error_not_a_number(score, label):
    with pytest.raises(ValueError, match="log_loss"):
        measure("log_loss", score, label)


def test_ranking_one_class_is_an_error_and_left_out_when_all_metrics_are_asked():
    with pytest.raises(ValueError, match="both classes"):
        measure("auc", [0.1, 0.2], [0.0, 0.0])
    assert set(measure_all("binary", [0.1, 0.2], [0.0, 0.0])) == {"log_loss", "brier", "calibration_gap"}


def test_turned_into_a_loss_every_metric_is_smaller_for_better():
    assert all(as_loss(m, 2.0) == (-2.0 if higher_is_better(m) else 2.0) for m in METRICS)
    assert as_loss("bias", -3.0) == 3.0
