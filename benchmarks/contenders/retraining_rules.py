"""When others would retrain: drift detectors on live errors, naive PSI, and a rule that weighs what waiting costs.

Each says when a champion raises its alarm: `find_alarm` of `benchmarks.retraining.train_when`. None has a gate, so what
is trained answers. A detector is new with each champion, has river's own settings, and is fed the absolute errors of
what the champion answered, in standard deviations of the label, as labels become known; or their means of a day.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.live_policy import LivePolicy
from benchmarks.model_matrix import Fit, ModelMatrix, to_moment
from tasks.monitor.drift import DriftMeasure
from tasks.train.split import split

Floats = NDArray[np.float64]
FindAlarm = Callable[[int], int | None]
Lose = Callable[[Floats, Floats], float]  # labels and scores -> the sum of what is lost
DETECTORS = ("ADWIN", "KSWIN", "PageHinkley")


@dataclass
class Detector:
    """One of river's detectors, by name, on a matrix."""

    name: str
    matrix: ModelMatrix
    deployed: Fit
    by_day: bool  # fed the mean of each day's labels instead of each label's error
    _alarms: dict[int, int | None] = field(default_factory=dict)

    def find_alarm(self, champion: int) -> int | None:
        """The partition in which the errors of a champion set it off."""
        if champion not in self._alarms:
            self._alarms[champion] = self._find(champion)
        return self._alarms[champion]

    def _find(self, champion: int) -> int | None:
        matrix, detector = self.matrix, _make(self.name, self.matrix.use_case.seed)
        model = matrix.models[matrix.partitions[champion].start, self.deployed]
        before = matrix.label[: matrix.between(matrix.partitions[0].start, matrix.partitions[0].end).start]
        scale = np.nanstd(before)
        for place in range(champion, len(matrix.partitions)):
            told = _told_in(matrix, champion, place)
            errors = np.abs(matrix.label[told] - model.score(told)) / scale
            if self.by_day:
                _, day = np.unique(matrix.label_time[told].astype("datetime64[D]"), return_inverse=True)
                errors = np.bincount(day, errors) / np.bincount(day)
            for error in errors:
                detector.update(float(error))
                if detector.drift_detected:
                    return place
        return None


def _make(name: str, seed: int) -> Any:
    from river import drift

    return drift.KSWIN(seed=seed) if name == "KSWIN" else getattr(drift, name)()


def _told_in(matrix: ModelMatrix, champion: int, place: int) -> NDArray[np.intp]:
    """The rows that a champion answered and whose label became known in a partition, in the order of the labels."""
    start, partition = matrix.partitions[champion].start, matrix.partitions[place]
    known = matrix.known(start, partition.end, partition.end)
    fresh = known[matrix.label_time[known] > to_moment(partition.start)] if place > champion else known
    return fresh[np.argsort(matrix.label_time[fresh], kind="stable")]


def watch_psi(live: LivePolicy, *, threshold: float = 0.2) -> FindAlarm:
    """An alarm as soon as one feature's PSI is over the threshold of all textbooks."""

    def find_alarm(champion: int) -> int | None:
        for place in range(champion, len(live.matrix.partitions)):
            drifts = [drift for drift in live.measure_drifts(champion, place) if drift.measure == DriftMeasure.PSI]
            if any(drift.value is not None and drift.value > threshold for drift in drifts):
                return place
        return None

    return find_alarm


def watch_regret(excess: Floats, price: float) -> FindAlarm:
    """An alarm once what a champion lost beyond what was expected of it adds up to the price of a training.

    The cumulative threshold of Cara (Mahadevan and Mathioudakis 2023, arXiv 2310.04216), with how stale a model is
    taken from the labels that became known: `excess` is [partitions, partitions], as `measure_excess` has it. A
    partition in which it does better than expected pays nothing back.
    """

    def find_alarm(champion: int) -> int | None:
        over = np.flatnonzero(np.cumsum(np.maximum(excess[champion, champion:], 0)) > price)
        return champion + int(over[0]) if len(over) else None

    return find_alarm


def measure_excess(matrix: ModelMatrix, deployed: Fit, lose: Lose) -> Floats:
    """What each champion lost in each partition beyond what its holdout let expect, of labels told in the partition."""
    partitions = matrix.partitions
    excess = np.zeros((len(partitions), len(partitions)))
    for champion, partition in enumerate(partitions):
        moments = split(matrix.use_case, partition.start)
        held_out = matrix.known(moments.holdout_start, moments.holdout_end, partition.start)
        judged, model = (matrix.models[partition.start, fit] for fit in (Fit.JUDGED, deployed))
        expected = lose(matrix.label[held_out], judged.score(held_out)) / len(held_out)
        for place in range(champion, len(partitions)):
            told = _told_in(matrix, champion, place)
            if len(told):
                excess[champion, place] = lose(matrix.label[told], model.score(told)) - len(told) * expected
    return excess
