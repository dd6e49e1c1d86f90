"""Each partition is scored once per content, by the champion in force when it began, whatever happens meanwhile."""

import secrets
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from adapters.errors import FencedOut
from adapters.registry import Registry
from models.ensemble import fit_ensemble
from pipeline.handoffs import Verdict
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from serving.predictor import Predictor
from tasks import score as step
from tasks.promote import promote
from tasks.score import find_unscored, plan_shares, score_partitions
from tests.models import synthetic
from tests.models.test_training import CPU, recipe
from tests.tasks import killed, planted

NAME = f"flights_{secrets.token_hex(4)}"  # the registry is shared by all tests of a session
FIRST = datetime(2013, 1, 14, tzinfo=UTC)
WEEK = timedelta(days=7)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return synthetic.table(1200, seed=1, days=27)


@pytest.fixture
def use_case(use_case):
    return use_case.model_copy(update={"name": NAME})


@pytest.fixture(scope="module")
def models(mlflow_stack, table, tmp_path_factory) -> tuple[str, str]:
    """Two registered versions that answer differently."""
    use_case = use_cases(REPOSITORY / "params.yaml")["flights"].model_copy(update={"name": NAME})
    registry = Registry(mlflow_stack.home().url("mlflow"), tmp_path_factory.mktemp("registry"))
    one, two = (
        planted.model(
            registry,
            use_case,
            tmp_path_factory.mktemp("run"),
            fit_ensemble(recipe(epochs=1, seeds=(seed,)), table, CPU),
            key=str(seed),
            cutoff=synthetic.START,
        )
        for seed in (1, 2)
    )
    return one, two


@pytest.fixture(scope="module")
def foreign(mlflow_stack, table, tmp_path_factory) -> str:
    """A registered version that learnt from features of another definition."""
    use_case = use_cases(REPOSITORY / "params.yaml")["flights"].model_copy(update={"name": NAME})
    registry = Registry(mlflow_stack.home().url("mlflow"), tmp_path_factory.mktemp("registry"))
    ensemble = fit_ensemble(recipe(epochs=1, seeds=(3,)), table, CPU)
    folder = tmp_path_factory.mktemp("run")
    return planted.model(registry, use_case, folder, ensemble, key="3", cutoff=synthetic.START, digest="old")


@pytest.fixture
def champion(models, outside, use_case, table):
    """The first version is champion from the third week on; the features of four weeks are there."""
    planted.dataset(outside, use_case, table)
    crown(outside, use_case, models[0], None, FIRST)
    return models[0]


def crown(outside, use_case, version, before, as_of) -> None:
    verdict = Verdict(
        verdict_id=f"{version}-{before}", use_case=use_case.name, candidate_version=version, champion_version=before,
        answer="promote", reasons=["planted"], effect=1, effect_low=1, effect_high=1, evidence_uri="", as_of=as_of,
        needs_approval=False,
    )  # fmt: skip
    assert promote.promote(use_case, verdict, outside, actor="test").outcome == "promoted"


def stored(outside, columns="entity_key, event_time, model_version, score, snapshot_version, scored_at"):
    return outside.warehouse.query(
        f"select {columns} from predictions order by prediction_time, entity_key, model_version"
    )


def scorings(outside):
    rows = outside.warehouse.query("select * from scorings order by partition_start, model_version")
    return [(f"{row['partition_start']:%m-%d}", row["model_version"], row["rows"]) for row in rows]


def rows_from(table: pa.Table, start: datetime, weeks: int) -> pa.Table:
    times = table.column("prediction_time").to_pylist()
    return table.filter(pa.array([start <= moment < start + weeks * WEEK for moment in times]))


def test_without_features_or_a_champion_there_is_nothing_to_score(outside, use_case, models, table):
    assert score_partitions(use_case, outside) == []
    planted.dataset(outside, use_case, table)
    assert find_unscored(use_case, outside) == []
    assert score_partitions(use_case, outside) == []


