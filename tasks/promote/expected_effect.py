"""How much better a candidate may be expected to be, and how likely it is a loss: given all effects so far. Pure.

An estimate from two weeks is the effect and the luck of these weeks. What candidates of this use case showed before
says how much of it is luck: true effects are draws of one normal distribution, each is measured with its own error, and
neither mean nor spread of the distribution is known. So all is averaged over the spreads that the effects measured so
far, this one among them, leave possible (the normal hierarchical model, flat in mean and spread: Rubin 1981, Journal of
Educational Statistics 6:377; Gelman 2006, Bayesian Analysis 1:515). A spread estimated by moments instead is zero as
often as not with ten effects, and then drew the one large gain towards the others (docs/decisions/0038).
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
    weights, means, variances = _given_each_spread([*known, measured])
    mean = float(weights @ means)
    return ExpectedEffect(
        mean=mean,
        deviation=float(np.sqrt(weights @ (variances + means**2) - mean**2)),
        chance_of_loss=float(weights @ t.cdf((-loss - means) / np.sqrt(variances), freedom)),
        from_effects=len(known),
    )


def _given_each_spread(effects: Sequence[MeasuredEffect]) -> tuple[NDArray[np.float64], ...]:
    """How possible each spread of a grid is, and mean and variance of the last effect given it: three of [spreads]."""
    value = np.array([effect.value for effect in effects])
    squared = np.array([effect.error for effect in effects]) ** 2
    spread = np.linspace(0, _WIDEST * (value.std() + np.sqrt(squared).mean()), _SPREADS)
    precision = 1 / (squared + spread[:, None] ** 2)  # [spreads, effects]
    total = precision.sum(axis=1)
    common = precision @ value / total
    log_likelihood = 0.5 * (
        np.log(precision).sum(axis=1) - np.log(total) - (precision * (value - common[:, None]) ** 2).sum(axis=1)
    )
    possible = np.exp(log_likelihood - log_likelihood.max())
    possible[[0, -1]] /= 2  # the trapezoid rule
    share = squared[-1] / (squared[-1] + spread**2)  # of the common mean in what is expected
    means = share * common + (1 - share) * value[-1]
    return possible / possible.sum(), means, (1 - share) * squared[-1] + share**2 / total
