"""What the gate makes of slices: how often a candidate is refused for one, by what the worst of them truly loses.

    python -m benchmarks.gate_slices [--candidates 200]

Two weeks of flights of twelve carriers, as unlike in size as New York's. The champion is stale, so that the candidate
is better overall; on one carrier it is off by as much as has been planted. What each slice truly loses is worked out
from the true chances of far more rows. Beside the product's rule the one of before: surely worse by more than
`max_slice_loss` at 95 %, adjusted for all slices (Holm; Student's t for the bootstrap that it used).
"""

import argparse
import itertools
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from benchmarks.table import keep_results
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.promote.gate_checks import HoldoutRows, Scored, Setting
from tasks.promote.slice_effects import compare_rows, slice_table

_SHARES = np.array([0.18, 0.17, 0.16, 0.15, 0.1, 0.07, 0.05, 0.04, 0.03, 0.02, 0.02, 0.01])
_DAYS, _ROWS_A_DAY, _KNOWN_ROWS = 14, 800, 300_000
_PLANTED = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # logits that the candidate is off on one carrier
_HABITS = (0.0, 0.12)  # by how much models differ from carrier to carrier, whatever was planted
_LIMITS = (0.2, 0.5, 0.8, 0.95)
_START = np.datetime64("2013-04-01", "us")

Floats = NDArray[np.float64]


def _sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


def _losses(chance: Floats, score: Floats) -> Floats:
    return -chance * np.log(score) - (1 - chance) * np.log(1 - score)


class Candidate:
    """A candidate off by `planted` logits on one carrier, beside a champion that is off by hour."""

    def __init__(self, rng: np.random.Generator, planted: float, habits: float) -> None:
        self.rng, self.planted = rng, planted
        self.bad = int(rng.integers(0, 8))  # of the others no slice has rows enough
        self.stale, self.habits = rng.normal(0, 0.35, 18), rng.normal(0, habits, (2, len(_SHARES)))

    def draw(self, rows: int, weather: Floats) -> tuple[NDArray[np.intp], Floats, Floats, Floats]:
        """So many rows: carriers, true chances, and the scores of candidate and champion."""
        carrier = self.rng.choice(len(_SHARES), rows, p=_SHARES)
        known, hour = -1.5 + self.rng.normal(0, 0.9, rows), self.rng.integers(0, 18, rows)
        ours = known + self.habits[0][carrier] + self.planted * (carrier == self.bad)
        theirs = known + self.habits[1][carrier] + self.stale[hour]
        return carrier, _sigmoid(known + weather), _sigmoid(ours), _sigmoid(theirs)

    def worst_true(self) -> float:
        """The effect on the slice that is worst off, of those that can be tested."""
        carrier, chance, ours, theirs = self.draw(_KNOWN_ROWS, self.rng.normal(0, 0.4, _KNOWN_ROWS))
        gain = _losses(chance, theirs) - _losses(chance, ours)
        return min(float(gain[carrier == one].mean()) for one in range(8))


def judge(candidate: Candidate) -> dict[str, bool]:
    """Whether each rule refuses it for a slice, on two weeks of its own."""
    gate = use_cases(REPOSITORY / "params.yaml")["flights"].gate.model_copy(update={"resamples": 200})
    day = np.repeat(np.arange(_DAYS), _ROWS_A_DAY)
    carrier, chance, ours, theirs = candidate.draw(len(day), candidate.rng.normal(0, 0.4, _DAYS)[day])
    rows = HoldoutRows(
        prediction_time=_START + day * np.timedelta64(1, "D"),
        label=(candidate.rng.random(len(day)) < chance).astype(np.float64),
        slices={"carrier": np.char.add("C", carrier.astype(str))},
        fingerprint="",
        entity=np.zeros(len(day), np.str_),
    )
    start = datetime(2013, 4, 1, tzinfo=UTC)
    setting = Setting(gate=gate, kind="binary", block="day", holdout_start=start, latency_ms=0, seed=1)
    both = [Scored(version=name, cutoff=start, scores=scores) for name, scores in (("2", ours), ("1", theirs))]
    whole = compare_rows(setting, rows, *both, mask=np.ones(len(day), np.bool_), correlation=None)
    tested = [row for row in slice_table(setting, rows, both[0], both[1], whole) if row["tested"]]
    chances = np.array([row["chance_of_loss"] for row in tested])
    found = {f"now, at {limit}": bool((chances > limit).any()) for limit in _LIMITS}
    return {"before": _would_have_failed(setting, rows, both, whole.correlation, len(tested)), **found}


def _would_have_failed(
    setting: Setting, rows: HoldoutRows, both: list[Scored], correlation: float, tested: int
) -> bool:
    carriers, counts = np.unique(rows.slices["carrier"], return_counts=True)
    for carrier in carriers[counts >= setting.gate.min_slice_rows]:
        mask = rows.slices["carrier"] == carrier
        effect = compare_rows(setting, rows, *both, mask=mask, correlation=correlation)
        certain = t.cdf((effect.value + setting.gate.max_slice_loss) / effect.standard_error, effect.blocks - 1)
        if certain * tested <= 1 - setting.gate.confidence:
            return True
    return False


def main() -> None:
    """Simulate, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_slices", description=__doc__)
    parser.add_argument("--candidates", type=int, default=200)
    arguments = parser.parse_args()
    table = []
    for habits, (place, planted) in itertools.product(_HABITS, enumerate(_PLANTED)):
        some = [Candidate(np.random.default_rng((place, n)), planted, habits) for n in range(arguments.candidates)]
        true, answers = np.array([one.worst_true() for one in some]), [judge(one) for one in some]
        refused = {rule: float(np.mean([answer[rule] for answer in answers])) for rule in answers[0]}
        table.append({"habits": habits, "planted": planted, "worst_slice": float(np.median(true)), "refused": refused})
        shares = {rule: round(share, 3) for rule, share in refused.items()}
        print(f"{habits:5} {planted:5} {np.median(true):+.4f}", shares, flush=True)
    keep_results("gate-slices", candidates=arguments.candidates, table=table)


if __name__ == "__main__":
    main()
