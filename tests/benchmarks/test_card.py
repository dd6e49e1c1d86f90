import time

import torch

from benchmarks.card import computing, measure
from benchmarks.hpo import halves


def test_each_contestant_is_measured_and_has_its_figures():
    measured = measure(*halves(4096), epochs=1, at_once=[1, 16], rounds=3)
    loader, slices, alone, many = measured
    assert [len(each.wall) for each in measured] == [3] * 4
    assert [each.name for each in (alone, many)] == ["population of 1", "population of 16"]
    assert loader.name != slices.name
    for each in measured:
        assert each.facts["trials a minute"] > 0
        assert each.facts["computing"] > 0


def test_time_spent_waiting_is_none_of_computing():
    numbers = torch.rand(1000, 1000, device="cuda" if torch.cuda.is_available() else "cpu")
    working = computing(lambda: [numbers @ numbers for _ in range(20)])
    assert 0 <= computing(lambda: time.sleep(0.2)) < working / 5
