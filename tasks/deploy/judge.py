"""What follows from what a version answered so far: go on, wait, hold, or stop. Pure, so that every case is a test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.online import Rollout
from tasks.deploy.experiment.sequential import exceeds

Answer = Literal["pass", "wait", "hold", "breach"]
# What a version goes through that is to replace one that answers; the first one has nothing to be compared with.
STAGES = ("package", "golden", "shadow", "canary", "full", "done")
FIRST_STAGES = ("package", "golden", "full", "done")
_SLOW_SHARE = 0.01  # of the requests may take longer than `max_p99_ms`: that is what a p99 is


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be done, and why."""

    answer: Answer
    reason: str
    is_latency: bool = False  # the answers are well, only late


@dataclass(frozen=True, kw_only=True)
class Tally:
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
class Golden:
    """How a version answered real rows through the server."""

    rows: int
    wanted: int
    max_difference: float
    worst: str  # the entity that was furthest off
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Shadowed:
    """How a version answered what the running one had answered before."""

    requests: int
    unanswered: int  # events that the new version did not answer
    problem: str | None  # of the first one that was not
    checked: int
    max_difference: float | None


def after(stage: str, *, first: bool) -> str:
    """The stage that follows."""
    stages = FIRST_STAGES if first else STAGES
    return stages[stages.index(stage) + 1]


def judge_golden(rollout: Rollout, seen: Golden) -> Step:
    """Real rows must get the batch's answers, in time."""
    if seen.rows < seen.wanted:
        return _step("hold", f"{seen.rows} rows of the latest features can be asked, {seen.wanted} are wanted")
    if not seen.max_difference <= rollout.tolerance:  # NaN too
        return _step("breach", f"{seen.worst}: {_off(seen.max_difference, rollout)} from the batch's answer")
    if seen.p99_ms > rollout.max_p99_ms:
        return _step("breach", _slow(seen.p99_ms, rollout))
    return _step("pass", f"{seen.rows} rows answered as the batch does, off by at most {seen.max_difference:.1e}")


def judge_shadow(rollout: Rollout, seen: Shadowed, *, minutes: float) -> Step:
    """Every mirrored request must be answered, each as the version's own batch path does."""
    if seen.unanswered:
        return _step("breach", f"{seen.unanswered} mirrored events were not answered: {seen.problem}")
    if wrong := _wrong(rollout, seen.max_difference):
        return wrong
    if seen.requests >= rollout.shadow_requests and seen.checked >= rollout.shadow_requests:
        return _step("pass", f"{seen.requests} mirrored requests answered, {seen.checked} answers checked")
    return _patience(rollout, seen.requests, rollout.shadow_requests, seen.checked, minutes=minutes)


def judge_canary(rollout: Rollout, tally: Tally, *, minutes: float) -> Step:
    """The share of real requests that the new version got must go well; errors stop it before all of them are in."""
    allowed = rollout.max_error_share * max(tally.requests, rollout.canary_requests)
    if tally.errors > allowed:
        return _step("breach", f"{tally.errors} of {tally.requests} requests failed")
    if wrong := _wrong(rollout, tally.max_difference):
        return wrong
    if tally.requests < rollout.canary_requests or tally.checked < rollout.canary_requests:
        return _patience(rollout, tally.requests, rollout.canary_requests, tally.checked, minutes=minutes)
    if are_slow(tally.slow, tally.timed):
        return Step(answer="breach", reason=_many_slow(tally, rollout), is_latency=True)
    return _step("pass", f"{tally.requests} requests, {tally.errors} errors, {tally.checked} answers checked")


def judge_stable(rollout: Rollout, tally: Tally) -> Step:
    """The version that answers everyone, by as many requests as a canary needs; a wrong score needs no others."""
    if wrong := _wrong(rollout, tally.max_difference):
        return wrong
    if tally.requests < rollout.canary_requests:
        return _step("wait", f"{tally.requests} requests, too few to judge by")
    if tally.error_share > rollout.max_error_share:
        return _step("breach", f"{tally.errors} of {tally.requests} requests failed")
    if are_slow(tally.slow, tally.timed):
        return Step(answer="breach", reason=_many_slow(tally, rollout), is_latency=True)
    return _step("pass", f"{tally.requests} requests, {tally.errors} errors")


def are_slow(slow: int, timed: int) -> bool:
    """Whether more than one in a hundred requests is above the budget, beyond chance.

    The p99 of fewer than a hundred is their maximum: one request that was slow would decide. So they are counted.
    """
    return exceeds(slow, timed, _SLOW_SHARE)


def p99(milliseconds: Sequence[float]) -> float | None:
    """The time that 99 of 100 requests stay within: one that was taken, none in between."""
    ordered = sorted(milliseconds)
    return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else None


def _step(answer: Answer, reason: str) -> Step:
    return Step(answer=answer, reason=reason)


def _wrong(rollout: Rollout, difference: float | None) -> Step | None:
    if difference is None or difference <= rollout.tolerance:
        return None
    return _step("breach", f"a score is {_off(difference, rollout)} from what its features give in batch")


def _patience(rollout: Rollout, requests: int, wanted: int, checked: int, *, minutes: float) -> Step:
    said = f"{requests} of {wanted} requests, {checked} of them found in the prediction log"
    if minutes >= rollout.hold_minutes:
        return _step("hold", f"{said} after {rollout.hold_minutes:g} minutes")
    return _step("wait", said)


def _off(difference: float, rollout: Rollout) -> str:
    return f"{difference:.2e} (tolerated: {rollout.tolerance:.0e})"


def _slow(p99_ms: float, rollout: Rollout) -> str:
    return f"99 of 100 requests took up to {p99_ms:.0f} ms, budgeted are {rollout.max_p99_ms:g}"


def _many_slow(tally: Tally, rollout: Rollout) -> str:
    return f"{tally.slow} of {tally.timed} requests took longer than the {rollout.max_p99_ms:g} ms budgeted for 99 %"
