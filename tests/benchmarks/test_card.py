import time

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
    assert computing(lambda: time.sleep(0.2)) < 0.1
    assert computing(lambda: sum(range(5_000_000))) > 0.05
