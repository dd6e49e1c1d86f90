import math

import numpy as np
import pytest
from scipy.integrate import dblquad, quad
from scipy.stats import t

from tasks.promote.expected_effect import FEWEST_EFFECTS, MeasuredEffect, expect_effect, expect_parts


def test_it_is_what_integrating_over_mean_and_spread_gives() -> None:
    """The model written out for effects in units of their errors, and integrated by a library over both unknowns."""
    past = [MeasuredEffect(v * e, e) for v, e in ((0.1, 1.0), (1.3, 0.8), (2.0, 1.1), (0.4, 0.5), (3.1, 1.5))]
    new = MeasuredEffect(2.5 * 0.7, 0.7)
    ratios = np.array([e.value / e.error for e in (*past, new)])

    def likelihood(mean: float, spread: float) -> float:
        variance = 1 + spread**2
        return math.exp(-float(((ratios - mean) ** 2).sum()) / (2 * variance)) * variance ** (-len(ratios) / 2)

    def expected(mean: float, spread: float) -> float:
        share = 1 / (1 + spread**2)
        return new.error * (share * mean + (1 - share) * ratios[-1])

    widest = 3 * (ratios.std() + 1)
    total, _ = dblquad(likelihood, 0, widest, -15, 15, epsabs=1e-7)
    first, _ = dblquad(lambda m, s: expected(m, s) * likelihood(m, s), 0, widest, -15, 15, epsabs=1e-7)
    found = expect_effect(new, past, loss=0.0, freedom=13)
    assert found.mean == pytest.approx(first / total, rel=0.001)
    assert found.from_effects == 5


def test_too_few_effects_or_such_without_an_error_draw_nothing_anywhere() -> None:
    some = [MeasuredEffect(0.001 * place, 0.002) for place in range(FEWEST_EFFECTS)]
    new = MeasuredEffect(0.01, 0.002)
    for past in ([], some[1:], [*some[1:], MeasuredEffect(9.0, 0.0), MeasuredEffect(math.nan, 1.0)]):
        alone = expect_effect(new, past, loss=0.0005, freedom=13)
        assert (alone.mean, alone.deviation, alone.from_effects) == (0.01, 0.002, 0)
        assert alone.chance_of_loss == pytest.approx(t.cdf(-0.0105 / 0.002, 13))
    assert expect_effect(new, some, loss=0.0005, freedom=13).from_effects == FEWEST_EFFECTS


def test_what_is_expected_lies_between_what_was_seen_before_and_now_by_how_sure_each_is() -> None:
    equals = [MeasuredEffect(value, 0.001) for value in (0.001, -0.001, 0.0005, -0.0005, 0.0, 0.0002, -0.0002, 0.0)]
    doubtful = expect_effect(MeasuredEffect(0.006, 0.004), equals, loss=0.0005, freedom=13)
    sure = expect_effect(MeasuredEffect(0.006, 0.0001), equals, loss=0.0005, freedom=13)
    assert 0 < doubtful.mean < 0.004
    assert doubtful.chance_of_loss > 0.1
    assert sure.mean == pytest.approx(0.006, rel=0.02)
    assert sure.chance_of_loss < 0.01


def test_a_gain_as_none_before_is_not_taken_for_luck() -> None:
    """By a spread of moments, which is zero here, it would be drawn down to a seventh, and held."""
    small = [MeasuredEffect(value, 0.002) for value in (0.001, 0.002, -0.001, 0.0, 0.001, 0.0)]
    found = expect_effect(MeasuredEffect(0.015, 0.002), small, loss=0.0005, freedom=13)
    assert found.mean > 0.012
    assert found.chance_of_loss < 0.01


def test_the_chance_of_a_loss_is_as_often_a_loss() -> None:
    rng, told, lost = np.random.default_rng(1), [], []
    for _ in range(150):
        errors = rng.uniform(0.001, 0.004, 40)
        true = errors * rng.normal(0.4, 1.2, 40)
        seen = [MeasuredEffect(float(rng.normal(a, e)), float(e)) for a, e in zip(true, errors, strict=True)]
        for place in range(10, 40):
            told.append(expect_effect(seen[place], seen[:place], loss=0.0005, freedom=1000).chance_of_loss)
            lost.append(true[place] < -0.0005)
    for low, high in ((0.05, 0.15), (0.15, 0.25), (0.25, 0.4)):
        near = [one for chance, one in zip(told, lost, strict=True) if low < chance < high]
        assert np.mean(near) == pytest.approx((low + high) / 2, abs=0.05)


