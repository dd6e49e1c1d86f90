"""The same weeks by calling the steps one after another, in one process: what an undisturbed loop must come to.

Run with a stack's settings in the environment: `python -m tests.e2e.straight <train-until> <weeks> <broken>`.
"""

import sys
from datetime import date, timedelta

from adapters.connect import outside
from infra.replay import flights_source, incident
from pipeline.partitions import Interval, utc
from pipeline.spec import use_cases
from tasks import score
from tasks.build_features import build, dataset
from tasks.ingest import land, validate
from tasks.monitor import monitor, retrain
from tasks.promote import evaluate, promote, winner
from tasks.train import refit, search

WORLD = outside()
USE_CASE = use_cases(WORLD.settings.params)["flights"]


def _ingest(week: Interval) -> None:
    validate.validate_batch(USE_CASE, land.land_partition(USE_CASE, week, WORLD), WORLD)


def _train(as_of: date, reason: str, decision_id: str | None = None) -> str:
    snapshot, moment = dataset.latest_snapshot(USE_CASE, WORLD), utc(as_of)
    assert snapshot is not None
    search.run_search(USE_CASE, snapshot, moment, USE_CASE.train.trials, WORLD)
    study = search.load_study_result(USE_CASE, snapshot, moment, WORLD)
    candidate = refit.refit(USE_CASE, snapshot, study, moment, reason, decision_id, WORLD)
    verdict = evaluate.judge_candidate(USE_CASE, candidate, WORLD)
    won = promote.will_promote(USE_CASE, verdict, WORLD, actor="straight")
    refitted = winner.refit_winner(USE_CASE, candidate, WORLD) if won else None
    return promote.promote(USE_CASE, verdict, WORLD, actor="straight", refitted=refitted).outcome


def _live(week: Interval, *, broken: bool) -> None:
    key = USE_CASE.grid.key(week)
    if broken:
        incident.break_feed(WORLD.source, week, key)
    _ingest(week)
    build.build_snapshot(USE_CASE, WORLD)
    score.score_partitions(USE_CASE, WORLD)
    monitor.monitor_partitions(USE_CASE, WORLD)
    if claimed := retrain.claim_retrain(USE_CASE, WORLD):
        outcome = _train(week.end.date(), "; ".join(claimed["reasons"]), claimed["decision_id"])
        retrain.finish_retrain(claimed["decision_id"], outcome, WORLD)
    if broken:
        with incident.restored_feed(WORLD.source, key):
            _ingest(week)
            build.build_snapshot(USE_CASE, WORLD)
            score.score_partitions(USE_CASE, WORLD)


def main(train_until: date, weeks: int, broken: int) -> None:
    """History, first champion, live weeks."""
    flights_source.load_flights(WORLD.settings.source_dsn)
    for week in USE_CASE.grid.covering(
        Interval(USE_CASE.grid.partition(str(USE_CASE.grid.first)).start, utc(train_until))
    ):
        _ingest(week)
    build.build_snapshot(USE_CASE, WORLD)
    _train(train_until, "first champion")
    length = timedelta(days=USE_CASE.grid.days)
    for number in range(weeks):
        start = utc(train_until) + number * length
        _live(Interval(start, start + length), broken=number + 1 == broken)


if __name__ == "__main__":
    main(date.fromisoformat(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
