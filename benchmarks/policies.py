"""When to retrain: what is told by whom, and what it comes to, beside the best that hindsight knows; without a stack.

    python -m benchmarks.policies flights [--seed-sets 1] [--starts 13]
    python -m benchmarks.policies taxi --reference month

Every policy is played on the kept models of `benchmarks.model_matrix` (which trains what is missing: minutes to hours,
once), from several starts. `live` is the product: its monitoring, triage and gate; the others have no gate. A training
has three prices: a tenth, one and ten times what the median one of the reference earned (the mean one, where most
earned nothing), in units of `endpoint.costs` where a use case declares them and retraining earns any, else of its
metric. The oracle knows all that will happen, and pays the same.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.retraining_rules import (
    DETECTORS,
    Detector,
    FindAlarm,
    Floats,
    Lose,
    measure_excess,
    watch_psi,
    watch_regret,
)
from benchmarks.live_policy import LivePolicy
from benchmarks.model_matrix import FOLDER, Fit, ModelMatrix, open_matrix
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
from benchmarks.table import keep_results
from models.metrics import compute_metric, to_loss
from models.recalibration import add_to_logits
from pipeline.settings import find_params
from pipeline.spec import UseCase, use_cases
from tasks.deploy.experiment.sequential import price_decisions

OURS = "live (ours)"
PRICES = (0.1, 1.0, 10.0)  # times what the median retraining of the reference earned
Play = Callable[[int, float], Course]  # from a start, at a price of a training


@dataclass(frozen=True, kw_only=True)
class Played:
    """One policy from one start of one matrix, at each of the prices."""

    policy: str
    start: int
    gain: float  # a share of the reference's, at the middle price
    trainings: int
    reference_trainings: int
    regret: tuple[float, ...]  # a partition, at each price
    promotions: int  # that four weeks followed
    surely_worse: int


def lose_metric(metric: str, label: Floats, score: Floats) -> float:
    """The metric as a loss, times the rows it was measured on."""
    return to_loss(metric, compute_metric(metric, score, label)) * len(label)


def lose_costs(use_case: UseCase, label: Floats, score: Floats) -> float:
    """What decisions cost, as `endpoint.costs` says."""
    assert use_case.endpoint is not None
    costs = use_case.endpoint.costs
    assert costs is not None
    return float(price_decisions(label, score >= costs.threshold, missed=costs.missed, needless=costs.needless).sum())


def measure_losses(matrix: ModelMatrix, deployed: Fit, lose: Lose) -> Floats:
    """What each model loses in each partition from its own on, by all labels: [partitions, partitions]."""
    losses = np.full((len(matrix.partitions), len(matrix.partitions)), np.nan)
    for place, partition in enumerate(matrix.partitions):
        rows = matrix.known(partition.start, partition.end)
        for model in range(place + 1):
            score = matrix.models[matrix.partitions[model].start, deployed].score(rows)
            losses[model, place] = lose(matrix.label[rows], score) if len(rows) else 0.0
    return losses


def list_reference(matrix: ModelMatrix, reference: str) -> list[int]:
    """The partitions at which the reference retrains: all, or the first to begin in a month."""
    starts = [partition.start for partition in matrix.partitions]
    return [at for at in range(1, len(starts)) if reference == "partition" or starts[at].month != starts[at - 1].month]


class Rivals:
    """Every policy on one matrix."""

    def __init__(self, matrix: ModelMatrix, deployed: Fit, reference: str, starts: Sequence[int]) -> None:
        use_case, self.partitions = matrix.use_case, len(matrix.partitions)
        self.starts = starts
        self.live = LivePolicy(matrix, deployed)
        metric: Lose = partial(lose_metric, use_case.train.metric)
        self.metric_losses = measure_losses(matrix, deployed, metric)
        self._at = list_reference(matrix, reference)
        lose, self.losses, self.unit = metric, self.metric_losses, str(use_case.train.metric)
        if use_case.endpoint is not None and use_case.endpoint.costs is not None:
            costs: Lose = partial(lose_costs, use_case)
            losses = measure_losses(matrix, deployed, costs)
            if self._measure_price(losses, starts[0]) > 0:  # else it pays in what the metric says, or not at all
                lose, self.losses, self.unit = costs, losses, "endpoint.costs"
        self._matrix, self._deployed, self._metric, self._loss = matrix, deployed, metric, lose
        self._rows = [matrix.known(partition.start, partition.end) for partition in matrix.partitions]
        self.earned = self._measure_price(self.losses, starts[0])
        if not self.earned > 0:
            raise ValueError(f"a retraining earned {self.earned:.3g} {self.unit}: no price follows from it")
        excess = measure_excess(matrix, deployed, lose)
        rules: dict[str, FindAlarm] = {
            f"{name}, {'days' if by_day else 'rows'}": Detector(name, matrix, deployed, by_day=by_day).find_alarm
            for by_day in (False, True)
            for name in DETECTORS
        }
        rules["PSI > .2"] = watch_psi(self.live)
        self.policies: Mapping[str, Play] = {
            "frozen": lambda start, _: train_at((), start, self.partitions),
            f"every {reference}": lambda start, _: self.reference(start),
            "best fixed interval": lambda start, price: train_every(self._interval(price), start, self.partitions),
            OURS: lambda start, _: self.live.play(start).course,
            **{name: partial(self._follow, rule) for name, rule in rules.items()},
            "regret > price": lambda start, price: train_when(watch_regret(excess, price), start, self.partitions),
        }
        self._intervals: dict[float, int] = {}

    def _measure_price(self, losses: Floats, start: int) -> float:
        """What the median training of the reference earned; the mean one, where most earned nothing."""
        earned = measure_earned(losses, self.reference(start))
        return float(np.median(earned)) if np.median(earned) > 0 else float(np.mean(earned))

    def reference(self, start: int) -> Course:
        """Retraining by the calendar, to whose gain all are compared."""
        return train_at(self._at, start, self.partitions)

    def _follow(self, rule: FindAlarm, start: int, _price: float) -> Course:
        return train_when(rule, start, self.partitions)

    def _interval(self, price: float) -> int:
        if price not in self._intervals:
            self._intervals[price] = find_best_interval(self.losses, price, self.starts)
        return self._intervals[price]

    def _lose(self, policy: str, course: Course, lose: Lose, losses: Floats) -> float:
        """What a course loses; ours by what was answered, recalibrated."""
        if policy != OURS:
            return course.lose(losses)
        lost, intercepts = 0.0, self.live.play(course.start).intercepts
        for place, (model, intercept) in enumerate(zip(course.serving, intercepts, strict=True), start=course.start):
            rows = self._rows[place]
            if len(rows):
                score = self._matrix.models[self._matrix.partitions[model].start, self._deployed].score(rows)
                lost += lose(self._matrix.label[rows], add_to_logits(score, np.full(len(rows), intercept)))
        return lost

    def play(self, policy: str, start: int) -> Played:
        """One policy from one start."""
        prices = [times * self.earned for times in PRICES]
        courses = [self.policies[policy](start, price) for price in prices]
        paid = [
            self._lose(policy, course, self._loss, self.losses) + price * course.trainings
            for course, price in zip(courses, prices, strict=True)
        ]
        best = [find_best_course(self.losses, price, start).cost(self.losses, price) for price in prices]
        middle, reference = courses[1], self.reference(start)
        looked = [self.live.is_surely_worse(old, new) for old, new in middle.promotions]
        return Played(
            policy=policy,
            start=start,
            gain=share_of_gain(
                self.metric_losses, self._lose(policy, middle, self._metric, self.metric_losses), reference
            ),
            trainings=middle.trainings,
            reference_trainings=reference.trainings,
            regret=tuple((cost - least) / (self.partitions - start) for cost, least in zip(paid, best, strict=True)),
            promotions=sum(worse is not None for worse in looked),
            surely_worse=sum(worse is True for worse in looked),
        )


def summarise(played: Sequence[Played]) -> list[dict[str, Any]]:
    """A line a policy, over starts and sets of seeds."""
    lines = []
    for policy in dict.fromkeys(one.policy for one in played):
        of_policy = [one for one in played if one.policy == policy]
        gains = [one.gain for one in of_policy]
        lines.append(
            {
                "policy": policy,
                "gain": [float(np.mean(gains)), min(gains), max(gains)],
                "trainings": sum(one.trainings for one in of_policy)
                / sum(one.reference_trainings for one in of_policy),
                "regret": np.mean([one.regret for one in of_policy], axis=0).tolist(),
                "promotions": sum(one.promotions for one in of_policy),
                "surely_worse": sum(one.surely_worse for one in of_policy),
            }
        )
    return lines


def render(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines as a table of Markdown."""
    head = ["", "gain [worst, best start]", "retrainings", *(f"regret at {p:g}" for p in PRICES), "surely worse"]
    table = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for line in lines:
        mean, low, high = line["gain"]
        worse = f"{line['surely_worse']} of {line['promotions']}" if line["promotions"] else "-"
        regret = [f"{value:.3g}" for value in line["regret"]]
        cells = [line["policy"], f"{mean:.2f} [{low:.2f}, {high:.2f}]", f"{line['trainings']:.2f}", *regret, worse]
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def main() -> None:
    """Play, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__.partition("\n")[0])
    known = use_cases(find_params(os.environ))
    parser.add_argument("use_case", choices=sorted(known))
    parser.add_argument("--seed-sets", type=int, default=1)
    parser.add_argument("--starts", type=int, default=13, help="the first so many partitions, one start each")
    parser.add_argument("--fits", nargs="+", type=Fit, default=list(Fit), help="what answers: judged, refitted models")
    parser.add_argument(
        "--first", type=int, help="only so many partitions, so that the later ones judge what is chosen"
    )
    parser.add_argument("--reference", choices=("partition", "month"), default="partition")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    use_case = known[asked.use_case]
    tables, earned, decisions = {}, {}, {}
    for fit in asked.fits:
        played = []
        for seed_set in range(asked.seed_sets):
            matrix = open_matrix(
                use_case, seed_set=seed_set, train=True, folder=asked.folder, fits={Fit.JUDGED, fit}, first=asked.first
            )
            trained = list_reference(matrix, asked.reference)
            if not trained:
                raise SystemExit(
                    f"{use_case.name}: {len(matrix.partitions)} partitions, and no second model among them"
                )
            rivals = Rivals(matrix, fit, asked.reference, range(min(asked.starts, trained[-1])))
            played += [rivals.play(policy, start) for policy in rivals.policies for start in rivals.starts]
            earned[f"{fit} {seed_set}"] = rivals.earned
            if seed_set == 0:
                decisions[fit] = rivals.live.play(0).decisions
        tables[fit] = summarise(played)
        print(f"\n{use_case.name}, {fit} models answer; regret a partition in {rivals.unit}\n{render(tables[fit])}")
    keep_results(
        f"policies-{use_case.name}", unit=rivals.unit, seed_sets=asked.seed_sets, starts=asked.starts,
        reference=asked.reference, partitions=len(matrix.partitions), earned=earned, tables=tables, decisions=decisions,
    )  # fmt: skip


if __name__ == "__main__":
    main()
