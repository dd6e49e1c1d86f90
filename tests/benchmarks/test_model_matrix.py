"""What a model matrix keeps is what the product's refit answers; what is not there is said, and not made unasked."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from adapters.connect import Outside
from benchmarks.matrix_rows import MatrixRows, find_first_champion, known_rows, load_snapshot
from benchmarks.model_matrix import Fit, KeptModels, fit_model
from models.bundle import Bundle
from models.ensemble import fit_ensemble
from models.training import best_device
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from serving.predictor import Predictor
from tasks.train.split import split
from tests.models import synthetic
from tests.models.test_training import recipe
from tests.tasks import planted

AS_OF = datetime(2013, 2, 4, tzinfo=UTC)
PLAN = recipe(epochs=1, seeds=(1, 2, 3))


@pytest.fixture
def small(use_case: UseCase) -> UseCase:
    return use_case.model_copy(update={"train": use_case.train.model_copy(update={"min_rows": 500})})


@pytest.mark.parametrize("fit", list(Fit))
def test_a_model_answers_as_the_refit_of_its_known_rows_and_nothing_older(small: UseCase, fit: Fit) -> None:
    rows = synthetic.table(4000)
    model = fit_model(small, PLAN, rows, AS_OF, fit)
    assert model.cutoff == (AS_OF if fit == Fit.REFITTED else split(small, AS_OF).cutoff)
    known = known_rows(small, rows, model.cutoff)
    assert known["label_time"].to_pylist()[-1] <= model.cutoff
    ensemble = fit_ensemble(PLAN, known, best_device())
    first = sum(moment < model.cutoff for moment in rows["prediction_time"].to_pylist())
    expected = Predictor(Bundle(card={}, encoder=ensemble.encoder, members=ensemble.members)).predict(rows.slice(first))
    assert np.abs(model.score(slice(first, None)) - expected).max() < 1e-6
    assert np.isnan(model.members[:, :first]).all()


def test_what_is_kept_is_read_again_and_what_is_missing_is_said(small: UseCase, tmp_path: Path) -> None:
    partition = Interval(AS_OF, AS_OF + timedelta(days=7))
    kept = KeptModels(small, MatrixRows(home=tmp_path, table=synthetic.table(4000), partitions=(partition,)))
    with pytest.raises(ValueError, match=r"2013-02-04-judged-.* is missing"):
        kept.model(PLAN, AS_OF, Fit.JUDGED, train=False)
    made = kept.model(PLAN, AS_OF, Fit.JUDGED, train=True)
    again = kept.model(PLAN, AS_OF, Fit.JUDGED, train=False)
    assert np.array_equal(made.members, again.members, equal_nan=True)
    assert made.profile == again.profile
    with pytest.raises(ValueError, match="is missing"):  # other seeds are another model
        kept.model(replace(PLAN, seeds=(4, 5, 6)), AS_OF, Fit.JUDGED, train=False)


def test_the_first_champion_has_enough_to_learn_from(small: UseCase) -> None:
    rows = synthetic.table(6000, days=63)
    first = find_first_champion(small, rows)
    assert known_rows(small, rows, split(small, first).train_end).num_rows >= 500
    earlier = first - timedelta(days=small.grid.days)
    assert known_rows(small, rows, split(small, earlier).train_end).num_rows < 500
    with pytest.raises(ValueError, match="no time before which"):
        find_first_champion(small, rows.slice(0, 400))


def test_a_snapshot_is_its_points_with_the_labels_that_are_known(outside: Outside, small: UseCase) -> None:
    rows = synthetic.table(600, days=20)
    unlabelled = pa.array([None if n % 10 == 0 else label for n, label in enumerate(rows["label"].to_pylist())])
    planted_rows = rows.set_column(rows.column_names.index("label"), "label", unlabelled)
    snapshot = planted.dataset(outside, small, planted_rows)
    loaded = load_snapshot(small, snapshot, outside)
    assert loaded["entity_key"].to_pylist() == rows["entity_key"].to_pylist()
    told = [moment < snapshot.end for moment in rows["label_time"].to_pylist()]  # later ones are in no partition of it
    expected = [label if is_told else None for label, is_told in zip(unlabelled.to_pylist(), told, strict=True)]
    assert loaded["label"].to_pylist() == expected
