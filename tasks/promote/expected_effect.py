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
_ODD, _ODD_WIDTH = 0.05, 10.0
_NO_ERROR = 1e-12  # of parts on which both models answer the same


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


def expect_parts(
    measured: Sequence[MeasuredEffect], whole: MeasuredEffect, *, loss: float, freedom: Sequence[int]
) -> list[ExpectedEffect]:
    """The effects to expect on parts of the rows, each drawn towards that of the `whole` by how sure it is.

    True effects of parts are draws around the whole's, of a spread that is not known: all is averaged over those that
    the parts leave possible, so that asking about many needs no other price. One in twenty is odd, as far off as
    `_ODD_WIDTH` losses, or one bad part among many that are alike would be taken for luck. `freedom` is that of each
    error. `loss` is above 0, and nothing measured is NaN.
    """
    from scipy.stats import t

    if not measured:
        return []
    seen, error = (np.array(values) for values in zip(*((part.value, part.error) for part in measured), strict=True))
    apart, own = seen - whole.value, np.maximum(error, _NO_ERROR) ** 2
    spread = np.linspace(0, _WIDEST * (np.sqrt(np.mean(apart**2)) + np.median(error)) + _NO_ERROR, _SPREADS)
    widths = np.sqrt(spread[:, None] ** 2 + np.array([0.0, (_ODD_WIDTH * loss) ** 2]))  # [spreads, alike or odd]
    variance = own + widths[:, :, None] ** 2  # [spreads, alike or odd, parts]
    likelihood = np.log([[1 - _ODD], [_ODD]]) - 0.5 * (np.log(variance) + apart**2 / variance)
    either = np.logaddexp.reduce(likelihood, axis=1)
    prior = -0.5 * (spread / loss) ** 2  # parts that are not odd differ by what is feared, or less
    possible = _normalise(either.sum(axis=1) + prior)[:, None, None] * np.exp(likelihood - either[:, None, :])
    share = 1 - own / variance  # of what was measured in what is expected
    means, variances = whole.value + share * apart, share * own + ((1 - share) * whole.error) ** 2
    chances = t.cdf((-loss - means) / np.sqrt(np.maximum(variances, _NO_ERROR**2)), np.asarray(freedom))
    mean, chance, square = ((possible * of).sum(axis=(0, 1)) for of in (means, chances, variances + means**2))
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    return [
        ExpectedEffect(mean=float(m), deviation=float(d), chance_of_loss=float(c), from_effects=len(measured))
        for m, d, c in zip(mean, deviation, chance, strict=True)
    ]


def _normalise(log_likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    """How possible each point of a grid is, by the trapezoid rule."""
    possible = np.exp(log_likelihood - log_likelihood.max())
    possible[[0, -1]] /= 2
    normalised: NDArray[np.float64] = possible / possible.sum()
    return normalised


def _given_each_spread(ratios: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """How possible each spread of a grid is, and mean and variance of the last ratio given it: three of [spreads].

    Ratios [n] are effects by their errors, each measured with an error of 1.
    """
    spread = np.linspace(0, _WIDEST * (ratios.std() + 1), _SPREADS)
    variance, count, common = 1 + spread**2, len(ratios), ratios.mean()
    log_likelihood = -0.5 * ((count - 1) * np.log(variance) + ((ratios - common) ** 2).sum() / variance)
    share = 1 / variance  # of the common mean in what is expected
    means = share * common + (1 - share) * ratios[-1]
    return _normalise(log_likelihood), means, (1 - share) + share / count
