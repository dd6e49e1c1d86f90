"""When to retrain: never, every month, or when monitoring says so; on 130 weeks of real taxi trips, without a stack.

    python -m benchmarks.policies [--trials 9]

Features, training, profile, drift, triage and gate are the product's own functions, week by week as its DAGs call them;
there is no source, lake or warehouse, so it takes minutes and not hours. One search, before the first champion, settles
the configuration that every training uses; the product searches anew each time. Trips are fetched by `make taxi-data`.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import features
from benchmarks import alone
from benchmarks.table import keep_results
from infra.replay.taxi_source import TAXI_REPLAYED, read_trips
from models.bundle import Bundle
from models.ensemble import Recipe, fit_ensemble
from models.metrics import compute_metrics
from models.training import best_device, deterministic
from pipeline.handoffs import VerdictAnswer
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from serving.predictor import Predictor
from tasks.build_features.profile import make_profile
from tasks.monitor.drift import SCORE, measure_drift
from tasks.monitor.performance_limits import judge_performance
from tasks.monitor.triage import (
    Action,
    Observed,
    OtherDecision,
    RetrainState,
    breached_features,
    make_decision,
)
from tasks.promote.evaluate import frozen_rows
from tasks.promote.gate import Judgement, decide
from tasks.promote.gate_checks import Scored, Setting
from tasks.train.split import split
from tasks.train.study import summarise_study
from tasks.train.trainer import Trainer, make_recipe

_ORDER = [(name, "ascending") for name in ("prediction_time", "entity_key", "event_time")]


@dataclass(frozen=True)
class Rows:
    """Points with their features, and label and label_time where there is one, in the order of prediction time."""

    table: pa.Table

    def between(self, start: datetime, end: datetime, *, known_by: datetime | None = None) -> pa.Table:
        """Points of [start, end); with `known_by` those whose label was known by then."""
        moment = pa.timestamp("us", "UTC")
        at = self.table["prediction_time"]
        mask = pc.and_(pc.greater_equal(at, pa.scalar(start, moment)), pc.less(at, pa.scalar(end, moment)))
        if known_by is not None:
            mask = pc.and_(mask, pc.less_equal(self.table["label_time"], pa.scalar(known_by, moment)))
        return self.table.filter(mask)


@dataclass(frozen=True)
class Model:
    """A trained version: its name, when it was trained, its cut-off, predictors (of members, too) and profile."""

    version: str
    born_at: datetime
    cutoff: datetime
    whole: Predictor
    members: tuple[Predictor, ...]
    profile: dict[str, Any]


@dataclass
class Live:
    """The state that the product keeps in its database."""

    champion: Model
    history: list[OtherDecision] = field(default_factory=list)
    scored: dict[str, list[pa.Table]] = field(default_factory=dict)  # version -> its points, with scores


def build_rows(use_case: UseCase) -> Rows:
    """Every trip with its features; what validation would set aside has no label here either."""
    definition = features.definition(use_case.name)
    assert use_case.source.last_partition is not None
    last = datetime.combine(use_case.source.last_partition, datetime.min.time(), UTC)
    span = Interval(use_case.grid.partition(str(use_case.source.first_partition)).start, last + timedelta(days=7))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: [Path(folder) / f"{name}.parquet"] for name in definition.sources}
        for name, table in read_trips().items():
            pq.write_table(table, paths[name][0])
        points, labels = features.build(definition, paths, span, use_case.time.lead)
    return Rows(points.join(labels, ["entity_key", "event_time"], join_type="left outer").sort_by(_ORDER))


def train(use_case: UseCase, recipe: Recipe, rows: Rows, as_of: datetime) -> Model:
    """The product's refit as of a data time."""
    cutoff = split(use_case, as_of).cutoff
    table = rows.between(datetime.min.replace(tzinfo=UTC, year=1970), cutoff, known_by=cutoff)
    with deterministic(recipe.threads):
        ensemble = fit_ensemble(recipe, table, best_device())
    whole = Predictor(Bundle(card={}, encoder=ensemble.encoder, members=ensemble.members))
    alone_each = tuple(
        Predictor(Bundle(card={}, encoder=ensemble.encoder, members=(member,))) for member in ensemble.members
    )
    profile = make_profile(table.append_column(SCORE, pa.array(whole.predict(table))), use_case)
    return Model(f"{as_of:%Y-%m-%d}", as_of, cutoff, whole, alone_each, profile)


def judge(use_case: UseCase, rows: Rows, as_of: datetime, candidate: Model, champion: Model) -> Judgement:
    """The product's gate."""
    moments = split(use_case, as_of)
    table = rows.between(moments.holdout_start, moments.holdout_end, known_by=as_of)
    ours, theirs = (
        Scored(
            version=model.version,
            cutoff=model.cutoff,
            scores=model.whole.predict(table),
            members=np.array([member.predict(table) for member in model.members]),
        )
        for model in (candidate, champion)
    )
    setting = Setting(
        gate=use_case.gate,
        kind=use_case.target.kind,
        holdout_start=moments.holdout_start,
        label_delay=use_case.time.label_delay,
        latency_ms=0.0,
        seed=use_case.seed,
    )
    return decide(setting, frozen_rows(use_case, table), ours, theirs)


