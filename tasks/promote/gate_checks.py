"""What the gate is given, and what it may have against a candidate: one function for each kind of check."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.fields import BLOCK_DAYS, ENTITY_GROUPS, FEWEST_BLOCKS, ResampledBlock
from pipeline.spec import Gate, LeakAlarm
from tasks.promote.bootstrap import Effect, Floats
from tasks.promote.expected_effect import ExpectedEffect, MeasuredEffect

Kind = Literal["binary", "regression"]
Reason = tuple[str, str]  # a code for machines, a text for people


@dataclass(frozen=True, kw_only=True)
class HoldoutRows:
    """The frozen holdout: prediction times (datetime64, UTC) [n], labels [n] and the slice columns as text [n]."""

    prediction_time: NDArray[np.datetime64]
    label: Floats
    slices: Mapping[str, NDArray[np.str_]]
    fingerprint: str
    entity: NDArray[np.str_]  # their keys [n]

    @property
    def day(self) -> NDArray[np.datetime64]:
        """The day of each row's prediction (UTC)."""
        return self.prediction_time.astype("datetime64[D]")

    def block(self, kind: ResampledBlock) -> NDArray[Any]:
        """The block that each row belongs to [n]; those of time are counted from the first row on.

        Entities come in at most `ENTITY_GROUPS` groups.
        """
        if kind == "entity":
            return np.unique(self.entity, return_inverse=True)[1] % ENTITY_GROUPS
        return (self.day - self.day.min()).astype(np.int64) // BLOCK_DAYS[kind] if len(self.day) else self.day


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One model's scores [n] of the rows, and those of its ensemble's members [members, n], where it has some.

    `bounds` are the lower and the upper ones of its intervals [n], `declared_coverage` what they are to cover, and
    `intercept` what was added to the logits that its networks answer.
    """

    version: str
    cutoff: datetime
    scores: Floats
    members: Floats | None = None
    bounds: tuple[Floats, Floats] | None = None
    declared_coverage: float | None = None
    intercept: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the gate is told besides the scores. `latency_ms` is that of one row alone."""

    gate: Gate
    kind: Kind
    block: ResampledBlock
    holdout_start: datetime
    latency_ms: float
    seed: int
    past: tuple[MeasuredEffect, ...] = ()  # what earlier candidates showed
    holdout_uses: int = 1  # how often a candidate was judged against this champion on these days, this time included


def overlaps(setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored | None) -> Iterator[Reason]:
    """Rows that either model has learnt from, so that it may know their answers."""
    start = setting.holdout_start
    for role, model in (("candidate", candidate), ("champion", champion)):
        if model is not None and start < model.cutoff:
            yield (
                "holdout-overlaps-training",
                (
                    f"the holdout starts {start:%Y-%m-%d %H:%M}, but the {role} (version {model.version}) has learnt"
                    f" from labels known by {model.cutoff:%Y-%m-%d %H:%M}"
                ),
            )
    first = np.datetime64(start.replace(tzinfo=None), "us")
    if len(rows.label) and rows.prediction_time.min() < first:
        yield "rows-outside-holdout", f"a row was predicted at {rows.prediction_time.min()}, before {first}"


def bad_scores(kind: Kind, candidate: Scored, champion: Scored | None) -> Iterator[Reason]:
    """Scores that are no answers."""
    for role, model in (("candidate", candidate), ("champion", champion)):
        if model is None:
            continue
        if bad := int(np.count_nonzero(~np.isfinite(model.scores))):
            yield "scores-not-finite", f"{bad} scores of the {role} (version {model.version}) are NaN or infinite"
        elif kind == "binary" and len(model.scores) and (model.scores.min() < 0 or model.scores.max() > 1):
            yield "scores-not-probabilities", f"scores of the {role} (version {model.version}) leave [0, 1]"


