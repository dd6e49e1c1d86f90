"""In the benchmark of what is expected before labels, an alert follows the AUC of a chunk, and no label of it."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import expected_performance
from benchmarks.expected_performance import Loans, Weekly, expect_loans, summarise
from tasks.monitor.expected_performance import MetricEstimate, Trust


def loans(count: int, *, spread: float, seed: int) -> Loans:
    """The less the odds are spread, the less there is to tell rows apart by."""
    rng = np.random.default_rng(seed)
    score = 1 / (1 + np.exp(-rng.normal(0, spread, count)))
    return Loans(score=score, label=(rng.random(count) < score).astype(float), day=np.arange(count) // 100)


def test_a_chunk_that_is_harder_to_tell_apart_is_an_alert_and_one_like_the_reference_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expected_performance, "CHUNK", 1000)
    reference = loans(8000, spread=2.0, seed=1)
    same, harder = (expect_loans(reference, loans(1000, spread=spread, seed=2))[0] for spread in (2.0, 0.8))
    assert (same["alert"], harder["alert"]) == (False, True)
    assert harder["expected"] == pytest.approx(harder["realised"], abs=0.04)
    hidden = replace(loans(1000, spread=0.8, seed=2), label=np.arange(1000) % 2.0)
    assert expect_loans(reference, hidden)[0]["expected"] == harder["expected"]


def test_misses_are_counted_where_trusted() -> None:
    def week(realised: float, trust: Trust) -> Weekly:
        estimate = MetricEstimate(value=0.5, spread=0.05, low=0.4, high=0.6, trust=trust)
        return Weekly(week="2013-04-01", champion="1", metric="auc", estimate=estimate, realised=realised)

    found = summarise(
        [
            week(0.5, Trust.UNPROVEN),
            *(week(value, Trust.TRUSTED) for value in (0.5, 0.7, 0.7)),
            week(0.7, Trust.WITHDRAWN),
        ],
        "auc",
    )
    assert (found["is"], found["weeks"], found["trusted"]) == (".+--x", 5, 3)
    assert found["held"] == pytest.approx(0.4)
    assert found["held where trusted"] == pytest.approx(1 / 3)
    assert found["trusted misses in a row"] == 1
