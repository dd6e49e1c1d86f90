"""A changed definition is no outage: what the champion learnt is computed beside what is defined now."""

import secrets
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import features
from adapters.connect import Outside
from features import FeatureSet
from features.document import to_document
from features.engine import build_by_sql
from models.ensemble import fit_ensemble
from pipeline.spec import UseCase
from serving.lookup import FeatureLookup
from serving.predictor import Predictor
from tasks import score
from tasks.build_features import build, dataset, online_features
from tasks.build_features.learnt_features import (
    UncomputableFeatures,
    iterate_definitions_in_use,
    load_learnt_definition,
    load_learnt_points,
    require_todays_features,
)
from tasks.build_features.manifest import clean_files
from tasks.deploy.golden import choose_golden_rows
from tasks.promote.evaluate import judge_candidate
from tests.clean_data import week
from tests.models.test_training import CPU, recipe
from tests.tasks import planted
from tests.tasks.build_features.test_build import put
from tests.tasks.test_score import crown

FLIGHTS = features.definition("flights")
# What today's code does not define: another window's feature, and one of its own less.
OLDER = replace(
    FLIGHTS,
    numeric_sql={name: sql for name, sql in FLIGHTS.numeric_sql.items() if name != "humidity"}
    | {"dest_flights_6h": "dest_now_arrived_6h"},
)
# It reads a column that the source had once: the clean data do not have it.
GONE = replace(
    FLIGHTS,
    sources=FLIGHTS.sources
    | {"weather": replace(FLIGHTS.sources["weather"], columns={**FLIGHTS.sources["weather"].columns, "uv": "double"})},
)
WEEKS = 3


@pytest.fixture
def snapshot(mlflow_stack, outside: Outside, use_case: UseCase):
    put(outside, use_case, *range(WEEKS))
    return build.build_snapshot(use_case, outside)


def register(  # noqa: PLR0917  # the order is that of the flow
    outside: Outside, use_case: UseCase, learnt: FeatureSet, rows: pa.Table, folder: Path, document: str | None = None
) -> str:
    """A version that learnt by a definition; `document` is what its bundle says instead of that."""
    plan = recipe(numeric=learnt.numeric, categorical=learnt.categorical, epochs=1, seeds=(1,))
    ensemble = fit_ensemble(plan, rows, CPU)
    return planted.model(
        outside.registry,
        use_case,
        folder,
        ensemble,
        key=secrets.token_hex(4),
        cutoff=week(1).end,
        digest=learnt.digest(),
        definition=document or to_document(learnt),
    )


def labelled(points: pa.Table) -> pa.Table:
    """Points with a label that some feature knows."""
    late = np.nan_to_num(points["planned_minutes"].to_numpy()) > 180
    return points.append_column("label", pa.array(late.astype(float)))


@pytest.fixture
def older(outside: Outside, use_case: UseCase, snapshot, tmp_path: Path) -> str:
    """The champion: it learnt the older definition."""
    points = load_learnt_points(OLDER, snapshot.version, use_case, outside, start=week(0).start, end=week(1).end)
    version = register(outside, use_case, OLDER, labelled(points), tmp_path / "older")
    crown(outside, use_case, version, None, week(1).start)
    return version


def test_points_by_an_older_definition_are_those_that_sql_defines(outside: Outside, use_case: UseCase, snapshot):
    points = load_learnt_points(OLDER, snapshot.version, use_case, outside, start=week(1).start, end=week(2).end)
    tables = clean_files(snapshot, _weeks(1, 2), outside, OLDER)
    expected, _ = build_by_sql(OLDER, tables, _weeks(1, 2), use_case.time.lead)
    assert points.equals(expected)
    todays = dataset.load_points(snapshot.version, use_case, outside, start=week(1).start, end=week(2).end)
    shared = [name for name in todays.column_names if name in points.column_names]
    assert points.select(shared).equals(todays.select(shared))
    assert ("humidity" in points.column_names, "humidity" in todays.column_names) == (False, True)


