"""What a bundle is exported to answers as the bundle does."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.variants import CHAMPION, HALVED, INT8, ONNX, variants
from models.ensemble import fit_ensemble
from models.networks import MODELS
from tests.models.synthetic import table
from tests.models.test_bundle import write
from tests.models.test_training import CPU, recipe


@pytest.mark.parametrize("network", sorted(MODELS))
def test_an_export_answers_as_torch_does(tmp_path: Path, network: str) -> None:
    write(tmp_path / "bundle", fit_ensemble(recipe(network=network, epochs=3, seeds=(1, 2)), table(), CPU))
    rows = table(9000, seed=3)
    found = {name: answers.predict(rows) for name, (answers, _) in variants(tmp_path / "bundle").items()}
    apart = {name: np.abs(values - found[CHAMPION]).max() for name, values in found.items()}
    assert apart[ONNX] <= 1e-4
    assert 0 < apart[HALVED] < 0.05
    assert 0 < apart[INT8] < 0.1