def test_partitions_from_the_first_champion_on_are_scored_as_the_predictor_answers(outside, use_case, champion, table):
    scores = score_partitions(use_case, outside)
    assert [s.partition_start for s in scores] == [FIRST, FIRST + WEEK]
    expected = rows_from(table, FIRST, 2)
    found = stored(outside)
    assert sum(s.inserted for s in scores) == len(found) == expected.num_rows
    predictor = Predictor.load(outside.registry.download_bundle(NAME, champion))
    by_key = {row["entity_key"]: row["score"] for row in found}
    np.testing.assert_allclose(
        [by_key[key] for key in expected.column("entity_key").to_pylist()],
        predictor.predict(expected),
        rtol=0,
        atol=1e-6,
    )


def test_scoring_again_writes_no_row(outside, use_case, champion):
    score_partitions(use_case, outside)
    before = stored(outside), scorings(outside)
    assert find_unscored(use_case, outside) == []
    assert score_partitions(use_case, outside) == []
    outside.warehouse.execute("delete from scorings")  # as if it had been forgotten that it was done
    assert [(s.inserted, s.updated) for s in score_partitions(use_case, outside)] == [(0, 0), (0, 0)]
    assert (stored(outside), scorings(outside)) == before


def test_predictions_of_the_same_events_asked_at_other_times_are_replaced_not_doubled(outside, use_case, champion):
    score_partitions(use_case, outside)
    before = stored(outside, "entity_key, event_time, prediction_time, score")
    outside.warehouse.execute(  # as another lead would have left them: none lies in the partition's own time
        "update predictions set prediction_time = prediction_time - interval '90 days', score = 0 returning 1"
    )
    outside.warehouse.execute("delete from scorings")
    assert [s.inserted for s in score_partitions(use_case, outside)] == [0, 0]
    assert stored(outside, "entity_key, event_time, prediction_time, score") == before


def test_a_later_champion_scores_later_partitions_and_leaves_earlier_ones(outside, use_case, champion, models):
    score_partitions(use_case, outside)
    before = stored(outside)
    crown(outside, use_case, models[1], models[0], FIRST + WEEK)
    [later] = score_partitions(use_case, outside)
    assert (later.partition_start, later.model_version) == (FIRST + WEEK, models[1])
    assert [row for row in stored(outside) if row["model_version"] == models[0]] == before


def recalibrate(outside, use_case, version, network, as_of):
    """Put one version in force as a recalibration of another."""
    decision = f"{NAME}-{as_of:%Y%m%d}"
    with outside.warehouse.transaction() as at:
        at.execute(
            "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence)"
            " values (%s, %s, %s, %s, 'ignore', '{}', '{}')",
            (decision, NAME, as_of, network),
        )
        at.execute(
            "insert into recalibrations (decision_id, use_case, network_version, as_of, intercept, evidence, state,"
            " model_version) values (%s, %s, %s, %s, 0.1, '{}', 'done', %s)",
            (decision, NAME, network, as_of, version),
        )
        at.execute(
            "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
            " values (%s, 'recalibrate', %s, %s, 'monitor', 'test', '{}')",
            (NAME, version, as_of),
        )


@pytest.mark.parametrize("is_recalibration", [True, False])
def test_what_a_network_said_before_its_recalibration_came_into_force_is_replaced(
    outside, use_case, champion, models, is_recalibration
):
    score_partitions(use_case, outside)
    if is_recalibration:
        recalibrate(outside, use_case, models[1], champion, FIRST + WEEK)
    else:
        crown(outside, use_case, models[1], champion, FIRST + WEEK)
    [later] = score_partitions(use_case, outside)
    assert (later.partition_start, later.model_version) == (FIRST + WEEK, models[1])
    of_both = outside.warehouse.query("select entity_key from predictions group by 1 having count(*) > 1")
    assert len(of_both) == (0 if is_recalibration else later.rows)
    assert {row["model_version"] for row in stored(outside)} == set(models)