def test_an_effect_without_an_error_is_what_it_is() -> None:
    assert expect_effect(MeasuredEffect(0.0, 0.0), [], loss=0.0005, freedom=13).chance_of_loss == 0.0
    assert expect_effect(MeasuredEffect(-1.0, 0.0), [], loss=0.0005, freedom=13).chance_of_loss == 1.0


def test_parts_are_what_integrating_over_their_spread_gives() -> None:
    parts = [MeasuredEffect(v, e) for v, e in ((0.004, 0.002), (-0.02, 0.01), (0.008, 0.003), (0.001, 0.006))]
    whole, freedom = MeasuredEffect(0.003, 0.0), [13, 13, 12, 9]

    odd = 10 * 0.01  # ten losses, one in twenty

    def likely(part: MeasuredEffect, width: float) -> float:
        variance = part.error**2 + width**2
        return math.exp(-0.5 * (part.value - whole.value) ** 2 / variance) / math.sqrt(variance * 1e6)

    def mixed(part: MeasuredEffect, spread: float) -> list[float]:
        return [0.95 * likely(part, spread), 0.05 * likely(part, math.hypot(spread, odd))]

    def likelihood(spread: float) -> float:
        return math.prod(sum(mixed(part, spread)) for part in parts) * math.exp(-0.5 * (spread / 0.01) ** 2)

    def weighed(spread: float, place: int) -> float:
        part, widths = parts[place], (spread, math.hypot(spread, odd))
        shares = [width**2 / (width**2 + part.error**2) for width in widths]
        among = mixed(part, spread)
        share = sum(a * b for a, b in zip(among, shares, strict=True)) / sum(among)
        return likelihood(spread) * (whole.value + share * (part.value - whole.value))

    apart = np.array([p.value - whole.value for p in parts])
    widest = 3 * (np.sqrt((apart**2).mean()) + np.median([p.error for p in parts]))
    total, _ = quad(likelihood, 0, widest)
    found = expect_parts(parts, whole, loss=0.01, freedom=freedom)
    for place, part in enumerate(found):
        assert part.mean == pytest.approx(quad(weighed, 0, widest, args=(place,))[0] / total, rel=0.01)


def test_what_a_part_seems_to_lose_is_drawn_to_the_whole_unless_it_is_sure() -> None:
    whole = MeasuredEffect(0.004, 0.001)
    alike = [MeasuredEffect(0.004 + 0.0005 * n, 0.004) for n in range(-3, 4)]
    doubtful, sure = MeasuredEffect(-0.02, 0.012), MeasuredEffect(-0.02, 0.001)
    freedom = [13] * 8
    *_, drawn = expect_parts([*alike, doubtful], whole, loss=0.01, freedom=freedom)
    *_, kept = expect_parts([*alike, sure], whole, loss=0.01, freedom=freedom)
    assert -0.01 < drawn.mean < 0.004
    assert drawn.chance_of_loss < 0.3
    assert kept.mean == pytest.approx(-0.02, rel=0.05)
    assert kept.chance_of_loss > 0.99


def test_parts_on_which_both_answer_the_same_lose_nothing() -> None:
    for parts in ([MeasuredEffect(0.0, 0.0)] * 3, [MeasuredEffect(0.0, 0.0), MeasuredEffect(-0.03, 0.001)]):
        same, *_ = expect_parts(parts, MeasuredEffect(0.0, 0.0), loss=0.01, freedom=[13] * len(parts))
        assert same.mean == pytest.approx(0.0, abs=1e-9)
        assert same.chance_of_loss < 1e-6
    assert expect_parts([], MeasuredEffect(0.0, 0.0), loss=0.01, freedom=[]) == []