def observe(use_case: UseCase, rows: Rows, week: Interval, live: Live) -> Observed:
    """What monitoring sees at the end of a week that the champion scored."""
    champion, as_of = live.champion, week.end
    points = rows.between(week.start, week.end)
    scored = points.append_column(SCORE, pa.array(champion.whole.predict(points)))
    live.scored.setdefault(champion.version, []).append(scored)
    end = as_of - use_case.time.label_delay
    window = Rows(pa.concat_tables(live.scored[champion.version])).between(
        end - timedelta(days=use_case.monitor.performance_days), end
    )
    known = Rows(window).between(week.start - timedelta(days=365), week.end, known_by=as_of)
    columns = set(champion.profile["features"])
    moment = pa.timestamp("us", "UTC")
    label_time = rows.table["label_time"]
    fresh = pc.and_(
        pc.greater(label_time, pa.scalar(champion.born_at, moment)), pc.less_equal(label_time, pa.scalar(as_of, moment))
    )
    return Observed(
        as_of=as_of,
        model_version=champion.version,
        drifts=measure_drift(
            champion.profile, scored.select([n for n in scored.column_names if n in columns]), use_case.monitor
        ),
        performance=judge_performance(
            predicted=window.num_rows,
            labelled=known.num_rows,
            metrics=compute_metrics(use_case.target.kind, known[SCORE].to_numpy(), known["label"].to_numpy())
            if known.num_rows
            else {},
            monitor=use_case.monitor,
        ),
        born_at=champion.born_at,
        trained_rows=champion.profile["rows"],
        new_rows=int(pc.sum(fresh).as_py() or 0),
    )


def live_weeks(
    use_case: UseCase, rows: Rows, weeks: list[Interval], first: Model, fit: Callable[[datetime], Model]
) -> Iterator[tuple[Interval, Model, str]]:
    """(week, the model that scored it, what was decided at its end), by triage and gate."""
    live = Live(first)
    for week in weeks:
        champion, observed = live.champion, observe(use_case, rows, week, live)
        decision = make_decision(observed, live.history, use_case.monitor)
        outcome, said = None, f"{decision.decision}: {'; '.join(decision.reasons)}"
        if decision.decision == Action.RETRAIN:
            candidate = fit(week.end)
            judgement = judge(use_case, rows, week.end, candidate, champion)
            outcome = "promoted" if judgement.answer == VerdictAnswer.PROMOTE else "held"
            said += f" -> {outcome}: {'; '.join(judgement.reasons)}"
            live.champion = candidate if outcome == "promoted" else champion
        live.history.append(
            OtherDecision(
                as_of=week.end,
                model_version=champion.version,
                decision=decision.decision,
                breached=breached_features(observed.drifts),
                state=RetrainState.DONE if decision.decision == Action.RETRAIN else None,
                outcome=outcome,
            )
        )
        yield week, champion, said


def measure_mae(rows: Rows, scored: list[tuple[Interval, Model]], start: datetime, end: datetime) -> float:
    """MAE of the models that scored each week, over all labelled trips of [start, end)."""
    errors = []
    for week, model in scored:
        if start <= week.start < end:
            table = rows.between(week.start, week.end, known_by=datetime.max.replace(tzinfo=UTC, year=2100))
            errors.append(np.abs(model.whole.predict(table) - table["label"].to_numpy()))
    return float(np.concatenate(errors).mean()) if errors else float("nan")


def main() -> None:
    """Prints what was decided week by week, then a table of MAE by policy and time; keeps both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=9)
    arguments = parser.parse_args()
    use_case = use_cases(REPOSITORY / "params.yaml")[TAXI_REPLAYED.use_case]
    rows, length = build_rows(use_case), timedelta(days=use_case.grid.days)
    begin = use_case.grid.partition(str(TAXI_REPLAYED.train_until)).start
    last = use_case.grid.partition(str(use_case.source.last_partition)).start
    weeks = [Interval(begin + n * length, begin + (n + 1) * length) for n in range((last - begin) // length + 1)]

    moments = split(use_case, begin)
    table = rows.between(datetime(1970, 1, 1, tzinfo=UTC), moments.cutoff, known_by=moments.cutoff)
    study = optuna.create_study(study_name="policies")
    definition = features.definition(use_case.name)
    alone.search(use_case, study, Trainer(use_case, definition, table, moments), arguments.trials)
    found = summarise_study(study)
    seeds = tuple(use_case.seed + n for n in range(use_case.train.ensemble_seeds))
    recipe = replace(make_recipe(use_case, definition, found.best_params, epochs=found.best_epochs), seeds=seeds)
    trained: dict[datetime, Model] = {}

    def fit(as_of: datetime) -> Model:
        if as_of not in trained:
            trained[as_of] = train(use_case, recipe, rows, as_of)
        return trained[as_of]

    policies: dict[str, list[tuple[Interval, Model]]] = {"frozen": [], "monthly": [], "live": []}
    monthly, said = fit(begin), []
    for week, champion, words in live_weeks(use_case, rows, weeks, fit(begin), fit):
        policies["live"].append((week, champion))
        policies["frozen"].append((week, fit(begin)))
        policies["monthly"].append((week, monthly))
        monthly = fit(week.end) if week.end.month != week.start.month else monthly
        said.append(f"{week.start:%Y-%m-%d} {champion.version} {words}")
        print(said[-1], flush=True)
    times = {
        "all": (weeks[0].start, weeks[-1].end),
        "2019": (datetime(2019, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)),
        "spring 2020": (datetime(2020, 3, 16, tzinfo=UTC), datetime(2020, 6, 1, tzinfo=UTC)),
        "July to December 2020": (datetime(2020, 6, 29, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)),
    }
    result = {
        time: {policy: measure_mae(rows, scored, *span) for policy, scored in policies.items()}
        for time, span in times.items()
    }
    for time, mae in result.items():
        gain = (mae["frozen"] - mae["live"]) / (mae["frozen"] - mae["monthly"])
        print(f"{time:<24}{'  '.join(f'{name} {value:.3f}' for name, value in mae.items())}  gain {gain:.2f}")
    keep_results("policies-taxi", params=found.best_params, mae=result, weeks=said)


if __name__ == "__main__":
    main()
