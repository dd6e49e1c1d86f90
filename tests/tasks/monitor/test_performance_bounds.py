"""A metric is outside its limit where it surely is: by blocks, however outstanding labels turn out, twice looked at."""

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from models.metrics import METRICS, compute_metric
from pipeline.monitoring import Limit, Monitor
from pipeline.spec import UseCase
from tasks.monitor import performance_bounds
from tasks.monitor.performance_bounds import MetricBounds, WatchedRows, bound_metric, bound_metrics, certain
from tasks.monitor.performance_limits import (
    Performance,
    Shown,
    judge_performance,
    look_confidence,
    look_longer,
)

CONFIDENCE = 0.95
WINDOW = 14  # days
ROWS = 60  # a day
MAE = (
    np.exp(-(0.15**2) / 2) * np.exp(0.15**2 / 2) * np.sqrt(2 / np.pi)
)  # of `errors`: normal ones, whose size differs by day


def limited(use_case: UseCase, **limits: Limit) -> UseCase:
    changed = use_case.monitor.model_copy(update={"limits": limits, "min_labelled": 100})
    return use_case.model_copy(update={"monitor": changed})


def watch(score: Any, label: Any, block: Any, *, is_binary: bool = False, outstanding: int = 0) -> WatchedRows:
    return WatchedRows(
        score=np.asarray(score, float), label=np.asarray(label, float), block=np.asarray(block),
        is_serial=True, is_binary=is_binary, outstanding=outstanding,
    )  # fmt: skip


def errors(rng: np.random.Generator, days: int, worse: float = 1.0) -> WatchedRows:
    """Answers whose error is `MAE` times `worse` in expectation; the size of a day's errors is like its neighbours'."""
    effect = rng.normal(0, 1, days)
    for day in range(1, days):
        effect[day] = 0.3 * effect[day - 1] + np.sqrt(1 - 0.3**2) * effect[day]
    day = np.repeat(np.arange(days), ROWS)
    size = worse * np.exp(0.15 * effect - 0.15**2 / 2)
    return watch(rng.normal(0, 1, len(day)) * size[day], np.zeros(len(day)), day)


def judge(use_case: UseCase, rows: WatchedRows, **known: Any) -> Performance:
    metrics = {name: compute_metric(name, rows.score[rows.labelled], rows.label[rows.labelled]) for name in
               use_case.monitor.limits}  # fmt: skip
    bounds = bound_metrics(rows, metrics, confidence=look_confidence(CONFIDENCE))
    return judge_performance(
        predicted=len(rows.score), labelled=int(rows.labelled.sum()), metrics=metrics, monitor=use_case.monitor,
        bounds=bounds, **known,
    )  # fmt: skip


def since(rows: WatchedRows, first: int, days: int) -> WatchedRows:
    chosen = (rows.block >= first) & (rows.block < first + days)
    return watch(rows.score[chosen], rows.label[chosen], rows.block[chosen])


