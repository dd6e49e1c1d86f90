"""What recalibrating a champion every partition is worth: our intercept beside what else one would do; without a stack.

    python -m benchmarks.recalibration flights [--starts 13] [--first 30]

On the kept models of `benchmarks.model_matrix`, by courses that nobody decides on: never retrained, or every so many
partitions. Each partition is answered with what its model's labels said as it began, of rows that it had not learnt. A
gain is a share of what retraining each partition gains over never, both without recalibration.

The closed testing procedure is that of Vergouwe et al. 2017 (Statistics in Medicine 36:4529), of intercept and slope,
with days as clusters: as it stands, a change is made only where a test finds it.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.model_matrix import FOLDER, Fit, Floats, MatrixModel, ModelMatrix, open_matrix, to_moment
from benchmarks.policies import lose_metric, measure_losses
from benchmarks.retraining import Course, share_of_gain, train_every
from benchmarks.table import keep_results
from models.recalibration import fit_intercept
from pipeline.monitoring import RecalibrationSettings
from pipeline.settings import find_params
from pipeline.spec import UseCase, use_cases
from tasks.train.recalibration import HALF_LIVES

INTERVALS = (0, 8, 6, 4, 1)  # partitions between two trainings; 0: none
_SURE = 1e-12
Line = tuple[float, float]  # intercept and slope of the logit
Estimate = Callable[[Floats, Floats, Floats], Line]  # of scores, labels and ages in days [n]


def fit_line(score: Floats, label: Floats, weight: Floats, *, slope: bool) -> tuple[Floats, Floats]:
    """Weighted logistic regression on the logit: (what is added, [and times what]) and the covariance without it."""
    logit = _to_logit(score)
    columns = np.stack([np.ones_like(logit), logit - logit.mean()], axis=1)[:, : 1 + slope]
    found = np.zeros(columns.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-(logit + columns @ found)))
        information = (columns * (weight * chance * (1 - chance))[:, None]).T @ columns
        found = found + np.linalg.solve(information, columns.T @ (weight * (label - chance)))
    return found, np.linalg.inv(information)


def estimators(settings: RecalibrationSettings) -> Mapping[str, Estimate]:
    """What is done to logits, by name."""

    def of_latest(days: float) -> Estimate:
        def estimate(score: Floats, label: Floats, age: Floats) -> Line:
            latest = age < days
            if not 0 < label[latest].mean() < 1:
                return 0.0, 1.0
            return float(fit_line(score[latest], label[latest], np.ones(latest.sum()), slope=False)[0][0]), 1.0

        return estimate

    def ours(score: Floats, label: Floats, age: Floats) -> Line:
        fitted = fit_intercept(score, label, age, half_life_days=settings.half_life_days, spread=settings.spread)
        return fitted.value, 1.0

    def closed_test(score: Floats, label: Floats, age: Floats) -> Line:
        return _test_closed(score, label, 0.5 ** (age / settings.half_life_days), np.floor(age).astype(np.int64))

    def both(score: Floats, label: Floats, age: Floats) -> Line:
        found, _ = fit_line(score, label, 0.5 ** (age / settings.half_life_days), slope=True)
        slope = 1 + float(found[1])
        return float(found[0]) + (1 - slope) * float(_to_logit(score).mean()), slope

    return {
        "nothing": lambda *_: (0.0, 1.0),
        "intercept of the latest week, in full": of_latest(7),
        "intercept of the latest two weeks, in full": of_latest(14),
        "intercept and slope, in full": both,
        "closed testing procedure": closed_test,
        "intercept, shrunk by what days tell (ours)": ours,
    }


def _test_closed(score: Floats, label: Floats, weight: Floats, day: "np.typing.NDArray[np.int64]") -> Line:
    """Nothing, an intercept, or a slope with it: the simplest that a test of level .05 does not reject."""
    from scipy.stats import chi2

    found, inverse = fit_line(score, label, weight, slope=True)
    logit = _to_logit(score)
    columns = np.stack([np.ones_like(logit), logit - logit.mean()], axis=1)
    chance = 1 / (1 + np.exp(-(logit + columns @ found)))
    _, place = np.unique(day, return_inverse=True)
    sums = np.stack([np.bincount(place, weight * (label - chance) * column) for column in columns.T], axis=1)
    covariance = inverse @ (sums.T @ sums) @ inverse * len(sums) / max(1, len(sums) - 1)
    if found @ np.linalg.solve(covariance, found) < chi2.isf(0.05, 2):
        return 0.0, 1.0
    if found[1] ** 2 / covariance[1, 1] < chi2.isf(0.05, 1):
        return float(fit_line(score, label, weight, slope=False)[0][0]), 1.0
    slope = 1 + float(found[1])
    return float(found[0]) + (1 - slope) * float(logit.mean()), slope


def _to_logit(score: Floats) -> Floats:
    held = np.clip(score, _SURE, 1 - _SURE)
    return np.asarray(np.log(held / (1 - held)))


def measure_recalibrated(matrix: ModelMatrix, fit: Fit, estimate: Estimate, half_life_days: float) -> Floats:
    """What each model loses in each partition, answering as an estimator says: [partitions, partitions]."""
    losses = np.full((len(matrix.partitions), len(matrix.partitions)), np.nan)
    metric = matrix.use_case.train.metric
    for place, partition in enumerate(matrix.partitions):
        rows = matrix.known(partition.start, partition.end)
        for model in range(place + 1):
            one = matrix.models[matrix.partitions[model].start, fit]
            intercept, slope = _estimate(matrix, one, place, estimate, half_life_days)
            chance = 1 / (1 + np.exp(-(intercept + slope * _to_logit(one.score(rows)))))
            losses[model, place] = lose_metric(metric, matrix.label[rows], np.asarray(chance))
    return losses


def _estimate(matrix: ModelMatrix, model: MatrixModel, place: int, estimate: Estimate, half_life_days: float) -> Line:
    """By the rows whose label lag had passed as a partition began."""
    known_by = matrix.partitions[place].start
    end = known_by - matrix.use_case.time.label_lag
    age = (to_moment(end) - matrix.prediction_time) / np.timedelta64(1, "D")
    known = matrix.known(model.cutoff, end, known_by) if model.cutoff < end else np.zeros(0, np.intp)
    rows = known[age[known] < HALF_LIVES * half_life_days]
    if len(rows) < matrix.use_case.monitor.min_labelled:
        return 0.0, 1.0
    return estimate(model.score(rows), matrix.label[rows], age[rows])


def summarise(
    matrix: ModelMatrix, fit: Fit, settings: RecalibrationSettings, starts: Sequence[int]
) -> list[dict[str, Any]]:
    """A line an estimator: for each interval the mean gain over the starts, and the worst."""

    def lose(label: Floats, score: Floats) -> float:
        return lose_metric(matrix.use_case.train.metric, label, score)

    bare, lines = measure_losses(matrix, fit, lose), []
    for name, estimate in estimators(settings).items():
        losses = measure_recalibrated(matrix, fit, estimate, settings.half_life_days)
        gains = {}
        for interval in INTERVALS:
            courses = [_train_every(interval, start, len(bare)) for start in starts]
            shares = [
                share_of_gain(bare, course.lose(losses), train_every(1, course.start, len(bare))) for course in courses
            ]
            gains[str(interval)] = [float(np.mean(shares)), min(shares)]
        lines.append({"estimator": name, "gains": gains})
    return lines


def _train_every(interval: int, start: int, partitions: int) -> Course:
    return train_every(interval or partitions, start, partitions)


def render(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines as a table of Markdown: mean gain, and that of the worst start."""
    named = ["never retrained", *(f"every {n}" if n > 1 else "each partition" for n in INTERVALS[1:])]
    table = ["| added | " + " | ".join(named) + " |", "|---" + "|--:" * len(named) + "|"]
    for line in lines:
        cells = [f"{mean:.2f} [{worst:.2f}]" for mean, worst in line["gains"].values()]
        table.append(f"| {line['estimator']} | " + " | ".join(cells) + " |")
    return "\n".join(table)


def _settings(use_case: UseCase) -> RecalibrationSettings:
    if use_case.monitor.recalibration is None:
        raise SystemExit(f"{use_case.name}: monitor.recalibration is null, so there is nothing to measure")
    return use_case.monitor.recalibration


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recalibration", description=__doc__.partition("\n")[0])
    known = use_cases(find_params(os.environ))
    parser.add_argument("use_case", choices=sorted(known))
    parser.add_argument("--starts", type=int, default=13, help="the first so many partitions, one start each")
    parser.add_argument("--first", type=int, help="only so many partitions")
    parser.add_argument("--fit", type=Fit, default=Fit.JUDGED, help="which models answer")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    use_case = known[asked.use_case]
    settings = _settings(use_case)
    matrix = open_matrix(use_case, folder=asked.folder, fits=[asked.fit], first=asked.first, train=True)
    lines = summarise(matrix, asked.fit, settings, range(min(asked.starts, len(matrix.partitions) - 1)))
    print(render(lines))
    keep_results(
        f"recalibration-{use_case.name}", fit=asked.fit, starts=asked.starts, partitions=len(matrix.partitions),
        settings=settings.model_dump(), lines=lines,
    )  # fmt: skip


if __name__ == "__main__":
    main()
