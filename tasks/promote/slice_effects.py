"""Who is better on some of the rows: each slice of the holdout, and whether the candidate is to be feared on it.

A slice has few rows, and there are many: what each seems to lose is drawn towards the effect on all rows, by how much
slices differ (tasks/promote/expected_effect.py). A slice fails where the candidate is more likely than not worse on it
by more than `max_slice_loss`; where the chance of that is above `max_loss_chance`, it is in doubt
(docs/decisions/0045).
"""

import math
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fields import FEWEST_BLOCKS, RANKINGS
from pipeline.spec import Gate
from tasks.promote.bootstrap import Effect, compare
from tasks.promote.expected_effect import MeasuredEffect, expect_parts
from tasks.promote.gate_checks import HoldoutRows, Reason, Scored, Setting, allowed_chance

_LIKELY = 0.5
_QUOTED = 40  # characters of a value


def slice_table(
    setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored, whole: Effect
) -> list[dict[str, Any]]:
    """Every slice: its effect, what is to be expected of it, and the calibration gaps of both models.

    Its blocks are as alike as those of all rows, whose correlation is better known. Slices of one column are compared
    with each other. What cannot be `tested` has neither an effect nor gaps.
    """
    return [
        row for column in rows.slices for row in _column_table(setting, rows, candidate, champion, whole, column=column)
    ]


def check_slices(gate: Gate, table: list[dict[str, Any]]) -> Iterator[Reason]:
    """What stands against a candidate: slices on which it loses too much, protected ones on which it is off."""
    for row in table:
        name = f"{row['column']} = {row['value']}"
        if row["failed"]:
            yield (
                "slice-worse",
                (
                    f"{name}: expected to be worse by {-row['expected']:.5f} {gate.metric} (measured"
                    f" {-row['effect']:.5f} on {row['rows']} rows), by more than {gate.max_slice_loss} at a chance of"
                    f" {row['chance_of_loss']:.0%}"
                ),
            )
        if row["column"] in gate.protected and row["tested"] and _is_unfair(gate, row):
            yield (
                "protected-slice-miscalibrated",
                (
                    f"{name} is protected: a calibration gap of {row['calibration_gap']:.4f}, above"
                    f" {gate.max_calibration_gap} and above the champion's {row['champion_calibration_gap']:.4f}"
                ),
            )


def doubt_slices(setting: Setting, table: list[dict[str, Any]]) -> Iterator[Reason]:
    """Why a candidate that no slice stands against is not promoted yet."""
    gate, allowed = setting.gate, allowed_chance(setting)
    doubtful = [row for row in table if row["tested"] and not row["chance_of_loss"] <= allowed]
    if doubtful:
        worst = max(doubtful, key=lambda row: row["chance_of_loss"])
        yield (
            "slice-in-doubt",
            (
                f"{worst['column']} = {worst['value']}: the chance that it is worse there by more than"
                f" {gate.max_slice_loss} {gate.metric} is {worst['chance_of_loss']:.0%}, {allowed:.0%} is"
                " allowed"
            ),
        )


def find_untested(gate: Gate, table: list[dict[str, Any]]) -> list[str]:
    """The protected slices of which nobody can tell: a person has to."""
    protected = (row for row in table if row["column"] in gate.protected and not row["tested"])
    return [f"{row['column']} = {row['value'][:_QUOTED]} ({row['rows']} rows)" for row in protected]


def compare_rows(
    setting: Setting,
    rows: HoldoutRows,
    candidate: Scored,
    champion: Scored,
    *,
    mask: NDArray[np.bool_],
    correlation: float | None,
) -> Effect:
    """How much better the candidate is than the champion on the rows of a mask [n]."""
    return compare(
        setting.gate.metric,
        label=rows.label[mask],
        candidate=candidate.scores[mask],
        champion=champion.scores[mask],
        block=rows.block(setting.block)[mask],
        correlation=correlation,
        confidence=setting.gate.confidence,
        resamples=setting.gate.resamples,
        seed=setting.seed,
    )


def _column_table(
    setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored, whole: Effect, *, column: str
) -> list[dict[str, Any]]:
    table, effects = [], []
    for value in np.unique(rows.slices[column]):
        mask = rows.slices[column] == value
        row: dict[str, Any] = {"column": column, "value": str(value), "rows": int(mask.sum()), "tested": False}
        if mask.sum() >= setting.gate.min_slice_rows and _enough(setting, rows, mask):
            effect = compare_rows(setting, rows, candidate, champion, mask=mask, correlation=whole.correlation)
            if math.isfinite(effect.value) and math.isfinite(effect.standard_error):
                effects.append(effect)
                row |= {"tested": True, "effect": effect.value, "low": effect.low, "high": effect.high}
                row |= _measure_calibration(setting, rows, candidate, champion, mask)
        table.append({**row, "failed": False})
    expected = expect_parts(
        [MeasuredEffect(effect.value, effect.standard_error) for effect in effects],
        MeasuredEffect(whole.value, whole.standard_error),
        loss=setting.gate.max_slice_loss,
        freedom=[effect.blocks - 1 for effect in effects],
    )
    for row, one in zip((row for row in table if row["tested"]), expected, strict=True):
        row |= {"expected": one.mean, "chance_of_loss": one.chance_of_loss, "failed": one.chance_of_loss > _LIKELY}
    return table


def _measure_calibration(
    setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored, mask: NDArray[np.bool_]
) -> dict[str, float]:
    """Both models' gaps on some rows, and the standard error of the candidate's, from block to block."""
    off, theirs = (one.scores[mask] - rows.label[mask] for one in (candidate, champion))
    _, code = np.unique(rows.block(setting.block)[mask], return_inverse=True)
    sums = np.bincount(code, weights=off - off.mean())
    return {
        "calibration_gap": abs(float(off.mean())),
        "calibration_error": math.sqrt(float(sums @ sums)) / len(off),
        "champion_calibration_gap": abs(float(theirs.mean())),
    }


def _is_unfair(gate: Gate, row: Mapping[str, Any]) -> bool:
    """Surely beyond the limit, and farther off than the champion: a few rows are off by chance."""
    surely = row["calibration_gap"] - NormalDist().inv_cdf(gate.confidence) * row["calibration_error"]
    return bool(surely > gate.max_calibration_gap and row["calibration_gap"] > row["champion_calibration_gap"])


def _enough(setting: Setting, rows: HoldoutRows, mask: NDArray[np.bool_]) -> bool:
    """Whether a slice can be tested: days and blocks enough, and a metric that is defined there."""
    both_classes = setting.gate.metric not in RANKINGS or 0 < rows.label[mask].mean() < 1
    blocks = len(np.unique(rows.block(setting.block)[mask]))
    return len(np.unique(rows.day[mask])) >= setting.gate.min_days and blocks >= FEWEST_BLOCKS and both_classes