def look(use_case: UseCase, rows: WatchedRows, end: int) -> Performance:
    """A window and, where that is in doubt, one twice as long, as monitoring asks."""
    first = judge(use_case, since(rows, end - WINDOW, WINDOW))
    return look_longer(use_case, first, lambda asked: judge(asked, since(rows, end - 2 * WINDOW, 2 * WINDOW)))


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("outstanding", [0, 2, 4])
def test_no_completion_of_the_outstanding_labels_leaves_the_bounds_and_some_reach_them(
    name: str, outstanding: int
) -> None:
    """Every choice of rows and labels is tried: any number of them for means; rankings take all."""
    rng, binary = np.random.default_rng(len(name)), METRICS[name].kind == "binary"
    score = rng.beta(2, 3, 14) if binary else rng.gamma(2, 1, 14)
    label = (rng.random(14) < score).astype(float) if binary else rng.gamma(2, 1, 14)
    label[:2] = [0, 1]
    known, missing = np.arange(14) < 10, np.flatnonzero(np.arange(14) >= 10)
    rows = watch(score, np.where(known, label, np.nan), np.arange(14) % 5, is_binary=binary, outstanding=outstanding)
    found = bound_metric(rows, name, confidence=CONFIDENCE)
    ends = (0.0, 1.0) if binary else (label[known].min(), label[known].max())
    values = []
    for count in [outstanding] if METRICS[name].is_ranking else range(outstanding + 1):
        for taken in combinations(missing, count):
            between = [*ends, *(score[list(taken)].clip(*ends) if not binary else ())]
            for told in product(*[between] * count):
                every = np.append(score[known], score[list(taken)]), np.append(label[known], told)
                values.append(METRICS[name].compute(*every))
    assert found.most == pytest.approx(max(values), abs=1e-12)
    if name == "calibration_gap" and outstanding:  # on either side of 0, and none is exactly there
        assert found.least <= min(values)
    else:
        assert found.least == pytest.approx(min(values), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.least <= found.most < found.high or METRICS[name].is_share
    assert found.outstanding == outstanding


@pytest.mark.parametrize("lost", [0.09, 0.0])
def test_a_perfect_model_with_labels_outstanding_is_not_degraded_and_of_all_labels_it_is_fine(
    use_case: UseCase, lost: float
) -> None:
    """Positives come later: of the labels that came too few are positive, and the model seems to overrate."""
    rng = np.random.default_rng(1)
    score = rng.beta(2, 2, 4000)
    label = (rng.random(4000) < score).astype(float)
    missing = rng.permutation(np.flatnonzero(label == 1))[: int(lost * 4000)]
    label[missing] = np.nan
    rows = watch(score, label, np.arange(4000) // 300, is_binary=True, outstanding=len(missing))
    case = limited(use_case, calibration_gap=Limit(max=0.03))
    found = judge(case, rows)
    assert found.coverage >= case.monitor.min_coverage
    assert found.status == ("unknown" if lost else "ok"), found.reasons
    assert bool(lost) == ("360 labels are outstanding" in "".join(found.reasons))
    settled = judge(case, watch(score, label, rows.block, is_binary=True))
    assert settled.status == ("degraded" if lost else "ok"), "rows without an outcome are no excuse"


def test_a_model_that_is_bad_whatever_comes_is_degraded_with_labels_outstanding(use_case: UseCase) -> None:
    rng = np.random.default_rng(1)
    score = rng.beta(2, 2, 4000)
    label = (rng.random(4000) < score - 0.2).astype(float)
    label[rng.random(4000) < 0.09] = np.nan
    rows = watch(score, label, np.arange(4000) // 300, is_binary=True, outstanding=int(np.isnan(label).sum()))
    found = judge(limited(use_case, calibration_gap=Limit(max=0.05)), rows)
    assert found.status == "degraded"
    assert "surely" in found.reasons[0]
    assert found.bounds["calibration_gap"].least < found.metrics["calibration_gap"]


def test_false_alarms_of_a_model_that_is_exactly_at_its_limit_are_as_rare_as_confidence_says(
    use_case: UseCase,
) -> None:
    case = limited(use_case, mae=Limit(max=float(MAE)))
    windows = [look(case, errors(np.random.default_rng(seed), 2 * WINDOW), 2 * WINDOW) for seed in range(600)]
    alarms = [found.status == "degraded" for found in windows]
    assert np.mean(alarms) <= 1 - CONFIDENCE
    assert np.mean([found.metrics["mae"] > MAE for found in windows]) > 0.4, "by the estimate alone, every other"


def test_a_degradation_of_two_errors_is_found_within_three_windows(use_case: UseCase) -> None:
    """A week apart, as they are decided on; the planted model has been worse for the longer window before the first."""
    case = limited(use_case, mae=Limit(max=float(MAE)))
    spread = np.std([judge(case, errors(np.random.default_rng(seed), WINDOW)).metrics["mae"] for seed in range(300)])
    days, ends = 2 * WINDOW + 14, (2 * WINDOW, 2 * WINDOW + 7, 2 * WINDOW + 14)

    def find(errors_off: float, seed: int) -> bool:
        rows = errors(np.random.default_rng((1, seed)), days, worse=1 + errors_off * float(spread) / float(MAE))
        return any(look(case, rows, end).status == "degraded" for end in ends)

    assert np.mean([find(2.0, seed) for seed in range(100)]) > 0.6
    assert np.mean([find(4.0, seed) for seed in range(100)]) > 0.97
    assert np.mean([find(-2.0, seed) for seed in range(100)]) == 0


def restless(seed: int = 3) -> WatchedRows:
    """Its days differ so much that nothing can be told; its estimate lies beyond the limit."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(2 * WINDOW), ROWS)
    return watch(np.abs(rng.normal(0, 1, 2 * WINDOW))[day] * 1.1, np.zeros(len(day)), day)


def test_what_may_be_outside_is_told_and_triggers_nothing(use_case: UseCase) -> None:
    found = look(limited(use_case, mae=Limit(max=0.65)), restless(), 2 * WINDOW)
    assert (found.status, found.reasons) == ("ok", ())
    assert found.metrics["mae"] > 0.65
    assert "may be above 0.65, not sure" in found.doubts["mae"]
    assert found.longer is not None
    assert found.longer.status == "ok"


def test_sabotage_an_interval_of_no_width_makes_the_restless_one_trigger_again(
    use_case: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance_bounds, "jackknife", lambda *_args, **_named: (0.0, 0.0))
    found = look(limited(use_case, mae=Limit(max=0.65)), restless(), 2 * WINDOW)
    assert found.status == "degraded"


def test_a_window_in_doubt_is_settled_by_one_twice_as_long_for_the_limits_in_doubt_alone(use_case: UseCase) -> None:
    case = limited(use_case, mae=Limit(max=0.65), rmse=Limit(max=9.0))
    rows = restless()
    sure = watch(np.full(WINDOW * ROWS, 3.0), np.zeros(WINDOW * ROWS), np.repeat(np.arange(WINDOW), ROWS))
    asked: list[set[str]] = []

    def measure(limits: UseCase) -> Performance:
        asked.append(set(limits.monitor.limits))
        return judge(limits, sure)

    first = judge(case, since(rows, WINDOW, WINDOW))
    found = look_longer(case, first, measure)
    assert asked == [{"mae"}]
    assert found.status == "degraded"
    assert found.reasons[0].endswith("in a window twice as long, as this one left it open")
    fine = judge(limited(use_case, mae=Limit(max=9.0)), rows)
    assert look_longer(case, fine, measure) is fine
    assert len(asked) == 1


def test_of_one_block_nothing_is_sure_and_without_bounds_the_value_is_taken_as_it_is(use_case: UseCase) -> None:
    case = limited(use_case, mae=Limit(max=0.5))
    rows = watch(np.full(200, 3.0), np.zeros(200), np.zeros(200, int))
    found = judge(case, rows)
    assert (found.status, list(found.doubts)) == ("ok", ["mae"])
    assert found.bounds["mae"].high is None
    bare = judge_performance(predicted=200, labelled=200, metrics={"mae": 3.0}, monitor=case.monitor)
    assert bare.status == "degraded"
    assert bare.reasons == ("performance as restated: mae 3.0000 is above 0.5",)


@pytest.mark.parametrize(
    ("metric", "moved", "max_loss", "status"),
    [
        ("mae", (4.0, 4.6), 0.2, "degraded"), ("mae", (4.0, 4.3), 0.2, "ok"), ("mae", (4.0, 4.1), 0.2, "ok"),
        ("mae", (4.0, 9.0), None, "ok"), ("mae", (4.6, 4.0), 0.2, "ok"), ("bias", (0.1, -1.0), 0.2, "degraded"),
        ("auc", (0.8, 0.5), 0.1, "degraded"), ("auc", (0.8, 0.9), 0.1, "ok"),
    ],
)  # fmt: skip
def test_surely_worse_than_it_showed_at_the_gate_is_degraded_where_a_margin_is_declared(
    use_case: UseCase, metric: str, moved: tuple[float, float], max_loss: float | None, status: str
) -> None:
    then, now = moved
    monitor = limited(use_case, **{metric: Limit(max=100.0)}).monitor.model_copy(update={"max_loss": max_loss})
    near = MetricBounds(value=now, least=now, most=now, low=now - 0.1, high=now + 0.1, rows=500)
    found = judge_performance(
        predicted=500, labelled=500, metrics={metric: now}, monitor=monitor, bounds={metric: near},
        shown=Shown(metric=metric, rows=500, metrics={metric: then}),
    )  # fmt: skip
    assert found.status == status
    assert ("max_loss" in found.doubts) == (now == 4.3), "two errors of .1 make .14, and .3 is not surely above .2"
    assert found.shown is not None


def test_what_was_shown_by_few_rows_proves_less(use_case: UseCase) -> None:
    monitor = limited(use_case, mae=Limit(max=100.0)).monitor.model_copy(update={"max_loss": 0.2})
    near = MetricBounds(value=4.6, least=4.6, most=4.6, low=4.5, high=4.7, rows=500)

    def judged(rows: int, bounds: MetricBounds) -> str:
        shown = Shown(metric="mae", rows=rows, metrics={"mae": 4.0})
        return judge_performance(
            predicted=500, labelled=500, metrics={"mae": 4.6}, monitor=monitor, bounds={"mae": bounds}, shown=shown
        ).status

    assert (judged(500, near), judged(10, near)) == ("degraded", "ok")
    assert judged(10, certain(4.6)) == "degraded"
    wide = MetricBounds(value=4.6, least=3.9, most=5.0, low=3.8, high=5.1, outstanding=40, rows=500)
    assert judged(500, wide) == "unknown"


def test_a_margin_below_zero_is_refused(use_case: UseCase) -> None:
    block = use_case.monitor.model_dump()
    with pytest.raises(ValueError, match="max_loss"):
        Monitor(**{**block, "max_loss": -0.1})
    assert Monitor(**{**block, "max_loss": 0.1}).max_loss == 0.1
    assert Monitor(**block).max_loss is None
