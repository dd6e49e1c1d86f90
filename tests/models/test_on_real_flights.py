from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models.ensemble import Recipe, fit_ensemble, labels
from models.metrics import measure
from tests.clean_data import TABLES, clean_rows, week
from tests.features.world import FLIGHTS, engine
from tests.models.test_training import CPU, member_scores

START = datetime(2012, 12, 31, tzinfo=UTC)
SPLIT = START + timedelta(days=21)


@pytest.fixture(scope="module")
def parts() -> tuple[pa.Table, pa.Table]:
    """Three weeks of January, as known at their end, and the fourth."""
    world = {name: pa.concat_tables([clean_rows(name, week(n)) for n in range(4)]) for name in TABLES}
    points, outcomes = engine(world, START, START + timedelta(days=28))
    rows = points.join(outcomes, ["entity_key", "event_time"], join_type="inner")
    rows = rows.sort_by([(name, "ascending") for name in ("prediction_time", "entity_key", "event_time")])
    split = pa.scalar(SPLIT, rows.schema.field("label_time").type)
    return rows.filter(pc.less_equal(rows["label_time"], split)), rows.filter(
        pc.greater(rows["prediction_time"], split)
    )


def auc(train: pa.Table, test: pa.Table, numeric: tuple[str, ...]) -> float:
    recipe = Recipe(
        kind="binary", numeric=numeric, categorical=FLIGHTS.categorical, hidden_units=64, layers=2, dropout=0.2,
        learning_rate=2e-3, weight_decay=1e-2, batch_rows=512, schedule_epochs=10, epochs=4, seeds=(1, 2), threads=1,
    )  # fmt: skip
    return measure("auc", member_scores(fit_ensemble(recipe, train, CPU), test), labels(test))


def test_three_real_weeks_predict_the_fourth_and_a_planted_leak_is_too_good_to_be_true(parts):
    train, test = parts
    honest = auc(train, test, FLIGHTS.numeric)
    leaky = auc(
        *(t.append_column("arrival_delay_minutes", pc.multiply(t["label"], 30.0)) for t in parts),
        (*FLIGHTS.numeric, "arrival_delay_minutes"),
    )
    assert 0.68 < honest < 0.82 < leaky
