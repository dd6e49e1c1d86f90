"""Performance before labels: beside NannyML's CBPE on its own car loans, and week by week on replayed use cases.

    python -m benchmarks.expected_performance [--parts loans flights taxi] [--data DIR] [--nannyml PYTHON] [--rows FILE]

Car loans are the example data of the wheel `nannyml` (fetched by pip into a temporary folder, or in DIR): ten chunks of
5,000 whose AUC is expected from 50,000 reference rows, and alerts by NannyML's rule, three standard deviations of the
reference chunks'. PYTHON is of an environment with NannyML, which then answers the same beside ours.

Flights, and taxi trips where `make taxi-data` was run, are scored by a champion that is trained anew every
`max_age_days`, or never, with the configuration below, and estimated at each week's end as monitoring does; once as
their labels come, and once as if a label took 30 days.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

import features
from benchmarks.matrix_rows import build_rows
from benchmarks.quality import year
from benchmarks.table import keep_results
from models.bundle import Bundle
from models.ensemble import fit_ensemble
from models.metrics import Vector, auc, compute_metrics
from models.training import best_device, deterministic
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from serving.predictor import Predictor
from tasks.monitor.expected_performance import MaturedEstimate, MaturedRows, MetricEstimate, Trust, estimate_window
from tasks.train.split import split
from tasks.train.trainer import make_recipe

NANNYML = "nannyml==0.13.1"
CHUNK = 5000
SEED = 2013
RECIPE = {
    "network": "mlp", "hidden_units": 64, "layers": 2, "dropout": 0.2, "learning_rate": 0.002, "weight_decay": 0.01,
    "label_smoothing": 0.0,
}  # fmt: skip
EPOCHS = 5
FLIGHTS_FIRST = datetime(2013, 4, 1, tzinfo=UTC)
TAXI_FIRST = datetime(2018, 7, 2, tzinfo=UTC)
CBPE = """
import json
import nannyml
reference, analysis, _ = nannyml.load_synthetic_car_loan_dataset()
cbpe = nannyml.CBPE(
    problem_type="classification_binary", y_pred_proba="y_pred_proba", y_pred="y_pred", y_true="repaid",
    timestamp_column_name="timestamp", metrics=["roc_auc"], chunk_size=5000)
