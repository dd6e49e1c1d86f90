"""How much better a candidate may be expected to be, and how likely it is a loss. Pure.

An estimate from two weeks is the effect and the luck of these weeks. What candidates of this use case showed before
says how much of it is luck: their effects, each with its error, are draws of one distribution, whose mean and spread
follow by moments (DerSimonian and Laird 1986, Controlled Clinical Trials 7:177). It is the prior of the next one:
normal prior, normal estimate, so what is expected lies between the two, by how sure each is (empirical Bayes: Efron and
Morris 1975, JASA 70:311).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FEWEST_VERDICTS = 5  # before which a spread of effects cannot be told from their errors, and nothing is shrunk


@dataclass(frozen=True)
class MeasuredEffect:
    """A gain in units of the metric (positive: the candidate is better), and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class EffectPrior:
    """What an effect is before it is measured: mean and standard deviation, learnt from so many verdicts."""

    mean: float
    deviation: float
    verdicts: int


@dataclass(frozen=True, kw_only=True)
class ExpectedEffect:
    """The effect, given what was measured: mean and standard deviation, and the chance of a loss that matters."""

    mean: float
    deviation: float
    chance_of_loss: float


def learn_prior(past: Sequence[MeasuredEffect]) -> EffectPrior | None:
    """What earlier effects say of the next; None where they are too few. One without an error says nothing."""
    known = [effect for effect in past if effect.error > 0 and math.isfinite(effect.value)]
    if len(known) < FEWEST_VERDICTS:
        return None
    weights = [effect.error**-2 for effect in known]
    mean = _average(known, weights)
    excess = sum(w * (effect.value - mean) ** 2 for w, effect in zip(weights, known, strict=True)) - (len(known) - 1)
    scale = sum(weights) - sum(w**2 for w in weights) / sum(weights)
    between = max(0.0, excess / scale)
    weights = [1 / (effect.error**2 + between) for effect in known]
    return EffectPrior(
        mean=_average(known, weights), deviation=math.sqrt(between + 1 / sum(weights)), verdicts=len(known)
    )


def expect_effect(
    measured: MeasuredEffect, prior: EffectPrior | None, *, loss: float, freedom: float
) -> ExpectedEffect:
    """The effect to expect of what was measured over `freedom` + 1 blocks, and how likely it is a loss above `loss`.

    The chance is Student's, since the error is an estimate too.
    """
    from scipy.stats import t

    mean, deviation = measured.value, measured.error
    if prior is not None and deviation > 0:
        precisions = (deviation**-2, prior.deviation**-2)
        mean = (precisions[0] * mean + precisions[1] * prior.mean) / sum(precisions)
        deviation = sum(precisions) ** -0.5
    chance = float(t.cdf((-loss - mean) / deviation, freedom)) if deviation > 0 else float(mean < -loss)
    return ExpectedEffect(mean=mean, deviation=deviation, chance_of_loss=chance)


def _average(effects: Sequence[MeasuredEffect], weights: Sequence[float]) -> float:
    return sum(w * effect.value for w, effect in zip(weights, effects, strict=True)) / sum(weights)
