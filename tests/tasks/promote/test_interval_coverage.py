"""The bound on a share of covered rows is as sure as it says, also where the rows of a day are alike."""

import numpy as np
import pytest
from scipy.stats import beta

from tasks.promote.interval_coverage import bound_share, measure_coverage

TRUE = 0.9


def draw(rng: np.random.Generator, *, days: int, rows_a_day: int, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Ones for a share of .9 of the rows; what a day's share is varies from day to day, by `alike`."""
    chances = rng.beta(TRUE / alike, (1 - TRUE) / alike, days) if alike else np.full(days, TRUE)
    day = np.repeat(np.arange(days), rows_a_day)
    return (rng.random(len(day)) < chances[day]).astype(float), day


@pytest.mark.parametrize("alike", [0.0, 0.01, 0.1])
def test_the_true_share_is_beyond_a_bound_about_as_seldom_as_the_confidence_says(alike):
    rng, below, above = np.random.default_rng(1), 0, 0
    for _ in range(400):
        inside, day = draw(rng, days=14, rows_a_day=200, alike=alike)
        low, high = bound_share(inside, day, 14, confidence=0.95)
        below, above = below + (high < TRUE), above + (low > TRUE)
    assert below <= 32  # 20 are expected, and 32 are three standard errors more
    assert above <= 32


def test_why_days_count_rows_that_were_taken_for_independent_would_be_surely_off_most_of_the_time():
    rng, off = np.random.default_rng(1), 0
    for _ in range(400):
        inside, _ = draw(rng, days=14, rows_a_day=200, alike=0.1)
        n, ones = len(inside), inside.sum()
        off += not beta.ppf(0.05, ones, n - ones + 1) <= TRUE <= beta.ppf(0.95, ones + 1, n - ones)
    assert off > 200


def test_a_share_that_is_wrong_is_seen():
    inside, day = draw(np.random.default_rng(2), days=14, rows_a_day=500, alike=0.01)
    low, high = bound_share(inside * (np.arange(len(day)) % 10 > 0), day, 14, confidence=0.95)
    assert high < TRUE - 0.02
    assert low > 0.7


@pytest.mark.parametrize(("share", "bounds"), [(1.0, (0.99, 1.0)), (0.0, (0.0, 0.01))])
def test_where_all_rows_are_alike_the_bound_is_that_of_their_number(share, bounds):
    low, high = bound_share(np.full(1400, share), np.repeat(np.arange(14), 100), 14, confidence=0.95)
    assert bounds[0] <= low <= high <= bounds[1]


def test_of_one_day_nothing_is_sure():
    found = measure_coverage(np.zeros(9), np.full(9, 2.0), np.arange(9.0), np.zeros(9, np.int64), confidence=0.95)
    assert (found.covered, found.low, found.high, found.mean_width) == (pytest.approx(1 / 3), 0.0, 1.0, 2.0)
    assert (found.rows, found.days) == (9, 1)