def _weeks(first: int, last: int):
    return replace(week(first), end=week(last).end)


def test_a_champion_of_older_features_goes_on_scoring(outside: Outside, use_case: UseCase, snapshot, older: str):
    scored = score.score_partitions(use_case, outside)
    assert [(each.model_version, each.rows > 0) for each in scored] == [(older, True)] * (WEEKS - 1)
    stored = outside.warehouse.query(
        'select score from predictions order by prediction_time, entity_key collate "C", event_time'
    )
    points = load_learnt_points(OLDER, snapshot.version, use_case, outside, start=week(1).start, end=week(2).end)
    predictor = Predictor.load(outside.registry.download_bundle(use_case.name, older))
    assert [row["score"] for row in stored] == predictor.predict(points).tolist()
    assert outside.warehouse.query("select 1 from alerts") == []
    assert score.find_unscored(use_case, outside) == []


def test_one_that_this_code_computes_no_more_scores_nothing_and_says_so(
    outside: Outside, use_case: UseCase, snapshot, older: str, tmp_path: Path
):
    """The sabotage: the document in the bundle is not what its digest stands for."""
    points = load_learnt_points(OLDER, snapshot.version, use_case, outside, start=week(0).start, end=week(1).end)
    changed = to_document(OLDER).replace("3 hours", "4 hours")
    lost = register(outside, use_case, OLDER, labelled(points), tmp_path / "lost", document=changed)
    crown(outside, use_case, lost, older, week(1).start)
    with pytest.raises(UncomputableFeatures, match="does not compute the features"):
        load_learnt_definition(use_case, lost, outside)
    with pytest.raises(UncomputableFeatures, match=rf"run {use_case.name}\.train"):
        score.score_partitions(use_case, outside)
    assert outside.warehouse.query("select tier from alerts") == [{"tier": "critical"}]
    assert outside.warehouse.query("select 1 from predictions") == []


def test_the_online_store_holds_both_until_no_champion_needs_the_older(
    outside: Outside, use_case: UseCase, snapshot, older: str, tmp_path: Path
):
    online_features.refresh_store(use_case, snapshot, outside)
    assert definitions_stored(outside) == {FLIGHTS.digest(), OLDER.digest()}
    assert online_features.find_unreached_snapshot(use_case, outside) is None
    for definition in (FLIGHTS, OLDER):
        points, events = choose_golden_rows(use_case, definition, outside, 50)
        lookup = FeatureLookup(
            dsn=outside.settings.warehouse_dsn, use_case=use_case.name, definition=definition, lead=use_case.time.lead,
            timeout_ms=60_000,
        )  # fmt: skip
        asked = pa.Table.from_pylist([_moments(event) for event in events])
        looked_up = lookup.features(asked)
        lookup.close()
        for name in (*definition.numeric, *definition.categorical):
            assert looked_up.features[name].to_pylist() == points[name].to_pylist(), name

    rows = labelled(dataset.load_points(snapshot.version, use_case, outside, start=week(0).start, end=week(1).end))
    first, second = (register(outside, use_case, FLIGHTS, rows, tmp_path / name) for name in ("first", "second"))
    crown(outside, use_case, first, older, week(2).start)
    online_features.refresh_store(use_case, snapshot, outside)
    assert definitions_stored(outside) == {FLIGHTS.digest(), OLDER.digest()}, "a rollback would need it"
    crown(outside, use_case, second, first, week(2).end)
    answering(outside, older, first)
    online_features.refresh_store(use_case, snapshot, outside)
    assert definitions_stored(outside) == {FLIGHTS.digest(), OLDER.digest()}, "the rollouts were held: it answers still"
    answering(outside, second, first)
    assert [each.digest() for each in iterate_definitions_in_use(use_case, outside, [])] == [FLIGHTS.digest()]
    online_features.refresh_store(use_case, snapshot, outside)
    assert definitions_stored(outside) == {FLIGHTS.digest()}


