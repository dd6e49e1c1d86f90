"""The words of triage: what is observed of a partition, what was decided before, and what can follow.

The values of the enums are what is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tasks.monitor.broken.signs import Fault
from tasks.monitor.drift import FeatureDrift
from tasks.monitor.performance_limits import Performance
from tasks.promote.standing import StandingChallenger
from tasks.train.recalibration import MeasuredIntercept

REFUSALS = frozenset({"refused", "rejected"})  # release outcomes: gate or person said no; not sure is no refusal


class Action(StrEnum):
    """What follows from a partition."""

    IGNORE = "ignore"
    ALERT = "alert"
    RETRAIN = "retrain"
    BLOCK = "block"


class TriageCode(StrEnum):
    """Why, as a code for programs; the sentence beside it is for people."""

    QUIET = "quiet"
    BROKEN_FEED = "broken-feed"
    UNKNOWN = "unknown"
    # what asks for a retrain; STRUCTURE is drift of a feature of `monitor.structural_features`, EXPECTED performance
    # that is estimated before its labels come
    STRUCTURE = "structure"
    DRIFT = "drift"
    PERFORMANCE = "performance"
    EXPECTED = "expected-performance"
    AGE = "age"
    VOLUME = "volume"
    # what a person is told of
    MISCOVERAGE = "miscoverage"
    RECALIBRATION = "recalibration"
    STANDING = "standing-challenger"
    # what forbids it
    LATE_PARTITION = "late-partition"
    IN_FLIGHT = "in-flight"
    COOLDOWN = "cooldown"
    BUDGET = "budget"
    BREAKER = "breaker"


class RetrainState(StrEnum):
    """How far a decision to retrain has come."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


IN_FLIGHT = (RetrainState.PENDING, RetrainState.RUNNING)
CodedReason = tuple[TriageCode, str]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What was observed of one partition, at its end, and of the champion that scored it.

    `network_version` is the version that was trained: the champion, or what it is a recalibration of.
    """

    as_of: datetime
    model_version: str
    network_version: str
    drifts: Sequence[FeatureDrift]
    performance: Performance
    born_at: datetime  # the data time that the champion was trained for
    trained_rows: int
    new_rows: int  # labels that became known since then
    together: int = 1  # so many partitions in a row the drifts are of, this one the last
    switched_at: datetime | None = None  # the latest promotion over another champion, or rollback, in data time
    miscoverage: str | None = None  # what is wrong with what the intervals cover; None: nothing, or there are none
    expected: tuple[str, ...] | None = None  # trusted estimates of this partition that lie beyond their limits
    intercept: MeasuredIntercept | None = None  # None: it is not to be recalibrated, or cannot be
    rolled_back_at: datetime | None = None  # the latest rollback, in data time
    standing: StandingChallenger | None = None  # who was held against this network
    faults: Sequence[Fault] | None = None  # signs that a feed is broken, besides what is missing; None: nobody can tell


@dataclass(frozen=True, kw_only=True)
class OtherDecision:
    """An earlier (or, where partitions arrive out of order, later) decision."""

    as_of: datetime
    network_version: str
    decision: Action
    breached: frozenset[str]  # features whose PSI was over their thresholds
    state: RetrainState | None = None  # of its retrain
    outcome: str | None = None  # of its retrain
    challenger: str | None = None  # who was judged again in place of a training
    is_miscovered: bool = False  # whether its `Observed.miscoverage` said so


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do and why: codes for programs, reasons for people."""

    decision: Action
    codes: tuple[TriageCode, ...]
    reasons: tuple[str, ...]
    recalibrates: bool = False  # whatever else is done
    challenger: str | None = None  # a version to be judged again before anything is trained
