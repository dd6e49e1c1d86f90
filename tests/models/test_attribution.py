from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from models import attribution, bundle
from models.attribution import TOLERANCE, attribute
from models.ensemble import fit_ensemble
from models.networks import MODELS
from models.recalibration import Recalibration
from serving.predictor import Predictor
from tests.models.synthetic import CATEGORICAL, NUMERIC, table
from tests.models.test_bundle import write
from tests.models.test_training import CPU, recipe


def trained_bundle(folder, kind: str, network: str = "mlp"):
    rows = table(kind=kind)
    write(folder, fit_ensemble(recipe(network=network, epochs=6, seeds=(1, 2, 3), kind=kind), rows, CPU))
    return bundle.load_bundle(folder)


@pytest.fixture(scope="module", params=sorted(MODELS))
def trained(tmp_path_factory, request):
    return trained_bundle(tmp_path_factory.mktemp("bundle"), "binary", request.param)


def awkward(rows: int = 200) -> pa.Table:
    """Rows with missing numbers, numbers far outside of what training saw, and categories it never met."""
    found = table(rows, seed=7)
    wind = found["wind"].to_numpy().copy()
    wind[::3], wind[1], wind[4] = np.nan, 1e9, -1e9
    found = found.set_column(found.column_names.index("wind"), "wind", pa.array(wind))
    carrier = ["never seen" if i % 5 == 0 else c for i, c in enumerate(found["carrier"].to_pylist())]
    return found.set_column(found.column_names.index("carrier"), "carrier", pa.array(carrier))


def missed(found: attribution.Attributions) -> float:
    """The largest distance of the values' sum from prediction - baseline."""
    return float(np.abs(found.baseline + found.values.sum(axis=1) - found.prediction).max())


def test_the_values_sum_to_what_the_answer_differs_from_the_baselines(trained):
    rows = awkward()
    found = attribute(trained, rows)
    assert found.names == (*NUMERIC, *CATEGORICAL)
    assert found.values.shape == (200, len(found.names))
    assert np.abs(found.prediction - found.baseline).max() > 0.3  # there is something to explain
    assert missed(found) < TOLERANCE / 100
    assert missed(found) == pytest.approx(np.abs(found.residual).max(), abs=1e-12)


def test_the_prediction_is_the_predictors(trained):
    rows = awkward()
    assert np.abs(attribute(trained, rows).prediction - Predictor(trained).predict(rows)).max() <= 1e-6


def test_values_of_a_regression_sum_in_units_of_the_label(tmp_path):
    found = attribute(trained_bundle(tmp_path, "regression"), awkward())
    assert np.abs(found.prediction - found.baseline).max() > 5
    assert missed(found) < TOLERANCE


def test_a_feature_that_the_network_cannot_see_gets_exactly_nothing(trained):
    found = attribute(trained, awkward())
    by_name = dict(zip(found.names, found.values.T, strict=True))
    assert not by_name["empty"].any()
    assert not by_name["constant"].any()
    assert by_name["hour"].all()


def test_an_unknown_category_and_a_number_at_its_mean_get_exactly_nothing(trained):
    middle = {column.name: [column.mean] for column in trained.encoder.numeric}
    found = attribute(trained, pa.table({**middle, **{name: ["never seen"] for name in CATEGORICAL}}))
    assert np.abs(found.values).max() < 1e-6
    assert found.prediction[0] == pytest.approx(found.baseline, abs=1e-6)


def test_what_moved_the_answer_is_what_made_the_label(trained):
    found = attribute(trained, table(500, seed=8))
    strength = dict(zip(found.names, np.abs(found.values).mean(axis=0), strict=True))
    assert min(strength[name] for name in ("hour", "wind", "pace")) > 2 * strength["route"]


def test_a_row_does_not_depend_on_who_else_is_asked(trained):
    rows = awkward()
    whole = attribute(trained, rows).values
    for i in (0, 1, 77):
        assert np.abs(attribute(trained, rows.slice(i, 1)).values[0] - whole[i]).max() < 1e-6


def test_no_rows_get_no_values(trained):
    assert attribute(trained, table(50).slice(0, 0)).values.shape == (0, len(NUMERIC) + len(CATEGORICAL))


def test_sabotage_gradients_of_one_member_only_do_not_sum_to_the_ensembles_answer(trained, monkeypatch):
    rows = awkward()
    of_first = attribute(replace(trained, members=trained.members[:1]), rows).values
    monkeypatch.setattr(attribution, "_member_values", lambda *_: of_first)
    assert missed(attribute(trained, rows)) > TOLERANCE


def test_sabotage_too_few_steps_show_in_the_residual(trained):
    assert np.abs(attribute(trained, awkward(), steps=1).residual).max() > TOLERANCE


def test_of_a_recalibrated_answer_the_values_sum_to_that_and_not_to_the_networks(trained, monkeypatch):
    rows, recalibrated = awkward(), replace(trained, recalibration=Recalibration(intercept=0.8))
    found = attribute(recalibrated, rows)
    assert np.abs(found.prediction - Predictor(recalibrated).predict(rows)).max() <= 1e-6
    assert np.abs(found.prediction - attribute(trained, rows).prediction).max() > 0.1
    assert missed(found) < TOLERANCE / 100
    monkeypatch.setattr(Recalibration, "slope", lambda _, scores: np.ones_like(scores))
    assert missed(attribute(recalibrated, rows)) > TOLERANCE, "sabotage"