frame = cbpe.fit(reference).estimate(analysis).filter(period="analysis").to_df()["roc_auc"]
print(json.dumps({"expected": frame["value"].tolist(), "alert": [bool(each) for each in frame["alert"]]}))
"""


@dataclass(frozen=True, kw_only=True)
class Loans:
    """Scores, labels and days [n], in the order of time."""

    score: Vector
    label: Vector
    day: Any

    def chunks(self) -> Iterator["Loans"]:
        """Each CHUNK rows."""
        for start in range(0, len(self.score), CHUNK):
            part = slice(start, start + CHUNK)
            yield Loans(score=self.score[part], label=self.label[part], day=self.day[part])


def fetch(folder: Path) -> Path:
    """NannyML's example data, out of its wheel, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), NANNYML]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("nannyml-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if "/datasets/data/synthetic_car_loan_" in name:
                (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


def read_loans(folder: Path) -> tuple[Loans, Loans]:
    """(reference, analysis), both with their labels."""
    reference, analysis, target = (
        pacsv.read_csv(folder / f"synthetic_car_loan_{name}.csv")
        for name in ("reference", "analysis", "analysis_target")
    )
    analysis = analysis.append_column("repaid", target["repaid"])  # a row each, in the same order
    return tuple(  # type: ignore[return-value]  # two
        Loans(
            score=table["y_pred_proba"].to_numpy(),
            label=table["repaid"].to_numpy().astype(np.float64),
            day=table["timestamp"].to_numpy().astype("datetime64[D]"),
        )
        for table in (reference, analysis)
    )


def expect_loans(reference: Loans, analysis: Loans) -> list[dict[str, Any]]:
    """Each analysis chunk's AUC as expected and as it is, and whether it is an alert; labels come a chunk later."""
    known = [auc(chunk.score, chunk.label) for chunk in reference.chunks()]
    low, high = np.mean(known) - 3 * np.std(known), np.mean(known) + 3 * np.std(known)
    matured = MaturedRows(score=reference.score, label=reference.label, day=reference.day)
    past: list[MaturedEstimate] = []
    found = []
    for chunk in analysis.chunks():
        expected = estimate_window("binary", chunk.score, matured, {"auc": past}, seed=SEED)["auc"]
        past.append(MaturedEstimate(estimate=expected, realised=auc(chunk.score, chunk.label)))
        found.append(
            {
                "expected": expected.value, "low": expected.low, "high": expected.high, "realised": past[-1].realised,
                "alert": bool(not low <= expected.value <= high), "held": past[-1].has_held,
            }
        )  # fmt: skip
    return found


def ask_nannyml(python: str) -> dict[str, list[Any]]:
    """What CBPE says of the same chunks, in its own environment."""
    environment = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"}
    done = subprocess.run([python, "-c", CBPE], check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True)
class Weekly:
    """A week's estimate of a metric, and what became of it."""

    week: str
    champion: str
    metric: str
    estimate: MetricEstimate
    realised: float


class Replayed:
    """A use case's labelled rows in the order of prediction time, the champions of it, and the weeks from one on."""

    def __init__(self, use_case: UseCase, rows: pa.Table, first: datetime) -> None:
        self.use_case, self.rows, self.first = use_case, rows, first
        self.champions: dict[datetime, tuple[datetime, Vector]] = {}

    def mask(self, start: datetime, end: datetime) -> Any:
        """The rows predicted in [start, end)."""
        at, moment = self.rows["prediction_time"], pa.timestamp("us", "UTC")
        return np.asarray(pc.and_(pc.greater_equal(at, pa.scalar(start, moment)), pc.less(at, pa.scalar(end, moment))))

    def champion(self, born: datetime) -> tuple[datetime, Vector]:
        """Until when it learnt, and its score of every row."""
        if born not in self.champions:
            moments = split(self.use_case, born)
            oldest = datetime(1970, 1, 1, tzinfo=UTC)
            learnt = self.rows.filter(pa.array(self.mask(oldest, moments.fit_until)))
            recipe = make_recipe(self.use_case, features.definition(self.use_case.name), RECIPE, epochs=EPOCHS)
            seeds = tuple(self.use_case.seed + n for n in range(self.use_case.train.ensemble_seeds))
            with deterministic(recipe.threads):
                ensemble = fit_ensemble(replace(recipe, seeds=seeds), learnt, best_device())
            predictor = Predictor(Bundle(card={}, encoder=ensemble.encoder, members=ensemble.members))
            self.champions[born] = moments.fit_until, predictor.predict(self.rows)
            print(f"champion of {born:%Y-%m-%d}: {learnt.num_rows} rows", flush=True)
        return self.champions[born]

    def expect(self, lag: timedelta, retrain_days: int | None) -> list[Weekly]:
        """Every whole week from the first on, estimated at its end; its labels are known a lag after it."""
        born, start, week = self.first, self.first, timedelta(days=7)
        last = self.rows["prediction_time"][-1].as_py()
        found: list[Weekly] = []
        while start + week <= last:
            if retrain_days is not None and start - born >= timedelta(days=retrain_days):
                born = start
            found = [*found, *self.expect_week(born, start, lag, found)]
            start += week
        return found

    def expect_week(self, born: datetime, start: datetime, lag: timedelta, before: list[Weekly]) -> Iterator[Weekly]:
        """What monitoring would expect at the week's end, of the champion born then; nothing by too few rows."""
        kind, monitor, end = self.use_case.target.kind, self.use_case.monitor, start + timedelta(days=7)
        label, day = (self.rows["label"].to_numpy(), self.rows["prediction_time"].to_numpy().astype("datetime64[D]"))
        learnt_until, score = self.champion(born)
        known = min(start, end - lag)
        since = known - timedelta(days=monitor.performance_days)
        chosen = self.mask(max(since, born), known)
        if chosen.sum() < monitor.min_labelled:  # young: what it did not learn, scored now
            chosen = self.mask(max(since, learnt_until), known)
        week = self.mask(start, end)
        if min(chosen.sum(), week.sum()) < monitor.min_labelled:
            return
        matured = MaturedRows(score=score[chosen], label=label[chosen], day=day[chosen])
        past: dict[str, list[MaturedEstimate]] = {}
        for each in before:
            if datetime.fromisoformat(each.week) + timedelta(days=7) + lag <= end:
                past.setdefault(each.metric, []).append(MaturedEstimate(estimate=each.estimate, realised=each.realised))
        realised = compute_metrics(kind, score[week], label[week])
        for name, estimate in estimate_window(kind, score[week], matured, past, seed=SEED).items():
            if name in realised:
                yield Weekly(start.isoformat(), f"{born:%Y-%m-%d}", name, estimate, realised[name])


def summarise(weekly: list[Weekly], metric: str) -> dict[str, Any]:
    """How often the intervals of a metric held, in all and where trusted; how often two trusted in a row did not."""
    chosen = [each for each in weekly if each.metric == metric]
    held = [each.estimate.low <= each.realised <= each.estimate.high for each in chosen]
    trusted = [each.estimate.trust == Trust.TRUSTED for each in chosen]
    both = [hold for hold, trust in zip(held, trusted, strict=True) if trust]
    missed = [trust and not hold for hold, trust in zip(held, trusted, strict=True)]
    return {
        "weeks": len(chosen),
        "held": float(np.mean(held)),
        "trusted": len(both),
        "held where trusted": float(np.mean(both)) if both else None,
        "trusted misses in a row": sum(a and b for a, b in pairwise(missed)),
        "mean error": float(np.mean([abs(each.estimate.value - each.realised) for each in chosen])),
        "mean width": float(np.mean([each.estimate.high - each.estimate.low for each in chosen])),
        "is": "".join(
            {(True, True): "+", (True, False): "-", (False, True): ".", (False, False): "x"}[both]
            for both in zip(trusted, held, strict=True)
        ),
    }


def measure_loans(folder: Path | None, nannyml: str | None) -> dict[str, Any]:
    """The car loans, printed."""
    with tempfile.TemporaryDirectory() as scratch:
        loans = expect_loans(*read_loans(folder or fetch(Path(scratch))))
    print("chunk  realised  expected  from      to      alert")
    for number, each in enumerate(loans):
        told = "    ".join(f"{each[name]:.4f}" for name in ("realised", "expected", "low", "high"))
        print(f"{number:5}  {told}  {each['alert']}")
    result: dict[str, Any] = {"chunks": loans, "mean error": _mean_error(loans)}
    print(f"mean error {result['mean error']:.5f}")
    if nannyml:
        theirs = ask_nannyml(nannyml)
        rows = [each | {"expected": value} for each, value in zip(loans, theirs["expected"], strict=True)]
        same = sum(each["alert"] == alert for each, alert in zip(loans, theirs["alert"], strict=True))
        result["nannyml"] = {**theirs, "mean error": _mean_error(rows), "same verdicts": same}
        print(f"NannyML: mean error {_mean_error(rows):.5f}, {same} of {len(rows)} verdicts are the same")
    return result


def measure_weeks(replayed: Replayed) -> dict[str, Any]:
    """A use case's weeks, with labels as they come and as if they took 30 days, retrained and not; printed."""
    own, days, month = replayed.use_case.time.label_lag, replayed.use_case.monitor.max_age_days, timedelta(days=30)
    result: dict[str, Any] = {}
    for name, lag, retrain_days in (
        ("as labels come, retrained", own, days),
        ("as labels come, frozen", own, None),
        ("labels after 30 days, retrained", month, days),
        ("labels after 30 days, frozen", month, None),
    ):
        weekly = replayed.expect(lag, retrain_days)
        result[name] = {metric: summarise(weekly, metric) for metric in sorted({each.metric for each in weekly})}
        for metric, found in result[name].items():
            print(name, metric, found, flush=True)
    return result


def main() -> None:
    """Measure, print, keep: a file for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("loans", "flights", "taxi"), default=("loans", "flights"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nannyml", metavar="PYTHON")
    parser.add_argument("--rows", type=Path, default=Path("build/benchmarks/flights-2013.parquet"))
    arguments = parser.parse_args()
    if "loans" in arguments.parts:
        keep_results("expected-performance-loans", **measure_loans(arguments.data, arguments.nannyml))
    declared = use_cases(REPOSITORY / "params.yaml")
    if "flights" in arguments.parts:
        flights = Replayed(declared["flights"], year(declared["flights"], arguments.rows), FLIGHTS_FIRST)
        keep_results("expected-performance-flights", weeks=measure_weeks(flights))
    if "taxi" in arguments.parts:
        rows = build_rows(declared["taxi"])
        taxi = Replayed(declared["taxi"], rows.filter(rows["label"].is_valid()), TAXI_FIRST)
        keep_results("expected-performance-taxi", weeks=measure_weeks(taxi))


def _mean_error(chunks: list[dict[str, Any]]) -> float:
    return float(np.mean([abs(each["expected"] - each["realised"]) for each in chunks]))


if __name__ == "__main__":
    main()
