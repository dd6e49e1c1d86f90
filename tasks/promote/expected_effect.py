"""How much better a candidate may be expected to be, and how likely it is a loss: given all effects so far. Pure.

An estimate from two weeks is the effect and the luck of these weeks. What candidates of this use case showed before
says how much of it is luck. Models that are much alike differ little, in effect and in its error, so what is taken for
draws of one normal distribution are effects in units of their errors. Neither its mean nor its spread is known: all is
averaged over those that the effects measured so far, this one among them, leave possible (the normal hierarchical
model, flat in mean and spread: Rubin 1981, Journal of Educational Statistics 6:377; Gelman 2006, Bayesian Analysis
1:515). What other ways came to stands in docs/decisions/0038.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST_EFFECTS = 5  # before which nothing is known of the spread, and nothing is drawn anywhere
_SPREADS = 61  # points of the grid over which the spread is averaged
_WIDEST = 3.0  # the grid's end, in spreads as they look


@dataclass(frozen=True)
class MeasuredEffect:
    """A gain in units of the metric (positive: the candidate is better), and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class ExpectedEffect:
    """The effect, given what was measured: mean and standard deviation, and the chance of a loss that matters.

    `from_effects` earlier ones were drawn upon; 0: it is what was measured.
    """

    mean: float
    deviation: float
    chance_of_loss: float
    from_effects: int


def expect_effect(
    measured: MeasuredEffect, past: Sequence[MeasuredEffect], *, loss: float, freedom: float
) -> ExpectedEffect:
    """The effect to expect of what was measured over `freedom` + 1 blocks, and how likely it is a loss above `loss`.

    Earlier effects without an error say nothing. The chance is Student's, since the error is an estimate too.
    """
    from scipy.stats import t

    known = [effect for effect in past if effect.error > 0 and np.isfinite(effect.value)]
    if measured.error <= 0:
        return ExpectedEffect(
            mean=measured.value, deviation=0.0, chance_of_loss=float(measured.value < -loss), from_effects=0
        )
    if len(known) < FEWEST_EFFECTS:
        chance = float(t.cdf((-loss - measured.value) / measured.error, freedom))
        return ExpectedEffect(mean=measured.value, deviation=measured.error, chance_of_loss=chance, from_effects=0)
    ratios = np.array([effect.value / effect.error for effect in (*known, measured)])
    weights, means, variances = _given_each_spread(ratios)
    mean = float(weights @ means)
    return ExpectedEffect(
        mean=measured.error * mean,
        deviation=measured.error * float(np.sqrt(weights @ (variances + means**2) - mean**2)),
        chance_of_loss=float(weights @ t.cdf((-loss / measured.error - means) / np.sqrt(variances), freedom)),
        from_effects=len(known),
    )


def _given_each_spread(ratios: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """How possible each spread of a grid is, and mean and variance of the last ratio given it: three of [spreads].

    Ratios [n] are effects by their errors, each measured with an error of 1.
    """
    spread = np.linspace(0, _WIDEST * (ratios.std() + 1), _SPREADS)
    variance, count, common = 1 + spread**2, len(ratios), ratios.mean()
    log_likelihood = -0.5 * ((count - 1) * np.log(variance) + ((ratios - common) ** 2).sum() / variance)
    possible = np.exp(log_likelihood - log_likelihood.max())
    possible[[0, -1]] /= 2  # the trapezoid rule
    share = 1 / variance  # of the common mean in what is expected
    means = share * common + (1 - share) * ratios[-1]
    return possible / possible.sum(), means, (1 - share) + share / count
