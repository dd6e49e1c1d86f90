"""What the gate's rule promotes: operating characteristics by true effect, holdout length and what was seen before.

    python -m benchmarks.gate [--histories 100] [--plot docs/gate.png]

A history is twelve candidates in a row, each against a champion that is as stale as has been drawn: equal (A/A) in a
third of them, the others stale by a gain of up to about .02 log-loss, or newer than the candidate. Days differ, and
days that follow each other are alike, in how much staleness costs. The gate judges each on its holdout by the product's
`decide`; what it is truly worth is measured on the 400 days that follow. Beside it the rule of before: the lower 95 %
bound of the effect above `min_effect`.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import keep_results
from models.metrics import compute_metric
from pipeline.handoffs import VerdictAnswer
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.promote.expected_effect import MeasuredEffect
from tasks.promote.gate import decide
from tasks.promote.gate_checks import HoldoutRows, Scored, Setting

_ROWS_A_DAY = 400
_LATER_DAYS = 400
_CANDIDATES = 12
_CARRIERS, _HOURS = 8, 18
_ALIKE = 0.3  # the correlation of a day with the next
_START = np.datetime64("2013-04-01", "us")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class JudgedCandidate:
    """One candidate: what it was truly worth, what was measured, and what each rule answered."""

    history: int
    place: int
    true: float
    value: float
    error: float
    answers: dict[str, bool]  # rule -> promoted


@dataclass(frozen=True)
class Days:
    """Rows of so many days: what is known of each, its label, and how much staleness costs on its day."""

    x: Floats
    carrier: NDArray[np.intp]
    hour: NDArray[np.intp]
    day: NDArray[np.intp]
    weight: Floats
    label: Floats


def draw_days(rng: np.random.Generator, days: int) -> Days:
    """Flights of days in a row."""
    n, level, levels = days * _ROWS_A_DAY, 0.0, []
    for _ in range(days):
        level = _ALIKE * level + math.sqrt(1 - _ALIKE**2) * rng.normal()
        levels.append(level)
    day = np.repeat(np.arange(days), _ROWS_A_DAY)
    x, weather = rng.normal(0, 0.9, n), np.array(levels)[day]
    carrier, hour = rng.integers(0, _CARRIERS, n), rng.integers(0, _HOURS, n)
    probability = _sigmoid(-1.5 + x + 0.4 * weather)
    return Days(x, carrier, hour, day, 1 + weather, (rng.random(n) < probability).astype(np.float64))


def _sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


class Model:
    """Three members that err by carrier and hour, each its own way, and are stale all the same way."""

    def __init__(self, rng: np.random.Generator, stale: float) -> None:
        self._members = [(rng.normal(0, 0.12, _CARRIERS), rng.normal(0, 0.12, _HOURS)) for _ in range(3)]
        self._stale = stale * rng.normal(0, 1, _HOURS)

    def answer(self, days: Days, version: str) -> Scored:
        """Its scores of the rows."""
        known = -1.5 + days.x + self._stale[days.hour] * days.weight
        members = np.array([_sigmoid(known + a[days.carrier] + b[days.hour]) for a, b in self._members])
        cutoff = datetime(2013, 3, 1, tzinfo=UTC)
        return Scored(version=version, cutoff=cutoff, scores=members.mean(0), members=members)


def simulate(history: int, holdout_days: int) -> Iterator[JudgedCandidate]:
    """Twelve candidates of one use case, one after the other."""
    rng = np.random.default_rng((history, holdout_days))
    case = use_cases(REPOSITORY / "params.yaml")["flights"]
    gate = case.gate.model_copy(update={"slices": (), "resamples": 400, "max_calibration_gap": 1.0, "min_rows": 1})
    past: list[MeasuredEffect] = []
    for place in range(_CANDIDATES):
        stale = 0.0 if history % 3 == 0 else float(rng.uniform(-0.15, 0.35))
        champion, candidate = Model(rng, max(stale, 0.0)), Model(rng, max(-stale, 0.0))
        days, later = draw_days(rng, holdout_days), draw_days(rng, _LATER_DAYS)
        true = _gain(candidate.answer(later, "2"), champion.answer(later, "1"), later)
        rows = HoldoutRows(
            prediction_time=_START + days.day * np.timedelta64(1, "D"),
            label=days.label,
            slices={},
            fingerprint="",
            entity=np.zeros(len(days.x), np.str_),
        )
        setting = Setting(
            gate=gate, kind="binary", block="day", holdout_start=datetime(2013, 4, 1, tzinfo=UTC), latency_ms=0,
            seed=place,
        )  # fmt: skip
        both = candidate.answer(days, "2"), champion.answer(days, "1")
        flat = decide(setting, rows, *both)
        shrunk = decide(replace(setting, past=tuple(past)), rows, *both)
        effect = flat.evidence["effect"]
        past.append(MeasuredEffect(effect["value"], effect["standard_error"]))
        yield JudgedCandidate(
            history, place, true, effect["value"], effect["standard_error"],
            {
                "ours": shrunk.answer == VerdictAnswer.PROMOTE,
                "without what was seen before": flat.answer == VerdictAnswer.PROMOTE,
                "lower bound": effect["low"] > gate.min_effect,
                "estimate": effect["value"] > gate.min_effect,
            },
        )  # fmt: skip


def _gain(candidate: Scored, champion: Scored, days: Days) -> float:
    return compute_metric("log_loss", champion.scores, days.label) - compute_metric(
        "log_loss", candidate.scores, days.label
    )


CLASSES = {
    "worse by more than .002": (-math.inf, -0.002),
    "worse by .0005 to .002": (-0.002, -0.0005),
    "equal": (-0.0005, 0.0005),
    "better by .0005 to .002": (0.0005, 0.002),
    "better by .002 to .01": (0.002, 0.01),
    "better by more than .01": (0.01, math.inf),
}


def tabulate(judged: list[JudgedCandidate]) -> dict[str, dict[str, float]]:
    """By class of true effect, how many there were and what share each rule promotes; last, the share of gain."""
    found: dict[str, dict[str, float]] = {}
    for name, (low, high) in CLASSES.items():
        some = [one for one in judged if low < one.true <= high]
        shares = {rule: float(np.mean([one.answers[rule] for one in some])) for rule in judged[0].answers if some}
        found[name] = {"candidates": len(some), **shares}
    best = sum(max(one.true, 0.0) for one in judged)
    found["share of the gain"] = {
        "candidates": len(judged),
        **{rule: sum(one.true for one in judged if one.answers[rule]) / best for rule in judged[0].answers},
    }
    return found


def draw(by_days: dict[int, list[JudgedCandidate]], target: Path) -> None:
    """Promoted share by true effect, a line a rule and holdout."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (days, judged) in zip(figure.subplots(1, len(by_days), sharey=True), by_days.items(), strict=True):
        edges = np.quantile([one.true for one in judged], np.linspace(0, 1, 13))
        for rule in ("lower bound", "ours"):
            bins = [[one for one in judged if a <= one.true <= b] for a, b in pairwise(edges)]
            axes.plot(
                [np.mean([one.true for one in some]) for some in bins],
                [np.mean([one.answers[rule] for one in some]) for some in bins],
                marker="o", markersize=3, label=rule,
            )  # fmt: skip
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_title(f"{days} days", fontsize=9)
        axes.set_xlabel("true gain (log-loss)", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.axes[0].set_ylabel("promoted", fontsize=8)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(target, dpi=110, metadata={"Software": None})


def main() -> None:
    """Simulate, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    by_days = {
        days: [one for history in range(arguments.histories) for one in simulate(history, days)] for days in (7, 14, 28)
    }
    found = {f"{days} days": tabulate(judged) for days, judged in by_days.items()}
    for days, classes in found.items():
        print(days)
        for name, shares in classes.items():
            print(f"  {name:26}" + "  ".join(f"{rule} {share:.3f}" for rule, share in shares.items()))
    if arguments.plot:
        draw(by_days, arguments.plot)
    keep_results("gate", histories=arguments.histories, candidates_each=_CANDIDATES, found=found)


if __name__ == "__main__":
    main()
