import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from features.feature_rows import FeatureRows
from models.ensemble import fit_ensemble
from models.recalibration import Recalibration
from models.small_batch import SmallBatch
from serving.predictor import Predictor
from tests.models.synthetic import CATEGORICAL, NUMERIC, table
from tests.models.test_bundle import INTERVAL, write
from tests.models.test_training import CPU, member_scores, recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    ensemble = fit_ensemble(recipe(epochs=3, seeds=(1, 2, 3)), table(), CPU)
    folder = tmp_path_factory.mktemp("bundle")
    write(folder, ensemble)
    return ensemble, Predictor.load(folder)


def test_the_answer_is_the_mean_of_the_members_as_trained(trained):
    ensemble, predictor = trained
    rows = table(seed=5)
    assert np.abs(predictor.predict(rows) - member_scores(ensemble, rows)).max() < 1e-6


def test_the_answer_does_not_depend_on_who_else_is_asked(trained):
    _, predictor = trained
    rows = table(300)
    whole = predictor.predict(rows)
    alone = np.concatenate([predictor.predict(rows.slice(i, 1)) for i in range(300)])
    for chunk_rows in (1, 7, 299):
        assert np.abs(predictor.predict(rows, chunk_rows=chunk_rows) - whole).max() <= 1e-6
    assert np.abs(alone - whole).max() <= 1e-6
    shuffled = np.random.default_rng(0).permutation(300)
    assert np.abs(predictor.predict(rows.take(shuffled)) - whole[shuffled]).max() <= 1e-6


@pytest.mark.parametrize("network", ["mlp", "tabm"])
@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_few_rows_get_the_members_answers_without_torch(network, kind, layers):
    """In numpy: as the members trained, asked one by one."""
    trained = recipe(network=network, kind=kind, layers=layers, epochs=2, seeds=(1, 2))
    ensemble = fit_ensemble(trained, table(), CPU)
    rows = table(64, seed=5)
    few = as_rows(rows, [math.inf, -math.inf, math.nan, None, 1e300, -1e300])
    found = SmallBatch(ensemble.members).answers(few.numbers, ensemble.encoder.encode_texts(few.texts))
    expected = member_scores(ensemble, few.table)
    assert np.abs(found - expected).max() < 1e-6 * max(1, np.abs(expected).max())


def as_rows(rows: pa.Table, first: list[float | None]) -> FeatureRows:
    """A table as plain values; the first rows' first number is this."""
    numbers = [rows[name].cast(pa.float64()).to_pylist() for name in NUMERIC]
    numbers[0] = [*first, *numbers[0][len(first) :]]
    texts = [rows[name].cast(pa.string()).to_pylist() for name in CATEGORICAL]
    keys, zeros = [""] * rows.num_rows, [0] * rows.num_rows
    return FeatureRows(tuple(NUMERIC), tuple(CATEGORICAL), keys, zeros, zeros, list(zip(*numbers, *texts, strict=True)))


def test_a_few_rows_are_answered_alike_through_both_doors(trained):
    _, predictor = trained
    few = as_rows(table(20), [None])
    assert np.abs(predictor.predict_rows(few) - predictor.predict(few.table)).max() < 1e-6
    assert predictor.predict_rows(replace(few, numeric=few.numeric[::-1])).shape == (20,)  # by name, not by place


@pytest.mark.parametrize("value", [None, np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0])
def test_no_value_makes_the_answer_nan(trained, value):
    _, predictor = trained
    columns = {name: pa.array([value], pa.float64()) for name in NUMERIC}
    answer = predictor.predict(pa.table({**columns, **{name: ["never seen"] for name in CATEGORICAL}}))
    assert answer.dtype == np.float64
    assert 0 < answer[0] < 1


def test_missing_is_one_thing_however_it_is_written(trained):
    _, predictor = trained
    rows = {**{name: [12.0] * 4 for name in NUMERIC}, "carrier": ["EV"] * 4, "route": ["R1"] * 4}
    answers = predictor.predict(pa.table({**rows, "wind": pa.array([None, np.nan, np.inf, -np.inf])}))
    assert len(set(answers.tolist())) == 1


def test_a_column_that_training_never_saw_missing_or_filled_cannot_speak(trained):
    _, predictor = trained
    rows = table(50)
    filled = rows.set_column(rows.column_names.index("empty"), "empty", pa.array([9e9] * 50))
    gone = rows.set_column(rows.column_names.index("constant"), "constant", pa.nulls(50, pa.float64()))
    assert (predictor.predict(filled) == predictor.predict(rows)).all()
    assert (predictor.predict(gone) == predictor.predict(rows)).all()


def test_missing_columns_are_named_and_extra_ones_ignored(trained):
    _, predictor = trained
    with pytest.raises(ValueError, match="hour, route"):
        predictor.predict(table(5).drop_columns(["hour", "route"]))
    assert (predictor.predict(table(5)) == predictor.predict(table(5).select(list(predictor.columns)))).all()


def test_no_rows_no_answers(trained):
    _, predictor = trained
    assert predictor.predict(table(5).slice(0, 0)).shape == (0,)


def test_both_doors_give_the_bounds_of_the_answer_they_give(tmp_path):
    ensemble = fit_ensemble(recipe(kind="regression", epochs=2, seeds=(1, 2)), table(kind="regression"), CPU)
    write(tmp_path / "with", ensemble, INTERVAL)
    write(tmp_path / "without", ensemble)
    predictor = Predictor.load(tmp_path / "with")
    assert predictor.interval == INTERVAL
    assert Predictor.load(tmp_path / "without").interval is None, "as a bundle of before has none"
    few = as_rows(table(20), [None])
    batch, online = (INTERVAL.bounds(scores) for scores in (predictor.predict(few.table), predictor.predict_rows(few)))
    assert np.abs(np.subtract(batch, online)).max() < 1e-4  # of answers of about 20


def test_both_doors_give_the_recalibrated_answer(tmp_path):
    ensemble = fit_ensemble(recipe(epochs=2, seeds=(1, 2)), table(), CPU)
    write(tmp_path / "with", ensemble, recalibration=Recalibration(intercept=0.5))
    write(tmp_path / "without", ensemble)
    ours, raw = (Predictor.load(tmp_path / name) for name in ("with", "without"))
    few = as_rows(table(20), [None])
    expected = Recalibration(intercept=0.5).apply(raw.predict(few.table))
    assert np.array_equal(ours.predict(few.table), expected)
    assert np.abs(ours.predict_rows(few) - expected).max() < 1e-6
    assert np.abs(expected - raw.predict(few.table)).max() > 0.05
