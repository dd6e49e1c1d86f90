import math

import numpy as np
import pytest

from tasks.promote.expected_effect import (
    FEWEST_VERDICTS,
    EffectPrior,
    MeasuredEffect,
    expect_effect,
    learn_prior,
)


def draw(rng: np.random.Generator, *, mean: float, between: float, count: int) -> list[MeasuredEffect]:
    errors = rng.uniform(0.001, 0.003, count)
    return [MeasuredEffect(float(rng.normal(rng.normal(mean, between), e)), float(e)) for e in errors]


def test_mean_and_spread_of_earlier_effects_are_found_without_their_errors() -> None:
    learnt = [learn_prior(draw(np.random.default_rng(n), mean=0.004, between=0.003, count=60)) for n in range(40)]
    assert np.mean([prior.mean for prior in learnt if prior]) == pytest.approx(0.004, abs=0.0003)
    assert np.mean([prior.deviation for prior in learnt if prior]) == pytest.approx(0.003, rel=0.15)


def test_the_moments_are_those_of_the_published_estimator() -> None:
    """DerSimonian and Laird's, written out for five effects."""
    past = [MeasuredEffect(v, e) for v, e in ((1, 1), (3, 1), (4, 1), (1, 2), (3, 2))]
    weights = [1, 1, 1, 0.25, 0.25]
    mean = sum(w * m.value for w, m in zip(weights, past, strict=True)) / 3.5
    q = sum(w * (m.value - mean) ** 2 for w, m in zip(weights, past, strict=True))
    between = max(0.0, (q - 4) / (3.5 - 3.125 / 3.5))
    new = [1 / (m.error**2 + between) for m in past]
    prior = learn_prior(past)
    assert prior is not None
    assert prior.verdicts == 5
    assert prior.mean == pytest.approx(sum(w * m.value for w, m in zip(new, past, strict=True)) / sum(new))
    assert prior.deviation == pytest.approx(math.sqrt(between + 1 / sum(new)))


def test_too_few_verdicts_or_such_without_an_error_shrink_nothing() -> None:
    some = draw(np.random.default_rng(0), mean=0, between=1, count=FEWEST_VERDICTS)
    assert learn_prior(some) is not None
    assert learn_prior(some[1:]) is None
    assert learn_prior([*some[1:], MeasuredEffect(9.0, 0.0), MeasuredEffect(math.nan, 1.0)]) is None
    alone = expect_effect(MeasuredEffect(0.01, 0.002), None, loss=0.0005, freedom=13)
    assert (alone.mean, alone.deviation) == (0.01, 0.002)


def test_what_is_expected_lies_between_what_was_seen_before_and_now_by_how_sure_each_is() -> None:
    prior = EffectPrior(mean=0.0, deviation=0.001, verdicts=20)
    doubtful = expect_effect(MeasuredEffect(0.008, 0.004), prior, loss=0.0005, freedom=13)
    sure = expect_effect(MeasuredEffect(0.008, 0.0001), prior, loss=0.0005, freedom=13)
    assert doubtful.mean == pytest.approx(0.008 / 17)
    assert sure.mean == pytest.approx(0.008, rel=0.02)
    assert doubtful.chance_of_loss > 0.1 > sure.chance_of_loss


def test_the_chance_of_a_loss_is_as_often_a_loss() -> None:
    """Of candidates whose chance of a loss is about a fifth, about a fifth lose, where prior and error are right."""
    rng, told, lost = np.random.default_rng(1), [], []
    prior = EffectPrior(mean=0.002, deviation=0.003, verdicts=50)
    for _ in range(20_000):
        true, error = rng.normal(prior.mean, prior.deviation), rng.uniform(0.001, 0.004)
        found = expect_effect(MeasuredEffect(rng.normal(true, error), error), prior, loss=0.0005, freedom=1000)
        told.append(found.chance_of_loss)
        lost.append(true < -0.0005)
    near = [one for chance, one in zip(told, lost, strict=True) if 0.15 < chance < 0.25]
    assert np.mean(near) == pytest.approx(0.2, abs=0.03)


def test_an_effect_without_an_error_is_what_it_is() -> None:
    assert expect_effect(MeasuredEffect(0.0, 0.0), None, loss=0.0005, freedom=13).chance_of_loss == 0.0
    assert expect_effect(MeasuredEffect(-1.0, 0.0), None, loss=0.0005, freedom=13).chance_of_loss == 1.0
