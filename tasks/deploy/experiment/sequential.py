"""What two versions' decisions cost, and what may be concluded at any look: pure, so that every case is a test.

**Estimate.** Mean cost per event of the treatment minus that of the control. Every event counts by one over the chance
that it had, when it was asked, to get the version that answered it (Horvitz-Thompson weights, normalised per version:
Hajek 1971). With a fixed share that is the plain difference of means. With a share that moves (Thompson sampling) the
plain difference would compare a stormy day of one version with a calm day of the other; weighted, both stand for the
same events (Ham, Bojinov, Lindon, Tingley 2022, Design-based confidence sequences, arXiv:2210.08639).

**Unit.** The gateway lets an entity (or a request, where none was named) keep its version, so events that share an
entity or a request are no independent draws: the variance is summed over such units, not over events.

**Any time.** The interval is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
(2021, Time-uniform central limit theory and asymptotic confidence sequences, arXiv:2103.06476, theorem 2.2): Robbins'
normal mixture, which covers at all looks together, so looking costs nothing. Units that go on growing make successive
estimates more alike than those of independent events, which by Slepian's inequality only makes a crossing rarer.

**Errors.** `alpha` is spent in halves: on the interval, and on the harm guardrail's lower bound. So a treatment that is
no different is called better, worse or harmful in at most alpha of all experiments, whenever they are looked at.
It is asymptotic: before `min_events` nothing is called, and the guardrail waits for `GUARD_EVENTS`.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pipeline.online import ExperimentSettings

Floats = NDArray[np.float64]

GUARD_EVENTS = 100  # per version, before the harm guardrail says anything
MIN_UNITS = 30  # per version: a variance between fewer units is none
GUARD_LEVEL = 0.01  # how often a share that keeps its limit is stopped, over all looks
SHARES = (0.05, 0.95)  # within which Thompson sampling moves: neither version is ever given up before the end


class ExperimentOutcome(StrEnum):
    """How an experiment ended."""

    TREATMENT_BETTER = "treatment-better"
    CONTROL_BETTER = "control-better"
    UNDECIDED = "undecided"
    STOPPED_BY_GUARDRAIL = "stopped-by-guardrail"
    SAMPLE_RATIO_MISMATCH = "sample-ratio-mismatch"  # what is compared is not what was drawn
    STOPPED = "stopped"  # by a person
    INTERRUPTED = "interrupted"  # somebody else changed the route


@dataclass(frozen=True, kw_only=True)
class ExperimentEvents:
    """Events with a known outcome, each once, [n]."""

    treated: NDArray[np.bool_]
    cost: Floats
    share: Floats  # of the treatment when the event was asked
    unit: NDArray[np.intp]  # what was randomised, numbered from 0


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What was seen of both versions (control, treatment), and of the difference: treatment minus control."""

    events: tuple[int, int]
    units: tuple[int, int]
    costs: tuple[float, float]  # sums
    difference: float
    error: float  # standard error of the difference
    size: float  # effective events: one over the sum of each version's one over its (weighted) number


@dataclass(frozen=True, kw_only=True)
class TreatmentHealth:
    """How the treatment answered, whether or not the outcome is known."""

    requests: int
    errors: int
    answers: int
    degraded: int


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What a look concludes; it goes on without an outcome.

    The interval holds at all looks together; None where there is nothing to compare.
    """

    outcome: ExperimentOutcome | None
    reason: str
    low: float | None
    high: float | None


def join_units(entity: NDArray[np.intp], *joining: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which events may not be taken for independent draws: those joined by anything, however far.

    Args:
        entity: its number for each event, from 0.
        joining: the same of what else joins events, such as a request; below 0 where it joins nothing.
    """
    from scipy.sparse import coo_array  # heavy for a module that a DAG's task imports
    from scipy.sparse.csgraph import connected_components

    if not len(entity):
        return np.zeros(0, np.intp)
    size, ends = int(entity.max()) + 1, []
    for numbers in joining:
        there = numbers >= 0
        ends.append((entity[there], size + numbers[there]))
        size += int(numbers.max()) + 1
    sources, targets = (np.concatenate(side) for side in zip(*ends, strict=True))
    edges = coo_array((np.ones(len(sources)), (sources, targets)), shape=(size, size))
    units: NDArray[np.intp] = connected_components(edges, directed=False)[1][entity].astype(np.intp)
    return units