def test_taken_back_from_where_it_began_a_recalibrations_partition_is_scored_by_the_network_again(
    outside, use_case, champion, models
):
    score_partitions(use_case, outside)
    before = stored(outside, "entity_key, model_version, score")
    recalibrate(outside, use_case, models[1], champion, FIRST + WEEK)
    score_partitions(use_case, outside)
    outside.warehouse.execute(
        "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
        " values (%s, 'rollback', %s, %s, 'ann', 'odd', '{}')",
        (NAME, champion, FIRST + WEEK),
    )
    assert [each.model_version for each in score_partitions(use_case, outside)] == [champion]
    assert stored(outside, "entity_key, model_version, score") == before


def test_a_rebuilt_partition_is_scored_again_by_the_champion_of_its_time(outside, use_case, champion, models, table):
    score_partitions(use_case, outside)
    crown(outside, use_case, models[1], models[0], FIRST + 2 * WEEK)
    pace = table.column("pace").to_numpy().copy()
    first_week = np.array([FIRST <= m < FIRST + WEEK for m in table.column("prediction_time").to_pylist()])
    pace[first_week] += 1
    planted.dataset(outside, use_case, table.set_column(table.column_names.index("pace"), "pace", pa.array(pace)))
    [again] = score_partitions(use_case, outside)
    assert (again.partition_start, again.model_version) == (FIRST, models[0])
    assert (again.inserted, again.updated) == (0, again.rows)


def test_points_that_a_rebuild_no_longer_has_lose_their_predictions(outside, use_case, champion, table):
    """What is stored equals what a run that never saw the old features would have stored."""
    score_partitions(use_case, outside)
    gone = rows_from(table, FIRST, 1).column("entity_key").to_pylist()[:5]
    kept = table.filter(pa.compute.invert(pa.compute.is_in(table["entity_key"], pa.array(gone))))
    planted.dataset(outside, use_case, kept)
    score_partitions(use_case, outside)
    keys = {row["entity_key"] for row in stored(outside)}
    assert keys == set(rows_from(kept, FIRST, 2).column("entity_key").to_pylist())
    assert not keys & set(gone)


def test_by_day_the_same_predictions_are_made_as_by_week(outside, use_case, champion, table):
    score_partitions(use_case, outside)
    by_week = stored(outside, "entity_key, event_time, model_version, score")
    outside.warehouse.execute("delete from scorings")
    outside.warehouse.execute("delete from predictions")
    daily = use_case.model_copy(update={"source": use_case.source.model_copy(update={"partition_days": 1})})
    planted.dataset(outside, daily, table)
    assert len(score_partitions(daily, outside)) == 14
    by_day = stored(outside, "entity_key, event_time, model_version, score")
    assert [row | {"score": 0} for row in by_day] == [row | {"score": 0} for row in by_week]
    np.testing.assert_allclose([r["score"] for r in by_day], [r["score"] for r in by_week], rtol=0, atol=1e-6)


_CHILD = """
from tasks import score
from adapters.warehouse import Warehouse
from serving.predictor import Predictor
from tests.tasks import planted
planted.define(NAME)
case = use_cases(settings().params)["flights"].model_copy(update={"name": NAME})
upsert = Warehouse.upsert
def write_and_die(*arguments): upsert(*arguments); die()
if POINT == "while predicting": Predictor.predict = die
if POINT == "before the commit": Warehouse.upsert = write_and_die
if POINT == "after the commit":
    commit = Warehouse.retry_transaction
    def then_die(self, work):
        done = commit(self, work)
        if work.__qualname__.startswith("score_partition"): die()
        return done
    Warehouse.retry_transaction = then_die
score.score_partitions(case, outside)
"""


@pytest.mark.parametrize("point", ["while predicting", "before the commit", "after the commit"])
def test_a_run_killed_at_any_point_and_run_again_leaves_the_same_rows(outside, use_case, champion, point):
    killed.run(outside.settings, f"NAME, POINT = {NAME!r}, {point!r}\n" + _CHILD, killed=True)
    done = 1 if point == "after the commit" else 0
    assert len(scorings(outside)) == done
    assert bool(stored(outside)) == bool(done)
    assert len(score_partitions(use_case, outside)) == 2 - done
    interrupted = stored(outside, "entity_key, event_time, model_version, score")
    outside.warehouse.execute("delete from scorings")
    outside.warehouse.execute("delete from predictions")
    score_partitions(use_case, outside)
    assert stored(outside, "entity_key, event_time, model_version, score") == interrupted


