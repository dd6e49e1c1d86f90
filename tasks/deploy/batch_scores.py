"""What the logged features of an answer give in batch: a server that says otherwise does not run the model it names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from serving.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class ScoreCheck:
    """How far logged scores are from the batch's; None: there were none."""

    answers: int
    requests: int
    max_difference: float | None


NO_SCORES = ScoreCheck(answers=0, requests=0, max_difference=None)


def check_scores(batch: "Predictor", answers: Sequence[Mapping[str, Any]]) -> ScoreCheck:
    """Compare logged answers (`request_id`, `score`, `features`) of one version with its batch path."""
    if not answers:
        return NO_SCORES
    complete = [set(batch.columns) <= set(answer["features"] or {}) for answer in answers]
    whole = [answer for answer, is_whole in zip(answers, complete, strict=True) if is_whole]
    expected = iter(
        batch.predict(tabulate_features(batch, [answer["features"] for answer in whole])).tolist() if whole else ()
    )
    # An answer whose features were not logged cannot be vouched for; a score that is null or NaN is infinitely off.
    differences = [
        _measure_difference(answer["score"], next(expected)) if is_whole else math.inf
        for answer, is_whole in zip(answers, complete, strict=True)
    ]
    return ScoreCheck(
        answers=len(answers),
        requests=len({answer["request_id"] for answer in answers}),
        max_difference=max(differences),
    )


def tabulate_features(batch: "Predictor", features: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Logged features as the columns that a model reads."""
    kinds = {"numeric": pa.float64(), "categorical": pa.string()}
    return pa.table(
        {
            name: pa.array([row[name] for row in features], kind)
            for which, kind in kinds.items()
            for name in batch.card["features"][which]
        }
    )


def _measure_difference(score: float | None, expected: float) -> float:
    difference = abs(score - expected) if score is not None else math.inf
    return difference if math.isfinite(difference) else math.inf
