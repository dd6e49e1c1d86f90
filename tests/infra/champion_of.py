"""From nothing to a champion that answers, by the steps themselves: `python champion_of.py <use case>` in a copy."""

import json
import sys
from datetime import timedelta

import features
from adapters.connect import outside
from pipeline.partitions import Interval, utc
from pipeline.spec import use_cases
from tasks.build_features import build, online_features
from tasks.check_use_case.servable import require_servable
from tasks.deploy import deploy, golden
from tasks.ingest import land, validate
from tasks.promote import evaluate, promote, winner
from tasks.score import load_batch_predictor
from tasks.train import refit, search

if __name__ == "__main__":
    world = outside()
    use_case = use_cases(world.settings.params)[sys.argv[1]]
    first, last = use_case.source.first_partition, use_case.source.last_partition
    assert last is not None
    until = utc(last) + timedelta(days=use_case.grid.days)
    for partition in use_case.grid.covering(Interval(utc(first), until)):
        validate.validate_batch(use_case, land.land_partition(use_case, partition, world), world)
    snapshot = build.build_snapshot(use_case, world)
    assert snapshot is not None
    online_features.refresh_store(use_case, snapshot, world)
    require_servable(use_case, snapshot, until, world)
    search.run_search(use_case, snapshot, until, use_case.train.trials, world)
    study = search.load_study_result(use_case, snapshot, until, world)
    candidate = refit.refit(use_case, snapshot, study, until, "first champion", None, world)
    verdict = evaluate.judge_candidate(use_case, candidate, world)
    print(verdict)
    refitted = winner.refit_winner(use_case, candidate, world)
    print(refitted)
    released = promote.promote(use_case, verdict, world, actor="test", refitted=refitted)
    print(f"{use_case.name}: {released.outcome}, {snapshot.rows} rows of {snapshot.partitions} partitions")
    deploy.deploy_release(use_case, released, world)  # which prints what became of it
    version = released.champion_version
    assert version is not None
    points, events = golden.choose_golden_rows(use_case, features.definition(use_case.name), world, 3)
    scores = load_batch_predictor(use_case, version, world).predict(points)
    print(json.dumps({"events": events, "scores": [float(score) for score in scores]}))
