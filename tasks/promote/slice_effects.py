"""Who is better on some of the rows: each slice of the holdout, tested for a loss that matters."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.fields import FEWEST_BLOCKS, RANKINGS
from tasks.promote.bootstrap import Effect, compare, holm
from tasks.promote.gate_checks import HoldoutRows, Scored, Setting

_TAIL_RESAMPLES = 20  # resamples that must fall beyond the strictest slice bound, or no slice could ever fail


def slice_table(
    setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored, correlation: float
) -> list[dict[str, Any]]:
    """Every slice with its effect; it fails where the candidate is surely more than `max_slice_loss` worse.

    Its blocks are as alike as those of all rows, whose `correlation` is better known. Family-wise over all slices
    (Holm), so that asking about twenty slices does not refuse every candidate.
    """
    gate = setting.gate
    masks = [(name, str(value), column == value) for name, column in rows.slices.items() for value in np.unique(column)]
    eligible = [m for _, _, m in masks if m.sum() >= gate.min_slice_rows and _enough(setting, rows, m)]
    resamples = max(gate.resamples, math.ceil(_TAIL_RESAMPLES * len(eligible) / (1 - gate.confidence)))
    table: list[dict[str, Any]] = []
    for name, value, mask in masks:
        row: dict[str, Any] = {"column": name, "value": value, "rows": int(mask.sum()), "tested": False}
        if any(mask is m for m in eligible):
            effect = compare_rows(
                setting, rows, candidate, champion, mask=mask, correlation=correlation, resamples=resamples
            )
            p = effect.p_worse_than(gate.max_slice_loss)
            row |= {"tested": True, "effect": effect.value, "low": effect.low, "high": effect.high, "p": p}
        table.append(row)
    tested = [row for row in table if row["tested"]]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row |= {"p_adjusted": p, "failed": p <= 1 - gate.confidence}
    return table


def compare_rows(
    setting: Setting,
    rows: HoldoutRows,
    candidate: Scored,
    champion: Scored,
    *,
    mask: NDArray[np.bool_],
    correlation: float | None,
    resamples: int,
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
        resamples=resamples,
        seed=setting.seed,
    )


def _enough(setting: Setting, rows: HoldoutRows, mask: NDArray[np.bool_]) -> bool:
    """Whether a slice can be tested: days and blocks enough, and a metric that is defined there."""
    both_classes = setting.gate.metric not in RANKINGS or 0 < rows.label[mask].mean() < 1
    blocks = len(np.unique(rows.block(setting.block)[mask]))
    return len(np.unique(rows.day[mask])) >= setting.gate.min_days and blocks >= FEWEST_BLOCKS and both_classes
