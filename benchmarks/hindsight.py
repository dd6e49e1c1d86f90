"""Answers and promotions of a model matrix, looked at when all labels are known."""

from datetime import datetime, timedelta

from benchmarks.model_matrix import MatrixModel, ModelMatrix
from tasks.promote.bootstrap import compare

_LATER = timedelta(days=28)  # so long after a promotion is looked whether it was right


def was_surely_worse(matrix: ModelMatrix, old: MatrixModel, new: MatrixModel, start: datetime) -> bool | None:
    """Whether a promotion was wrong by more than `gate.min_effect` over the four weeks from `start`, and surely wrong.

    None where fewer weeks follow.
    """
    if start + _LATER > matrix.partitions[-1].end:
        return None
    gate = matrix.use_case.gate
    rows = matrix.known(start, start + _LATER)
    effect = compare(
        gate.metric,
        label=matrix.label[rows],
        candidate=new.score(rows),
        champion=old.score(rows),
        block=matrix.prediction_time[rows].astype("datetime64[D]"),
        correlation=None,
        confidence=gate.confidence,
        resamples=gate.resamples,
        seed=matrix.use_case.seed,
    )
    return effect.value < -gate.min_effect and effect.high < 0
