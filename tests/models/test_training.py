import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.utils.deterministic

from models import fused
from models.ensemble import Recipe, fit_ensemble, labels
from models.fused import Fused
from models.metrics import compute_metric
from models.networks import MODELS
from models.training import TrainingProgress, deterministic, predict_scores
from pipeline.settings import REPOSITORY
from tests.models.synthetic import CATEGORICAL, NUMERIC, table

CPU = torch.device("cpu")


def recipe(**changes) -> Recipe:
    small = Recipe(
        kind="binary", numeric=NUMERIC, categorical=CATEGORICAL,
        network="mlp",
        hidden_units=32, layers=2, dropout=0.1, learning_rate=5e-3, weight_decay=1e-3, label_smoothing=0.0,
        batch_rows=256, schedule_epochs=6, epochs=6, seeds=(1,), threads=1,
    )  # fmt: skip
    return replace(small, **changes)


def fingerprint(ensemble) -> bytes:
    return b"".join(t.numpy().tobytes() for m in ensemble.members for t in m.state_dict().values())


def member_scores(ensemble, rows: pa.Table) -> np.ndarray:
    numbers, codes = (torch.from_numpy(a) for a in ensemble.encoder.transform(rows))
    return np.mean([predict_scores(m, numbers, codes) for m in ensemble.members], axis=0)


@pytest.mark.parametrize("network", sorted(MODELS))
def test_a_network_finds_the_signal(network):
    score = member_scores(fit_ensemble(recipe(network=network), table(), CPU), test := table(seed=9))
    assert compute_metric("auc", score, labels(test)) > 0.78
    assert compute_metric("calibration_gap", score, labels(test)) < 0.05


@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize("network", sorted(MODELS))
def test_an_ensemble_answers_with_the_mean_of_its_members(network, kind, monkeypatch):
    ensemble = fit_ensemble(recipe(network=network, kind=kind, epochs=1, seeds=(1, 2, 3)), table(kind=kind), CPU)
    monkeypatch.setattr(fused, "_NUMBERS", 400 * 32)  # some rows at a time
    rows = table(900, seed=4, kind=kind)
    numbers, codes = (torch.from_numpy(a) for a in ensemble.encoder.transform(rows))
    whole = Fused(ensemble.members)
    assert np.abs(whole.answers(numbers, codes) - member_scores(ensemble, rows)).max() < 1e-5
    assert whole.answers(numbers[:0], codes[:0]).shape == (0,)


@pytest.mark.parametrize("columns", [{"numeric": ()}, {"categorical": ()}])
def test_an_ensemble_of_one_kind_of_column_answers_too(columns):
    ensemble = fit_ensemble(recipe(epochs=1, seeds=(1, 2), **columns), rows := table(200), CPU)
    found = Fused(ensemble.members).answers(*map(torch.from_numpy, ensemble.encoder.transform(rows)))
    assert np.abs(found - member_scores(ensemble, rows)).max() < 1e-6


def test_regression_answers_in_units_of_the_label():
    rows = table(kind="regression")
    score = member_scores(fit_ensemble(recipe(kind="regression"), rows, CPU), test := table(seed=9, kind="regression"))
    assert compute_metric("mae", score, labels(test)) < 0.8 * np.mean(np.abs(labels(test) - np.median(labels(test))))


def test_the_same_seed_gives_the_same_weights_bit_for_bit_whatever_the_thread_count_outside():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fingerprint(fit_ensemble(recipe(epochs=2, seeds=(1, 2)), table(), CPU))
        torch.set_num_threads(2)
        torch.rand(17)  # someone else draws
        assert fingerprint(fit_ensemble(recipe(epochs=2, seeds=(1, 2)), table(), CPU)) == one
        assert fingerprint(fit_ensemble(recipe(epochs=2, seeds=(2,)), table(), CPU)) != one
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("processes")
def test_another_process_gives_the_same_weights_bit_for_bit():
    code = (
        "import hashlib; from tests.models.test_training import *;"
        "print(hashlib.sha256(fingerprint(fit_ensemble(recipe(epochs=2), table(), CPU))).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    here = hashlib.sha256(fingerprint(fit_ensemble(recipe(epochs=2), table(), CPU))).hexdigest()
    assert done.stdout.strip() == here


def test_progress_remembers_its_best_epoch_and_is_exhausted_after_its_patience():
    progress = TrainingProgress(losses=[3.0, 1.0, 2.0, 1.0])
    assert (progress.best_loss, progress.best_epoch) == (1.0, 2)
    assert [progress.exhausted(patience) for patience in (2, 3)] == [True, False]
    progress.losses.append(None)
    assert progress.diverged
    assert progress.exhausted(9)
    assert TrainingProgress().best_epoch == 0


def test_training_that_diverges_is_an_error_and_no_model():
    with pytest.raises(ValueError, match="diverged"):
        fit_ensemble(recipe(kind="regression", learning_rate=1e38), table(kind="regression"), CPU)


def test_a_label_that_is_not_finite_is_refused():
    rows = table(100)
    broken = rows.set_column(rows.column_names.index("label"), "label", pa.array([np.nan] * 100))
    with pytest.raises(ValueError, match="100 labels are not finite"):
        fit_ensemble(recipe(), broken, CPU)


def test_a_table_of_constant_columns_gives_the_base_rate_not_nan():
    rows = table(1000)
    for name in NUMERIC:
        rows = rows.set_column(rows.column_names.index(name), name, pa.array([3.0] * 1000))
    for name in CATEGORICAL:
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(["same"] * 1000))
    score = member_scores(fit_ensemble(recipe(), rows, CPU), rows)
    assert abs(score.mean() - labels(rows).mean()) < 0.05


def test_a_recipe_survives_its_document_and_refuses_another():
    assert Recipe.from_document(recipe().to_document()) == recipe()
    with pytest.raises(TypeError, match="surprise"):
        Recipe.from_document({**recipe().to_document(), "surprise": 1})


def test_torch_is_as_it_was_after_it_was_deterministic() -> None:
    def state() -> tuple[int, bool, bool]:
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), filled

    before = state()
    with deterministic(1):
        assert state() == (1, True, False)
    assert state() == before


def test_to_be_deterministic_loads_no_compiler() -> None:
    """Each short process that answers would pay seconds for it: see findings/."""
    code = (
        "import sys, torch\nfrom models.training import deterministic\n"
        "with deterministic(1):\n    assert torch.are_deterministic_algorithms_enabled()\n"
        "assert 'torch._inductor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
