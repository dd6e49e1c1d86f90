"""What a bundle is exported to answers as the bundle does, and passes the gate only where it answers no worse."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks.quality import END
from benchmarks.variants import CHAMPION, HALVED, INT8, ONNX, judged, variants
from models.ensemble import fit_ensemble
from models.networks import MODELS
from pipeline.spec import UseCase
from tests.models.synthetic import START, table
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


def test_a_variant_passes_that_is_surely_no_worse_and_fast_enough(use_case: UseCase) -> None:
    holdout = END - START
    draw, rows = np.random.default_rng(0), table(9000, days=use_case.train.holdout_days)
    champion = draw.uniform(0.2, 0.8, rows.num_rows)  # knows each row's very probability
    moments = pc.add(rows["prediction_time"], pa.scalar(holdout, pa.duration("us")))
    rows = rows.drop_columns(["prediction_time", "label"])
    rows = rows.append_column("prediction_time", moments)
    rows = rows.append_column("label", pa.array((draw.random(rows.num_rows) < champion).astype(np.float64)))
    gate = use_case.gate.model_copy(update={"slices": ("carrier",), "resamples": 400})
    use_case = use_case.model_copy(update={"gate": gate})
    scores = {
        CHAMPION: champion,
        "rounded": np.round(champion, 4),
        "slow": np.round(champion, 4),
        "coarse": np.where(champion > 0.5, 0.65, 0.35),
    }
    found = judged(use_case, rows, scores, {"rounded": 1, "slow": gate.max_latency_ms + 1, "coarse": 1})
    assert {name: (one.answer, [*dict.fromkeys(one.codes)]) for name, one in found.items()} == {
        "rounded": ("promote", ["better"]),
        "slow": ("refuse", ["too-slow"]),
        "coarse": ("refuse", ["not-better", "slice-worse"]),
    }
