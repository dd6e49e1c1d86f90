"""One number on the logit: what it does to answers, and that it is learnt as fast as labels tell it, and no faster."""

import math

import numpy as np
import pytest

from models.recalibration import Recalibration, expected_gain, fit_intercept

HALF_LIFE, SPREAD = 28.0, 0.15


def to_chance(logit):
    return 1 / (1 + np.exp(-logit))


def world(seed, *, shift, days=30, rows_a_day=200, day_effect=0.0):
    """Answers, labels that come true by `shift` more, and ages; all rows of a day are off by something of its own."""
    draw = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), rows_a_day)
    logit = draw.normal(-1, 1, len(day))
    truth = to_chance(logit + shift + draw.normal(0, day_effect, days)[day])
    return to_chance(logit), (draw.random(len(day)) < truth).astype(float), day + 0.5


def fit(score, label, age, half_life=HALF_LIFE, spread=SPREAD):
    return fit_intercept(score, label, age, half_life_days=half_life, spread=spread)


def test_it_adds_to_the_logit_keeps_the_order_and_can_be_taken_back():
    score = np.array([0.0, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0])
    given = Recalibration(intercept=0.7).apply(score)
    inner = slice(1, -1)
    logit = np.log(given[inner] / (1 - given[inner])) - np.log(score[inner] / (1 - score[inner]))
    assert np.allclose(logit, 0.7, atol=1e-6)
    assert (given[0], given[-1]) == (0.0, 1.0)
    assert (np.diff(given) > 0).all()
    assert np.allclose(Recalibration(intercept=-0.7).apply(given), score, atol=1e-15)
    assert np.array_equal(Recalibration(intercept=0.0).apply(score), score)


def test_its_slope_is_that_of_what_it_does():
    score, step, recalibration = np.linspace(0.01, 0.99, 50), 1e-6, Recalibration(intercept=-0.4)
    numeric = (recalibration.apply(score + step) - recalibration.apply(score - step)) / (2 * step)
    assert np.allclose(recalibration.slope(score), numeric, atol=1e-8)


def test_it_comes_back_from_a_document_to_the_bit_and_nothing_else_does():
    recalibration = Recalibration(intercept=0.1 + 0.2)
    assert Recalibration.from_document(recalibration.to_document()) == recalibration
    for wrong in ({}, {"intercept": "1"}, {"intercept": math.nan}, {"intercept": 1.0, "slope": 1.0}, {"slope": 1.0}):
        with pytest.raises(ValueError, match="no recalibration"):
            Recalibration.from_document(wrong)


def test_of_many_rows_that_err_each_for_itself_the_shift_is_found():
    fitted = fit(*world(1, shift=0.3, days=60, rows_a_day=2000))
    assert fitted.value == pytest.approx(0.3, abs=3 * fitted.standard_error)
    assert fitted.standard_error < 0.02
    assert fitted.dispersion < 1.5
    assert (fitted.rows, fitted.days) == (120_000, 60)


def test_without_rows_nothing_is_added_and_of_one_day_next_to_nothing_is_known():
    nothing = fit(*(np.zeros(0),) * 3)
    assert (nothing.value, nothing.standard_error, nothing.rows) == (0.0, SPREAD, 0)
    one_day = fit(*world(1, shift=1.0, days=1, rows_a_day=5000))
    assert 0 < one_day.value < 0.02
    assert one_day.standard_error == pytest.approx(SPREAD, rel=0.02)


def test_labels_that_are_all_alike_come_to_a_finite_number_far_beyond_what_is_usual():
    score, _, age = world(1, shift=0.0, days=20)
    up, down = (fit(score, np.full(len(score), label), age).value for label in (1.0, 0.0))
    assert -10 < down < -10 * SPREAD
    assert 10 > up > 10 * SPREAD


def test_days_that_err_together_count_for_as_little_as_they_tell():
    calm, restless = (fit(*world(3, shift=0.3, day_effect=effect)) for effect in (0.0, 0.5))
    assert calm.dispersion < 2
    assert restless.dispersion > 5
    assert restless.standard_error > 1.5 * calm.standard_error
    blind = fit_as_if_rows_erred_alone(*world(3, shift=0.3, day_effect=0.5))
    assert restless.standard_error > 1.5 * blind


def fit_as_if_rows_erred_alone(score, label, age):
    """Sabotage: a day of its own for each row; the standard error that comes of it."""
    draw = np.random.default_rng(0)
    return fit(score, label, draw.permutation(len(age)) / len(age) * age.max()).standard_error


@pytest.mark.parametrize("day_effect", [0.0, 0.4])
def test_its_standard_error_is_what_it_is_off_by(day_effect):
    """300 worlds whose shift is drawn as is expected beforehand: nine in ten lie within 1.645 standard errors."""
    draw, inside = np.random.default_rng(7), 0
    for seed in range(300):
        shift = draw.normal(0, SPREAD)
        fitted = fit(*world(seed, shift=shift, days=25, rows_a_day=60, day_effect=day_effect), half_life=1e6)
        inside += abs(fitted.value - shift) < 1.645 * fitted.standard_error
    assert 0.85 <= inside / 300 <= 0.95


def test_the_newest_days_count_most():
    old, new = world(1, shift=-0.3), world(2, shift=0.3)
    score, label = (np.concatenate([new[place], old[place]]) for place in (0, 1))
    age = np.concatenate([new[2], old[2] + 60])
    assert fit(score, label, age).value > 0.1
    assert fit(score, label, age, half_life=1e6).value == pytest.approx(0, abs=0.05)


def test_what_it_is_expected_to_save_is_saved_where_it_is_right():
    score, label, _ = world(5, shift=0.3, days=200, rows_a_day=1000)

    def lose(intercept):
        given = Recalibration(intercept=intercept).apply(score)
        return -float(np.mean(label * np.log(given) + (1 - label) * np.log(1 - given)))

    assert expected_gain(score, 0.0, 0.3) == pytest.approx(lose(0.0) - lose(0.3), abs=5e-4)
    assert expected_gain(score, 0.5, 0.3) == pytest.approx(lose(0.5) - lose(0.3), abs=5e-4)
    assert expected_gain(score, 0.3, 0.3) == 0
    assert expected_gain(score, 0.0, 0.3) > 0.005
