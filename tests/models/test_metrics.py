import numpy as np
import pytest

from models.metrics import METRICS, compute_metric, compute_metrics, to_loss, weigh_metric
from pipeline import fields


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(1)
    score = np.round(draw.random(500), 2)  # rounded, so that there are ties
    return score, (draw.random(500) < score).astype(float)


def test_metrics_equal_their_definitions_ties_included(rows):
    score, label = rows
    positive, negative = score[label == 1], score[label == 0]
    pairs = positive[:, None] - negative[None, :]
    assert compute_metric("auc", score, label) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-12)
    assert compute_metric("brier", score, label) == pytest.approx(np.mean((score - label) ** 2))
    thresholds = np.unique(score)[::-1]
    recall = [label[score >= t].sum() / label.sum() for t in thresholds]
    precision = [label[score >= t].mean() for t in thresholds]
    assert compute_metric("pr_auc", score, label) == pytest.approx(np.sum(np.diff([0, *recall]) * precision), abs=1e-12)
    assert compute_metric("calibration_gap", score, label) == abs(compute_metric("bias", score, label))


def test_a_certain_and_wrong_probability_costs_much_but_not_infinitely():
    assert compute_metric("log_loss", [0.0, 1.0], [1.0, 0.0]) == pytest.approx(16.118, abs=1e-3)


def test_a_perfect_score_is_best_and_a_reversed_one_worst(rows):
    _, label = rows
    assert compute_metric("auc", label, label) == 1.0
    assert compute_metric("auc", 1 - label, label) == 0.0


@pytest.mark.parametrize(
    ("score", "label"), [([np.nan], [1.0]), ([0.5], [np.inf]), ([], []), ([0.5, 0.5], [1.0]), ([0.5], [0.3])]
)
def test_what_cannot_be_measured_is_an_error_not_a_number(score, label):
    with pytest.raises(ValueError, match="log_loss"):
        compute_metric("log_loss", score, label)


def test_ranking_one_class_is_an_error_and_left_out_when_all_metrics_are_asked():
    with pytest.raises(ValueError, match="both classes"):
        compute_metric("auc", [0.1, 0.2], [0.0, 0.0])
    assert set(compute_metrics("binary", [0.1, 0.2], [0.0, 0.0])) == {"log_loss", "brier", "calibration_gap"}


def test_turned_into_a_loss_every_metric_is_smaller_for_better():
    assert all(to_loss(m, 2.0) == (-2.0 if METRICS[m].is_ranking else 2.0) for m in METRICS)
    assert to_loss("bias", -3.0) == 3.0


def test_params_yaml_may_name_exactly_the_metrics_there_are():
    of_kind = {kind: tuple(n for n, m in METRICS.items() if m.kind == kind) for kind in fields.METRICS}
    assert of_kind == fields.METRICS
    assert {name for name, metric in METRICS.items() if metric.is_ranking} == fields.RANKINGS
    assert {name for name, metric in METRICS.items() if metric.is_share} == fields.SHARES


def test_an_unknown_metric_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no such metric: 'f1'; expected log_loss, auc"):
        weigh_metric("f1", np.zeros(1), np.zeros(1), np.zeros(1, np.intp), 1)


def test_the_bias_has_a_sign_where_a_model_is_described_and_none_where_the_gate_compares():
    score, label = np.array([1.0, 2.0]), np.array([2.0, 4.0])
    assert compute_metric("bias", score, label) == -1.5
    assert weigh_metric("bias", score, label, np.zeros(2, np.intp), 1)(np.ones((1, 1))) == [1.5]


def test_rmsle_is_of_logarithms_and_takes_a_score_below_zero_for_zero():
    assert compute_metric("rmsle", [1.0, 3.0], [1.0, 1.0]) == pytest.approx(np.log(2) / np.sqrt(2))
    assert compute_metric("rmsle", [-5.0], [0.0]) == 0.0


def test_rmsle_of_labels_below_zero_is_an_error_and_left_out_when_all_metrics_are_asked():
    with pytest.raises(ValueError, match="labels must not be below 0"):
        compute_metric("rmsle", [1.0], [-1.0])
    assert set(compute_metrics("regression", [1.0, 2.0], [-1.0, 0.0])) == {"mae", "rmse", "bias"}
    assert set(compute_metrics("regression", [1.0, 2.0], [1.0, 0.0])) == {"mae", "rmse", "rmsle", "bias"}