def price_decisions(label: Floats, decision: NDArray[np.bool_], *, missed: float, needless: float) -> Floats:
    """What each decision cost once the outcome was known, [n]."""
    return np.where((label == 1) & ~decision, missed, np.where((label == 0) & decision, needless, 0.0))


def estimate_difference(events: ExperimentEvents, *, greatest_cost: float) -> CostEstimate | None:
    """The difference so far; None while a version has no event.

    The variance takes in one event of half the greatest cost a version, so that a version that has not cost anything
    yet is not taken to be certain never to; it is forgotten as events come in.
    """
    treated = events.treated
    weights = [np.where(treated == which, 1 / np.where(which, events.share, 1 - events.share), 0.0) for which in (0, 1)]
    totals = [float(weight.sum()) for weight in weights]
    if min(totals) == 0:
        return None
    shares = [weight / total for weight, total in zip(weights, totals, strict=True)]
    means = [float(share @ events.cost) for share in shares]
    per_event = shares[1] * (events.cost - means[1]) - shares[0] * (events.cost - means[0])
    per_unit = np.bincount(events.unit, per_event)
    sizes = [1 / float(share @ share) for share in shares]  # Kish's effective size
    variance = float(per_unit @ per_unit) + sum((greatest_cost / 2 / size) ** 2 for size in sizes)
    return CostEstimate(
        events=(int((~treated).sum()), int(treated.sum())),
        units=(_count_distinct(events.unit[~treated]), _count_distinct(events.unit[treated])),
        costs=(math.fsum(events.cost[~treated].tolist()), math.fsum(events.cost[treated].tolist())),
        difference=means[1] - means[0],
        error=math.sqrt(variance),
        size=1 / (1 / sizes[0] + 1 / sizes[1]),
    )


def _count_distinct(numbers: NDArray[np.intp]) -> int:
    return int(np.count_nonzero(np.bincount(numbers)))  # they count from 0: nothing has to be sorted


def compute_radius(estimate: CostEstimate, *, alpha: float, planned_size: float) -> float:
    """Half the width of the interval that holds at all looks with probability 1 - alpha, tightest at a planned size."""
    spread = -2 * math.log(alpha)
    ratio = estimate.size * (spread + math.log(spread) + 1) / planned_size
    return estimate.error * math.sqrt((1 + 1 / ratio) * math.log((1 + ratio) / alpha**2))


def conclude(
    settings: ExperimentSettings, estimate: CostEstimate | None, health: TreatmentHealth, mismatch: str | None
) -> Conclusion:
    """What is to be done after a look: errors come first, then a mismatch of the sample ratio, then what it costs."""
    outcome: ExperimentOutcome | None = None
    reason = "no event of both versions has a known outcome that had its time"
    low: float | None = None
    high: float | None = None
    if estimate is not None:
        width = compute_radius(
            estimate, alpha=settings.alpha / 2, planned_size=settings.max_events * (1 - settings.share) / 2
        )
        low, high = estimate.difference - width, estimate.difference + width
        outcome, reason = _compare(settings, estimate, low, high)
        if harm := _find_harm(settings, estimate):
            outcome, reason = ExperimentOutcome.STOPPED_BY_GUARDRAIL, harm
    if mismatch:
        outcome, reason = ExperimentOutcome.SAMPLE_RATIO_MISMATCH, mismatch
    if illness := _find_illness(settings, health):
        outcome, reason = ExperimentOutcome.STOPPED_BY_GUARDRAIL, illness
    return Conclusion(outcome=outcome, reason=reason, low=low, high=high)


