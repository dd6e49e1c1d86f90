"""What a policy comes to: the oracle against every sequence there is, and policies on losses whose answer is known."""

from itertools import product

import numpy as np
import pytest

from benchmarks.contenders.retraining_rules import watch_regret
from benchmarks.retraining import (
    Course,
    find_best_course,
    find_best_interval,
    measure_earned,
    share_of_gain,
    train_at,
    train_every,
    train_when,
)

# The world changes as partition 2 begins, and again with partition 4: a model that is older loses 10 in each partition.
CHANGES = (2, 4)


def _planted(partitions: int = 6) -> np.ndarray:
    losses = np.full((partitions, partitions), np.nan)
    for model in range(partitions):
        for place in range(model, partitions):
            losses[model, place] = 1.0 + 10.0 * sum(model < change <= place for change in CHANGES)
    return losses


@pytest.mark.parametrize("seed", range(40))
def test_the_oracle_is_as_good_as_the_best_of_all_sequences(seed: int) -> None:
    draw = np.random.default_rng(seed)
    partitions, start = int(draw.integers(2, 7)), int(draw.integers(0, 2))
    losses = np.where(np.tri(partitions).T > 0, draw.gamma(2, size=(partitions, partitions)), np.nan)
    price = float(draw.choice([0.0, 0.1, 1.0, 5.0]))
    every = [
        Course(start=start, serving=np.array([start, *rest]), trainings=int(np.count_nonzero(np.diff([start, *rest]))))
        for rest in product(*(range(start, place + 1) for place in range(start + 1, partitions)))
    ]
    best = find_best_course(losses, price, start)
    assert best.cost(losses, price) == pytest.approx(min(course.cost(losses, price) for course in every))
    assert best.trainings == np.count_nonzero(np.diff(best.serving))
    assert best.serving[0] == start


@pytest.mark.parametrize(("price", "serving"), [(1.0, [0, 0, 2, 2, 4, 4]), (25.0, [0, 0, 2, 2, 2, 2]), (90.0, [0] * 6)])
def test_the_oracle_retrains_as_the_world_changes_where_that_pays(price: float, serving: list[int]) -> None:
    losses = _planted()
    losses[2, 4:] -= 2.0  # so that at 25 one training, of which model is settled, is the best
    assert find_best_course(losses, price, 0).serving.tolist() == serving


def test_no_course_without_a_way_back_beats_the_oracle() -> None:
    losses = _planted()
    for price in (0.0, 3.0, 30.0):
        least = find_best_course(losses, price, 0).cost(losses, price)
        assert all(train_every(interval, 0, 6).cost(losses, price) >= least for interval in range(1, 7))


def test_a_training_is_paid_though_its_model_is_not_taken() -> None:
    losses = _planted()
    held = Course(start=0, serving=np.zeros(6, np.intp), trainings=3)
    assert held.cost(losses, 7.0) - train_at((), 0, 6).cost(losses, 7.0) == 21.0


def test_the_best_interval_hits_the_changes() -> None:
    assert find_best_interval(_planted(), 1.0, [0]) == 2
    assert find_best_interval(_planted(), 100.0, [0]) == 6  # never


def test_an_alarm_trains_as_the_partition_ends_and_the_next_champion_raises_its_own() -> None:
    course = train_when({0: 2, 3: 3, 4: None}.get, 0, 6)
    assert course.serving.tolist() == [0, 0, 0, 3, 4, 4]
    assert course.trainings == 2
    assert course.promotions == [(0, 3), (3, 4)]


def test_an_alarm_in_the_last_partition_trains_nothing() -> None:
    assert train_when({0: 5}.get, 0, 6).trainings == 0


def test_regret_is_paid_back_once_it_exceeds_the_price() -> None:
    losses = _planted()
    course = train_when(watch_regret(losses - 1.0, 15.0), 0, 6)
    assert course.serving.tolist() == [0, 0, 0, 0, 4, 4]  # 10 in partition 2, 20 by the end of 3
    assert train_when(watch_regret(losses - 1.0, 1000.0), 0, 6).trainings == 0
    easy = losses - np.where(np.arange(6) < 2, 100.0, 1.0)  # that the first two were easy pays nothing back
    assert train_when(watch_regret(easy, 15.0), 0, 6).serving.tolist() == course.serving.tolist()


def test_what_a_training_earned_is_what_the_model_before_would_have_lost_more() -> None:
    assert measure_earned(_planted(), train_every(1, 0, 6)).tolist() == [0.0, 10.0, 0.0, 10.0, 0.0]
    assert measure_earned(_planted(), train_every(3, 0, 6)).tolist() == [30.0]


def test_half_of_the_gain_is_a_half() -> None:
    losses, reference = _planted(), train_every(1, 0, 6)
    assert share_of_gain(losses, reference.lose(losses), reference) == 1.0
    assert share_of_gain(losses, train_at((), 0, 6).lose(losses), reference) == 0.0
    assert share_of_gain(losses, train_at([2], 0, 6).lose(losses), reference) == pytest.approx(40 / 60)
