"""What a policy of retraining comes to, from losses that are known for every model and partition. Pure.

`losses` [partitions, partitions] holds in row m what the model of the data time at which partition m begins loses in
each partition, as a sum over its labelled rows, for m and what follows. Every policy has the model of its start as the
first champion, unpaid; each training after that has a price in the unit of the losses.

The oracle knows all losses beforehand (the baseline of Mahadevan and Mathioudakis 2023, "Cost-Effective Retraining of
Machine Learning Models", arXiv 2310.04216).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """What a policy did: the model that answered in each partition from its start on, and how often it trained."""

    start: int
    serving: Places
    trainings: int

    @property
    def promotions(self) -> list[tuple[int, int]]:
        """(old model, new one) of each change; it is the partition of the new one's data time, or later, that shows."""
        changed = np.flatnonzero(np.diff(self.serving))
        return [(int(self.serving[at]), int(self.serving[at + 1])) for at in changed]

    def lose(self, losses: Floats) -> float:
        """The sum of what its models lose."""
        return float(losses[self.serving, np.arange(self.start, self.start + len(self.serving))].sum())

    def cost(self, losses: Floats, price: float) -> float:
        """What it loses, and what its trainings cost."""
        return self.lose(losses) + price * self.trainings


def train_at(places: Iterable[int], start: int, partitions: int) -> Course:
    """Train as each of these partitions begins, and let the model answer from then on."""
    serving = np.full(partitions - start, start, np.intp)
    chosen = sorted(place for place in set(places) if start < place < partitions)
    for place in chosen:
        serving[place - start :] = place
    return Course(start=start, serving=serving, trainings=len(chosen))


def train_every(interval: int, start: int, partitions: int) -> Course:
    """Train every so many partitions."""
    return train_at(range(start + interval, partitions, interval), start, partitions)


def train_when(find_alarm: Callable[[int], int | None], start: int, partitions: int) -> Course:
    """Train as the partition ends in which a champion raises an alarm; None: it never does.

    `find_alarm` is asked for each champion, which answers from its own partition on.
    """
    places, alarm = [], find_alarm(start)
    while alarm is not None and alarm + 1 < partitions:
        places.append(alarm + 1)
        alarm = find_alarm(alarm + 1)
    return train_at(places, start, partitions)


def find_best_interval(losses: Floats, price: float, starts: Iterable[int]) -> int:
    """The fixed interval that is cheapest over all starts, in hindsight; the number of partitions itself: never."""
    partitions, chosen = len(losses), list(starts)

    def cost(interval: int) -> float:
        return sum(train_every(interval, start, partitions).cost(losses, price) for start in chosen)

    return min(range(1, partitions + 1), key=cost)


def find_best_course(losses: Floats, price: float, start: int) -> Course:
    """The oracle: the cheapest sequence of models, each change to one of any earlier data time paid as a training."""
    partitions = len(losses)
    best = np.full(partitions, np.inf)
    best[start] = losses[start, start]
    came_from = np.zeros((partitions, partitions), np.intp)
    for place in range(start + 1, partitions):
        models = np.arange(start, place + 1)
        cheapest = int(np.argmin(best))
        changes = best[cheapest] + price < best[models]
        came_from[place, models] = np.where(changes, cheapest, models)
        best[models] = np.where(changes, best[cheapest] + price, best[models]) + losses[models, place]
    serving = [int(np.argmin(best))]
    for place in range(partitions - 1, start, -1):
        serving.append(int(came_from[place, serving[-1]]))
    sequence = np.array(serving[::-1], np.intp)
    return Course(start=start, serving=sequence, trainings=int(np.count_nonzero(np.diff(sequence))))


def measure_earned(losses: Floats, course: Course) -> Floats:
    """What each training of a course earned: what the model before it would have lost more, until the next one."""
    ends = np.flatnonzero(np.diff(course.serving, append=-1)) + 1  # of each model's time, from the start
    earned = []
    for first, end in pairwise(ends):
        old, new = course.serving[first - 1], course.serving[first]
        times = slice(course.start + first, course.start + end)
        earned.append(float((losses[old, times] - losses[new, times]).sum()))
    return np.array(earned)


def share_of_gain(losses: Floats, lost: float, reference: Course) -> float:
    """How much of what a reference gains over its first champion, never replaced, somebody gains who lost so much."""
    frozen = train_at((), reference.start, len(losses)).lose(losses)
    return (frozen - lost) / (frozen - reference.lose(losses))