def _compare(
    settings: ExperimentSettings, estimate: CostEstimate, low: float, high: float
) -> tuple[ExperimentOutcome | None, str]:
    fewest, total = min(estimate.events), sum(estimate.events)
    if fewest < settings.min_events or min(estimate.units) < MIN_UNITS:
        return None, (
            f"{fewest} events and {min(estimate.units)} units so far;"
            f" {settings.min_events} events and {MIN_UNITS} units of each version are needed"
        )
    costs = f"the treatment costs {estimate.difference:+.4g} an event ({low:+.4g} to {high:+.4g})"
    if -settings.min_effect < low and high < settings.min_effect:
        return ExperimentOutcome.UNDECIDED, f"{costs}: no difference that matters ({settings.min_effect:g})"
    if high < 0 or low > 0:
        return ExperimentOutcome.TREATMENT_BETTER if high < 0 else ExperimentOutcome.CONTROL_BETTER, costs
    # Thompson sampling may starve one version: it ends with as many events as the declared share would have taken.
    if fewest >= settings.max_events or total >= settings.max_events / settings.share:
        return ExperimentOutcome.UNDECIDED, f"{costs} after {total} events, the most it may take"
    return None, costs


def _find_harm(settings: ExperimentSettings, estimate: CostEstimate) -> str | None:
    """Extra cost of at least `max_harm` as it looks, and above nothing as far as can be known at any time."""
    if (
        min(estimate.events) < GUARD_EVENTS
        or min(estimate.units) < MIN_UNITS
        or estimate.difference < settings.max_harm
    ):
        return None
    # A two-sided interval at alpha: its lower side alone errs in alpha / 2.
    planned = settings.min_events * (1 - settings.share)
    low = estimate.difference - compute_radius(estimate, alpha=settings.alpha, planned_size=planned)
    costs = f"the treatment costs {estimate.difference:+.4g} an event (surely over {low:.4g})"
    return f"harm: {costs}, at {settings.max_harm:g} it is stopped" if low > 0 else None


def _find_illness(settings: ExperimentSettings, health: TreatmentHealth) -> str | None:
    checks = (
        ("errors", health.errors, health.requests, settings.max_error_share),
        ("degraded answers", health.degraded, health.answers, settings.max_degraded_share),
    )
    for what, count, of, limit in checks:
        if is_share_above(count, of, limit):
            return f"{what}: {count} of {of} by the treatment, {limit:g} are allowed"
    return None


def is_share_above(count: int, of: int, limit: float, *, level: float = GUARD_LEVEL) -> bool:
    """Whether a share is above a limit, asked as often as one likes: wrong in at most `level` of all sequences.

    The likelihood ratio of every share above the limit to the limit itself, averaged evenly, is a supermartingale where
    the limit holds, so it passes 1 / level with probability `level` at most (Ville 1939; Robbins 1970).
    """
    from scipy.special import betaincc, betaln

    if count <= of * limit or limit >= 1:
        return False
    if limit == 0:
        return True
    tail = float(betaincc(1 + count, 1 + of - count, limit))
    log_average = float(betaln(1 + count, 1 + of - count)) + math.log(max(tail, 1e-300)) - math.log1p(-limit)
    return log_average - count * math.log(limit) - (of - count) * math.log1p(-limit) >= -math.log(level)


def choose_next_share(
    settings: ExperimentSettings, estimate: CostEstimate | None, *, share: float, greatest_cost: float
) -> float:
    """The treatment's share after a look: as declared, or how probable it is that it costs less (Thompson 1933).

    Normal posterior of the difference with a weak prior (none expected, give or take the greatest cost). Nothing is
    drawn: the gateway's hash of the entity is the draw, so the same look gives the same share.
    """
    if (
        settings.mode == "fixed"
        or estimate is None
        or min(estimate.events) < settings.min_events
        or min(estimate.units) < MIN_UNITS
    ):
        return share
    trust = greatest_cost**2 / (greatest_cost**2 + estimate.error**2)
    z = -estimate.difference / estimate.error * math.sqrt(trust)
    probability = 0.5 * math.erfc(-z / math.sqrt(2))
    return round(min(max(probability, SHARES[0]), SHARES[1]), 4)  # the gateway counts in ten-thousandths
