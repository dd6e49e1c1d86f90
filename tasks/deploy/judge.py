"""What follows from what a version answered so far: go on, wait, hold, or stop. Pure, so that every case is a test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.online import Rollout
from tasks.deploy.experiment.sequential import is_share_above

_SLOW_SHARE = 0.01  # of the requests may take longer than `max_p99_ms`: that is what a p99 is


class StageResult(StrEnum):
    """What is to be done."""

    PASS = "pass"  # noqa: S105  # no password
    WAIT = "wait"
    HOLD = "hold"
    BREACH = "breach"


@dataclass(frozen=True)
class StageJudgement:
    """What is to be done, and why."""

    result: StageResult
    reason: str
    is_latency: bool = False  # the answers are well, only late


@dataclass(frozen=True, kw_only=True)
class TrafficTally:
    """What one version answered: requests by the gateway, scores recomputed from the logged features."""

    requests: int
    errors: int
    p99_ms: float | None  # of the timed ones; None: there are none
    timed: int  # single predictions, answered at the first try
    slow: int  # of them, above the budget
    checked: int  # answers whose score was computed again
    max_difference: float | None  # None: nothing was checked

    @property
    def error_share(self) -> float:
        """Errors by requests; nothing asked is nothing wrong."""
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, kw_only=True)
class GoldenTally:
    """How a version answered real rows through the server."""

    rows: int
    wanted: int
    max_difference: float
    worst: str  # the entity that was furthest off
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class ShadowTally:
    """How a version answered what the running one had answered before."""

    requests: int
    unanswered: int  # events that the new version did not answer
    problem: str | None  # of the first one that was not
    checked: int
    max_difference: float | None


def judge_golden(rollout: Rollout, golden: GoldenTally) -> StageJudgement:
    """Real rows must get the batch's answers, in time."""
    if golden.rows < golden.wanted:
        return StageJudgement(
            StageResult.HOLD, f"{golden.rows} rows of the latest features can be asked, {golden.wanted} are wanted"
        )
    if not golden.max_difference <= rollout.tolerance:  # NaN too
        return StageJudgement(
            StageResult.BREACH,
            f"{golden.worst}: {_describe_difference(golden.max_difference, rollout)} from the batch's answer",
        )
    if golden.p99_ms > rollout.max_p99_ms:
        return StageJudgement(
            StageResult.BREACH,
            f"99 of 100 requests took up to {golden.p99_ms:.0f} ms, budgeted are {rollout.max_p99_ms:g}",
        )
    return StageJudgement(
        StageResult.PASS, f"{golden.rows} rows answered as the batch does, off by at most {golden.max_difference:.1e}"
    )


def judge_shadow(rollout: Rollout, shadow: ShadowTally, *, minutes: float) -> StageJudgement:
    """Every mirrored request must be answered, each as the version's own batch path does."""
    if shadow.unanswered:
        return StageJudgement(
            StageResult.BREACH, f"{shadow.unanswered} mirrored events were not answered: {shadow.problem}"
        )
    if wrong := _judge_scores(rollout, shadow.max_difference):
        return wrong
    if shadow.requests >= rollout.shadow_requests and shadow.checked >= rollout.shadow_requests:
        return StageJudgement(
            StageResult.PASS, f"{shadow.requests} mirrored requests answered, {shadow.checked} answers checked"
        )
    return _judge_patience(rollout, shadow.requests, rollout.shadow_requests, shadow.checked, minutes=minutes)


def judge_canary(rollout: Rollout, tally: TrafficTally, *, minutes: float) -> StageJudgement:
    """The share of real requests that the new version got must go well; errors stop it before all of them are in."""
    allowed = rollout.max_error_share * max(tally.requests, rollout.canary_requests)
    if tally.errors > allowed:
        return StageJudgement(StageResult.BREACH, f"{tally.errors} of {tally.requests} requests failed")
    if wrong := _judge_scores(rollout, tally.max_difference):
        return wrong
    if tally.requests < rollout.canary_requests or tally.checked < rollout.canary_requests:
        return _judge_patience(rollout, tally.requests, rollout.canary_requests, tally.checked, minutes=minutes)
    return _judge_latency(rollout, tally) or StageJudgement(
        StageResult.PASS, f"{tally.requests} requests, {tally.errors} errors, {tally.checked} answers checked"
    )


def judge_stable(rollout: Rollout, tally: TrafficTally) -> StageJudgement:
    """The version that answers everyone, by as many requests as a canary needs; a wrong score needs no others."""
    if wrong := _judge_scores(rollout, tally.max_difference):
        return wrong
    if tally.requests < rollout.canary_requests:
        return StageJudgement(StageResult.WAIT, f"{tally.requests} requests, too few to judge by")
    if tally.error_share > rollout.max_error_share:
        return StageJudgement(StageResult.BREACH, f"{tally.errors} of {tally.requests} requests failed")
    return _judge_latency(rollout, tally) or StageJudgement(
        StageResult.PASS, f"{tally.requests} requests, {tally.errors} errors"
    )


def is_too_slow(slow: int, timed: int) -> bool:
    """Whether more than one in a hundred requests is above the budget, beyond chance.

    The p99 of fewer than a hundred is their maximum: one request that was slow would decide. So they are counted.
    """
    return is_share_above(slow, timed, _SLOW_SHARE)


def compute_p99(milliseconds: Sequence[float]) -> float | None:
    """The time that 99 of 100 requests stay within: one that was taken, none in between."""
    ordered = sorted(milliseconds)
    return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else None


def _judge_scores(rollout: Rollout, difference: float | None) -> StageJudgement | None:
    if difference is None or difference <= rollout.tolerance:
        return None
    return StageJudgement(
        StageResult.BREACH,
        f"a score is {_describe_difference(difference, rollout)} from what its features give in batch",
    )


def _judge_latency(rollout: Rollout, tally: TrafficTally) -> StageJudgement | None:
    if not is_too_slow(tally.slow, tally.timed):
        return None
    slow = f"{tally.slow} of {tally.timed} requests took longer than the {rollout.max_p99_ms:g} ms budgeted for 99 %"
    return StageJudgement(StageResult.BREACH, slow, is_latency=True)


def _judge_patience(rollout: Rollout, requests: int, wanted: int, checked: int, *, minutes: float) -> StageJudgement:
    progress = f"{requests} of {wanted} requests, {checked} of them found in the prediction log"
    if minutes >= rollout.hold_minutes:
        return StageJudgement(StageResult.HOLD, f"{progress} after {rollout.hold_minutes:g} minutes")
    return StageJudgement(StageResult.WAIT, progress)


def _describe_difference(difference: float, rollout: Rollout) -> str:
    return f"{difference:.2e} (tolerated: {rollout.tolerance:.0e})"