def too_little(setting: Setting, rows: HoldoutRows) -> Iterator[Reason]:
    """Why the rows are too few, or too alike, to tell."""
    gate, n, days = setting.gate, len(rows.label), len(np.unique(rows.day))
    blocks = len(np.unique(rows.block(setting.block)))
    if n < gate.min_rows:
        yield "too-few-rows", f"{n} labelled rows, {gate.min_rows} are needed"
    if days < gate.min_days:
        yield "too-few-days", f"rows of {days} days, {gate.min_days} are needed"
    if blocks < FEWEST_BLOCKS:
        yield (
            "too-few-blocks",
            f"{blocks} blocks ({setting.block.replace('_', ' ')}, gate.block), {FEWEST_BLOCKS} are needed",
        )
    if setting.kind == "binary" and n and len(np.unique(rows.label)) < 2:
        yield "one-class", f"all {n} labels are {rows.label[0]:g}"


def doubtful(setting: Setting, expected: ExpectedEffect) -> Iterator[Reason]:
    """Why a candidate that nothing stands against is not promoted yet."""
    gate, limit = setting.gate, allowed_chance(setting)
    if not expected.mean > gate.min_effect:  # NaN, where an error cannot be told, is a doubt
        yield (
            "not-worth-it",
            f"expected to be better by {expected.mean:+.5f} {gate.metric}, a switch is worth {gate.min_effect}",
        )
    if not expected.chance_of_loss <= limit:
        often = f", as these days have been used {setting.holdout_uses} times" if setting.holdout_uses > 1 else ""
        yield (
            "may-be-a-loss",
            (
                f"the chance that it is worse by more than {gate.min_effect} {gate.metric} is"
                f" {expected.chance_of_loss:.1%}, {limit:.1%} is allowed{often}"
            ),
        )


def allowed_chance(setting: Setting) -> float:
    """The chance of a loss that may be taken: all uses of the same days together spend less than twice as much."""
    return setting.gate.max_loss_chance / setting.holdout_uses**2


def not_surely_better(setting: Setting, effect: Effect, low: float) -> Iterator[Reason]:
    """Why a first champion is not better than a constant: there, nobody waits for a switch."""
    gate = setting.gate
    if effect.value <= gate.min_effect:
        yield "not-better", f"effect {effect.value:+.5f} {gate.metric}, more than {gate.min_effect} is needed"
    elif not low > gate.min_effect:
        yield (
            "not-surely-better",
            (
                f"effect {effect.value:+.5f} {gate.metric}, but it may be as little as {low:+.5f}"
                f" ({gate.confidence:.0%} sure); more than {gate.min_effect} is needed"
            ),
        )


def check_candidate(setting: Setting, evidence: Mapping[str, Any]) -> Iterator[Reason]:
    """What stands against a candidate however much better it is overall."""
    gate = setting.gate
    gap, theirs = evidence["calibration_gap"], evidence["champion_calibration_gap"]
    if gap > max(gate.max_calibration_gap, theirs):  # where the world has moved, the champion is off as well
        yield (
            "miscalibrated",
            f"calibration gap {gap:.4f} is above {gate.max_calibration_gap} and above the champion's {theirs:.4f}",
        )
    if not setting.latency_ms <= gate.max_latency_ms:
        yield "too-slow", f"one row takes {setting.latency_ms:.1f} ms, {gate.max_latency_ms:g} ms are allowed"
    alarm, value = gate.leak_alarm, evidence["leak_alarm"]["value"]
    if not math.isfinite(value):
        yield "leak-alarm", f"{alarm.metric} is {value}: whether a label leaked cannot be told"
    elif alarm.is_beyond(value):
        limit = describe_limit(alarm)
        yield "leak-alarm", f"{alarm.metric} {value:.4f} is {limit}: too good to be true, look for a leaked label"


def describe_limit(alarm: LeakAlarm) -> str:
    """What a result is that is too good to be true, in words."""
    return f"above {alarm.above}" if alarm.above is not None else f"below {alarm.below}"