def answering(outside: Outside, version: str, previous: str) -> None:
    """A rollout of this version has ended well."""
    outside.warehouse.execute(
        "insert into deployments (deployment_id, use_case, version, previous_version, kind, stage, outcome, finished_at"
        ", actor, reason, revision, as_of)"
        " values (%s, 'flights', %s, %s, 'rollout', 'done', 'full', now(), 'test', 'test', 1, now())",
        (secrets.token_hex(4), version, previous),
    )


def test_a_champion_of_older_features_is_compared_on_the_same_events(
    outside: Outside, use_case: UseCase, snapshot, older: str, tmp_path: Path
):
    start, end = week(2).start, week(2).end
    rows = labelled(dataset.load_points(snapshot.version, use_case, outside, start=week(0).start, end=week(1).end))
    version = register(outside, use_case, FLIGHTS, rows, tmp_path / "new")
    candidate = replace(
        planted.candidate(outside.registry, use_case, version, snapshot, end),
        holdout_start=start, holdout_end=end, cutoff=week(1).end,
    )  # fmt: skip
    verdict = judge_candidate(use_case, candidate, outside)
    assert verdict.champion_version == older
    assert not verdict.needs_approval
    assert "learnt other features" not in " ".join(verdict.reasons)


def definitions_stored(outside: Outside) -> set[str]:
    return {row["definition"] for row in outside.warehouse.query("select distinct definition from online_series")}


def _moments(event: dict) -> dict:
    """A request as the server reads it: moments are naive UTC."""
    times = {name for name in event if name.startswith("scheduled_")}
    return {
        name: datetime.fromisoformat(value).replace(tzinfo=None) if name in times else value
        for name, value in event.items()
    }


def test_an_older_definition_that_the_clean_data_no_longer_serve_stops_no_successor(
    outside: Outside, use_case: UseCase, snapshot, tmp_path: Path
):
    """Scoring says so, a person judges the successor, and the online history of today's definition goes on."""
    rows = labelled(dataset.load_points(snapshot.version, use_case, outside, start=week(0).start, end=week(1).end))
    champion = register(outside, use_case, GONE, rows, tmp_path / "gone")
    crown(outside, use_case, champion, None, week(1).start)
    with pytest.raises(UncomputableFeatures, match=rf"uv.*run {use_case.name}\.train"):
        score.score_partitions(use_case, outside)
    online_features.refresh_store(use_case, snapshot, outside)
    assert definitions_stored(outside) == {FLIGHTS.digest()}
    alerts = outside.warehouse.query("select tier, title from alerts order by title")
    assert [alert["tier"] for alert in alerts] == ["critical", "critical"]
    assert "no longer refreshed" in alerts[0]["title"]
    assert "nothing is scored" in alerts[1]["title"]

    version = register(outside, use_case, FLIGHTS, rows, tmp_path / "new")
    candidate = replace(
        planted.candidate(outside.registry, use_case, version, snapshot, week(2).end),
        holdout_start=week(2).start,
        holdout_end=week(2).end,
        cutoff=week(1).end,
    )
    verdict = judge_candidate(use_case, candidate, outside)
    assert verdict.champion_version == champion
    assert "learnt other features" in " ".join(verdict.reasons)


def test_a_dataset_of_another_definition_is_neither_trained_on_nor_taken_for_todays(
    outside: Outside, use_case: UseCase, snapshot, monkeypatch: pytest.MonkeyPatch
):
    require_todays_features(use_case, snapshot, outside)
    span = {"start": week(1).start, "end": week(2).start}
    points = load_learnt_points(FLIGHTS, snapshot.version, use_case, outside, **span)
    outside.warehouse.execute("update snapshots set features_digest = 'another'")
    with pytest.raises(ValueError, match=rf"run {use_case.name}\.build_features, and then train"):
        require_todays_features(use_case, snapshot, outside)
    with monkeypatch.context() as patched:
        patched.setattr(dataset, "load_points", lambda *_, **__: pytest.fail("its rows are of another definition"))
        assert load_learnt_points(FLIGHTS, snapshot.version, use_case, outside, **span).equals(points)
