"""What the network makes of real flights, with the shipped gate looking on."""

from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models.ensemble import Recipe, fit_ensemble, labels
from models.metrics import compute_metric
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.promote.evaluate import frozen_rows
from tasks.promote.gate import Judgement, decide
from tasks.promote.gate_checks import Scored, Setting
from tests.clean_data import TABLES, clean_rows, week
from tests.features.world import FLIGHTS, engine
from tests.models.test_training import CPU, member_scores

START = datetime(2012, 12, 31, tzinfo=UTC)
HOLDOUT = START + timedelta(days=21)
SHIPPED = use_cases(REPOSITORY / "params.yaml")["flights"]
LEAK = "departure_delay_minutes"  # known hours after the prediction


@pytest.fixture(scope="module")
def parts() -> tuple[pa.Table, pa.Table]:
    """Three weeks of January, as known a day before their end, and the fourth; with each row's own departure delay."""
    world = {name: pa.concat_tables([clean_rows(name, week(n)) for n in range(4)]) for name in TABLES}
    points, outcomes = engine(world, START, START + timedelta(days=28))
    rows = points.join(outcomes, ["entity_key", "event_time"], join_type="inner")
    rows = rows.join(departure_delays(world), ["entity_key", "event_time"], join_type="left outer")
    rows = rows.sort_by([(name, "ascending") for name in ("prediction_time", "entity_key", "event_time")])
    holdout = pa.scalar(HOLDOUT, rows.schema.field("prediction_time").type)
    return (
        rows.filter(pc.less_equal(rows["label_time"], holdout)),
        rows.filter(pc.greater_equal(rows["prediction_time"], holdout)),
    )


def departure_delays(world: dict[str, pa.Table]) -> pa.Table:
    """How late each flight left, by entity and event."""
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        for name in ("flights", "movements"):
            db.register(name, world[name])
        return db.sql(
            f"""select f.carrier || f.flight || '-' || f.origin || '-' || f.dest as entity_key,
                    scheduled_departure as event_time, cast(max(delay_minutes) as float) as {LEAK}
                from flights f join movements m using (carrier, flight, origin, scheduled_departure)
                where m.kind = 'departed' group by all"""
        ).to_arrow_table()


def judged(parts: tuple[pa.Table, pa.Table], numeric: tuple[str, ...]) -> Judgement:
    """The shipped gate's answer about a first champion with these features."""
    train, holdout = parts
    recipe = Recipe(
        kind="binary", numeric=numeric, categorical=FLIGHTS.categorical,
        network="mlp",
        hidden_units=64, layers=2, dropout=0.2, learning_rate=2e-3, weight_decay=1e-2, label_smoothing=0.0,
        batch_rows=512, schedule_epochs=10, epochs=4, seeds=(1, 2), threads=1,
    )  # fmt: skip
    score = member_scores(fit_ensemble(recipe, train, CPU), holdout).astype(np.float64)
    setting = Setting(
        gate=SHIPPED.gate, kind=SHIPPED.target.kind, block="day", holdout_start=HOLDOUT,
        latency_ms=1.0, seed=SHIPPED.seed,
    )  # fmt: skip
    print(f"auc {compute_metric('auc', score, labels(holdout)):.4f} of {holdout.num_rows} rows")
    return decide(setting, frozen_rows(SHIPPED, holdout), Scored(version="1", cutoff=HOLDOUT, scores=score), None)


def auc_of(found: Judgement) -> float:
    return float(found.evidence["metrics"]["1"]["auc"])


def test_an_honest_model_of_three_real_weeks_predicts_the_fourth_and_passes_the_shipped_gate(parts):
    found = judged(parts, FLIGHTS.numeric)
    assert (found.answer, found.codes) == ("promote", ["better"]), found.reasons
    assert 0.68 < auc_of(found) < SHIPPED.gate.leak_alarm.above


def test_a_model_that_knows_when_its_flight_left_is_refused_by_the_shipped_leak_alarm_alone(parts):
    found = judged(parts, (*FLIGHTS.numeric, LEAK))
    assert (found.answer, found.codes) == ("refuse", ["leak-alarm"]), found.reasons
    assert auc_of(found) < 0.99, "a real leak is no perfect prediction: an alarm set that high would stay silent"
