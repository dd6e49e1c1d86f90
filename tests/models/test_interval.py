"""A split conformal interval covers what it says, on each side and for small and large answers alike."""

import json
from dataclasses import replace

import numpy as np
import pytest

from models.interval import ConformalInterval, calibrate_interval, least_calibration_rows


def draw(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Answers and labels: errors grow with the answer, and are skewed, as those of durations are."""
    score = rng.uniform(2, 60, rows)
    return score, score + 0.2 * score * (rng.exponential(1, rows) - np.log(2))


def calibrated(rng: np.random.Generator, *, rows: int = 500, coverage: float = 0.9) -> ConformalInterval:
    (seen_score, seen_label), (unseen_score, unseen_label) = draw(4000, rng), draw(rows, rng)
    return calibrate_interval(
        seen_score=seen_score, seen_label=seen_label, unseen_score=unseen_score, unseen_label=unseen_label,
        coverage=coverage,
    )  # fmt: skip


def covered(interval: ConformalInterval, score: np.ndarray, label: np.ndarray) -> float:
    lower, upper = interval.bounds(score)
    return float(np.mean((lower <= label) & (label <= upper)))


@pytest.mark.parametrize(("rows", "coverage"), [(19, 0.9), (60, 0.8), (500, 0.9), (99, 0.98)])
def test_on_average_over_calibrations_as_much_is_covered_as_declared_and_little_more(rows, coverage):
    rng = np.random.default_rng(rows)
    found = [covered(calibrated(rng, rows=rows, coverage=coverage), *draw(2000, rng)) for _ in range(300)]
    error = 3 * np.std(found) / np.sqrt(len(found))
    assert coverage - error <= np.mean(found) <= coverage + 2 / (rows + 1) + error


def test_each_side_misses_half_of_what_may_be_missed():
    rng = np.random.default_rng(1)
    interval, (score, label) = calibrated(rng, rows=5000), draw(50_000, rng)
    lower, upper = interval.bounds(score)
    assert np.mean(label < lower) == pytest.approx(0.05, abs=0.01)
    assert np.mean(label > upper) == pytest.approx(0.05, abs=0.01)
    assert interval.high > -interval.low, "the errors are skewed"


def test_small_and_large_answers_are_covered_alike_which_one_width_for_all_does_not_do():
    rng = np.random.default_rng(2)
    interval, (score, label) = calibrated(rng, rows=5000), draw(50_000, rng)
    flat = replace(interval, knots=(30.0,), scales=(float(np.abs(label - score).mean()),))
    errors = (label - score) / flat.scales[0]
    flat = replace(flat, low=float(np.quantile(errors, 0.05)), high=float(np.quantile(errors, 0.95)))
    small, large = score < 10, score > 50
    for part in (small, large):
        assert covered(interval, score[part], label[part]) == pytest.approx(0.9, abs=0.03)
    assert covered(flat, score[small], label[small]) > 0.99
    assert covered(flat, score[large], label[large]) < 0.85


def test_sabotage_calibrated_on_what_was_learnt_too_little_is_covered():
    """A fit that learnt its rows by heart errs on them by half of what it errs by elsewhere."""
    rng = np.random.default_rng(3)
    (seen, seen_label), (score, label) = draw(4000, rng), draw(20_000, rng)
    seen = (seen + seen_label) / 2
    found = calibrate_interval(
        seen_score=seen, seen_label=seen_label, unseen_score=seen, unseen_label=seen_label, coverage=0.9
    )
    assert covered(found, score, label) < 0.8


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_fewer_rows_than_a_side_needs_are_refused_with_their_number_and_one_more_is_enough(coverage):
    rng, least = np.random.default_rng(4), least_calibration_rows(coverage)
    assert np.isfinite(calibrated(rng, rows=least, coverage=coverage).high)
    with pytest.raises(ValueError, match=rf"at least {least} rows that the fit did not see, got {least - 1}"):
        calibrated(rng, rows=least - 1, coverage=coverage)


def test_an_answer_lies_in_its_own_interval_however_far_off_all_answers_were():
    score, label = draw(500, np.random.default_rng(5))
    for shift in (-100, 100):
        found = calibrate_interval(
            seen_score=score, seen_label=label, unseen_score=score, unseen_label=label + shift, coverage=0.9
        )
        lower, upper = found.bounds(score)
        assert ((lower <= score) & (score <= upper)).all()


@pytest.mark.parametrize("label", [np.full(400, 7.0), np.arange(400.0)], ids=["one answer", "each its own"])
def test_a_fit_that_never_errs_has_an_interval_all_the_same(label):
    found = calibrate_interval(
        seen_score=label, seen_label=label, unseen_score=label, unseen_label=label + 1, coverage=0.9
    )
    assert found.bounds(label)[1] == pytest.approx(label + 1)
    assert ConformalInterval.from_document(found.to_document()) == found


def test_of_one_answer_bounds_are_to_the_bit_what_they_are_among_others():
    rng = np.random.default_rng(6)
    interval, (score, _) = calibrated(rng), draw(300, rng)
    alone = np.array([interval.bounds(score[i : i + 1]) for i in range(300)])[:, :, 0].T
    assert (alone == np.array(interval.bounds(score))).all()


def test_as_json_it_comes_back_to_the_bit():
    interval = calibrated(np.random.default_rng(7))
    assert ConformalInterval.from_document(json.loads(json.dumps(interval.to_document()))) == interval


@pytest.mark.parametrize(
    "change",
    [
        {"coverage": 1.0}, {"low": 0.1}, {"high": -0.1}, {"high": float("nan")}, {"scales": [0.0, 1.0]},
        {"knots": [2.0, 1.0]}, {"knots": [1.0]}, {"knots": [], "scales": []}, {"knots": 3.0}, {"width": 1.0},
        {"low": "wide"},
    ],
)  # fmt: skip
def test_what_no_calibration_could_have_made_is_refused(change):
    good = {"coverage": 0.9, "rows": 100, "low": -1.0, "high": 2.0, "knots": [1.0, 2.0], "scales": [1.0, 1.5]}
    assert ConformalInterval.from_document(good).rows == 100
    with pytest.raises(ValueError, match="no interval"):
        ConformalInterval.from_document(good | change)