def test_shares_scored_side_by_side_leave_what_one_run_leaves(outside, use_case, champion, monkeypatch):
    """Each writes its own partitions only, in any order, and is not fenced out by another's."""
    monkeypatch.setattr(step, "_PARTITIONS_A_TASK", 1)
    first, second = plan_shares(use_case, outside)
    assert (first, second) == (["2013-01-14"], ["2013-01-21"])
    read = step.load_learnt_points

    def meanwhile(*arguments, **named):
        monkeypatch.setattr(step, "load_learnt_points", read)
        assert [s.partition_start for s in score_partitions(use_case, outside, second)] == [FIRST + WEEK]
        return read(*arguments, **named)

    monkeypatch.setattr(step, "load_learnt_points", meanwhile)
    assert [s.partition_start for s in score_partitions(use_case, outside, first)] == [FIRST]
    assert score_partitions(use_case, outside, first) == []
    assert plan_shares(use_case, outside) == []
    side_by_side = stored(outside, "entity_key, event_time, model_version, score")
    outside.warehouse.execute("delete from scorings")
    outside.warehouse.execute("delete from predictions")
    score_partitions(use_case, outside)
    assert stored(outside, "entity_key, event_time, model_version, score") == side_by_side


def test_a_run_that_was_overtaken_may_not_commit(outside, use_case, champion, monkeypatch):
    """An orphan of a killed supervisor finishes while its retry runs: the orphan is fenced out."""
    read = step.load_learnt_points

    def overtaken(*arguments, **named):
        monkeypatch.setattr(step, "load_learnt_points", read)
        assert len(score_partitions(use_case, outside)) == 2
        return read(*arguments, **named)

    monkeypatch.setattr(step, "load_learnt_points", overtaken)
    with pytest.raises(FencedOut):
        score_partitions(use_case, outside)
    assert len(scorings(outside)) == 2


def test_an_orphan_that_read_what_was_pending_before_a_rebuild_may_not_commit_it(
    outside, use_case, champion, table, monkeypatch
):
    """Its work is old, so its fence must be: taken before the work was read, not before each partition."""
    read, keys = step.find_unscored, [key for share in plan_shares(use_case, outside) for key in share]

    def overtaken(*arguments):
        old = read(*arguments)
        monkeypatch.setattr(step, "find_unscored", read)
        planted.dataset(outside, use_case, table.set_column(0, "entity_key", pa.array(map(str, range(table.num_rows)))))
        score_partitions(use_case, outside)
        return old

    monkeypatch.setattr(step, "find_unscored", overtaken)
    with pytest.raises(FencedOut):
        score_partitions(use_case, outside, keys)
    assert all(row["entity_key"].isdecimal() for row in stored(outside))
    assert find_unscored(use_case, outside) == []


def test_a_champion_of_other_features_scores_nothing_and_says_to_train(outside, use_case, foreign, table):
    planted.dataset(outside, use_case, table)
    crown(outside, use_case, foreign, None, FIRST)
    with pytest.raises(ValueError, match=rf"learnt other features.*run {NAME}\.train"):
        score_partitions(use_case, outside)
    assert (stored(outside), scorings(outside)) == ([], [])
    [alert] = outside.warehouse.query("select tier, title, body from alerts")
    assert alert["tier"] == "critical"
    assert "train" in alert["body"]


def test_after_a_retired_champion_of_other_features_its_successor_scores(outside, use_case, foreign, models, table):
    """Features that changed make every partition anew, also those that only the old model could ever score."""
    planted.dataset(outside, use_case, table)
    crown(outside, use_case, foreign, None, FIRST)
    crown(outside, use_case, models[0], foreign, FIRST + WEEK)
    assert [found.model_version for found in score_partitions(use_case, outside)] == [models[0]]
    assert find_unscored(use_case, outside) == []
    assert outside.warehouse.query("select 1 from alerts") == []
