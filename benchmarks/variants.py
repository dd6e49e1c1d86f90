"""What a champion would gain in bf16, as ONNX and in eight bits, what it would lose, and what the gate says of each.

    python -m benchmarks.variants [--rounds 5]

The champion is `benchmarks.scoring`'s. Every variant answers April to December from the same Arrow table, in the same
chunks, a thread each; the gate compares it with the champion on the first 14 days it may use, as it compares any
candidate but for one thing: a variant need not be surely better by `min_effect`, only surely not worse by as much
(non-inferiority: Piaggio et al. 2012, JAMA 308:2594). Slices, calibration and latency are asked of it as of any other.
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.contenders.export import to_onnx
from benchmarks.quality import END, frozen, year
from benchmarks.scoring import Halved, trained
from benchmarks.table import Measured, keep, table
from models import bundle
from models.ensemble import labels
from models.metrics import compute_metric
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from serving.predictor import Predictor
from tasks.promote.evaluate import frozen_rows, latency_ms
from tasks.promote.gate import Judgement, decide
from tasks.promote.gate_checks import Scored, Setting

CHAMPION, HALVED, ONNX, INT8 = "torch fp32 (serves)", "torch bf16", "ONNX Runtime fp32", "ONNX Runtime int8"
_CHUNK_ROWS = 4096
Floats = NDArray[np.float64]


class Answers(Protocol):
    """What answers a table."""

    def predict(self, table: pa.Table) -> Floats:
        """Probabilities [n]."""


class Exported:
    """An ONNX graph behind the bundle's encoder; as the predictor, a thread takes a chunk."""

    def __init__(self, loaded: bundle.Bundle, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._encoder = loaded.encoder

    def predict(self, table: pa.Table) -> Floats:
        """Probabilities [n]."""
        chunks = [table.slice(start, _CHUNK_ROWS) for start in range(0, table.num_rows, _CHUNK_ROWS)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return np.concatenate(list(pool.map(self._some, chunks))).astype(np.float64)

    def _some(self, table: pa.Table) -> NDArray[np.float32]:
        numbers, codes = self._encoder.transform(table)
        [answers] = self._session.run(None, {"numbers": numbers, "codes": codes})
        return np.asarray(answers, np.float32)


def variants(folder: Path) -> dict[str, tuple[Answers, int]]:
    """Name -> what answers, and the bytes of its weights; exported into the bundle's folder's neighbour."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    loaded, exported = bundle.load_bundle(folder), folder.parent / "onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises what dynamic quantisation does not need
        to_onnx(folder, exported)
        quantize_dynamic(exported / "model.onnx", exported / "int8.onnx", weight_type=QuantType.QInt8)
    parameters = sum(p.numel() for member in loaded.members for p in member.parameters())
    return {
        CHAMPION: (Predictor(loaded), (folder / "weights.safetensors").stat().st_size),
        HALVED: (Halved(loaded), 2 * parameters),
        ONNX: (Exported(loaded, exported / "model.onnx"), (exported / "model.onnx").stat().st_size),
        INT8: (Exported(loaded, exported / "int8.onnx"), (exported / "int8.onnx").stat().st_size),
    }


def judged(
    use_case: UseCase, test: pa.Table, scores: Mapping[str, Floats], latencies_ms: Mapping[str, float]
) -> dict[str, Judgement]:
    """What the gate says of each variant, with the champion as its opponent, on the shipped holdout's length."""
    start = END
    end = start + timedelta(days=use_case.train.holdout_days)
    moments = test["prediction_time"]
    kind = moments.type
    inside = pc.and_(pc.greater_equal(moments, pa.scalar(start, kind)), pc.less(moments, pa.scalar(end, kind)))
    kept = np.flatnonzero(inside.to_numpy())
    no_worse = use_case.gate.model_copy(
        update={"min_effect": -use_case.gate.min_effect, "max_loss_chance": 1 - use_case.gate.confidence}
    )
    setting = Setting(
        gate=no_worse, kind=use_case.target.kind, block=use_case.gate_block, holdout_start=start, latency_ms=0,
        seed=use_case.seed,
    )  # fmt: skip
    rows = frozen_rows(use_case, test.take(pa.array(kept)))
    scored = {name: Scored(version=name, cutoff=END, scores=values[kept]) for name, values in scores.items()}
    return {
        name: decide(replace(setting, latency_ms=latencies_ms[name]), rows, one, scored[CHAMPION])
        for name, one in scored.items()
        if name != CHAMPION
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", type=Path, default=Path("build/benchmarks/flights-2013.parquet"))
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    told = parser.parse_args()
    use_case = use_cases(REPOSITORY / "params.yaml")["flights"]
    train, test = frozen(year(use_case, told.features))
    label = labels(test)
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as folder:
        trained(train, Path(folder) / "bundle")
        contestants = variants(Path(folder) / "bundle")
    measured, scores = {name: Measured(name=name) for name in contestants}, {}
    for _ in range(told.rounds):
        for name, (answers, _) in contestants.items():
            with measured[name].timed():
                scores[name] = answers.predict(test)
    latencies = {name: latency_ms(answers, test) for name, (answers, _) in contestants.items()}
    verdicts = judged(use_case, test, scores, latencies)
    for name, one in measured.items():
        one.facts = {
            "rows/s": f"{test.num_rows / median(one.wall):,.0f}",
            "kB": contestants[name][1] // 1000,
            "log-loss": f"{compute_metric('log_loss', scores[name], label):.5f}",
            "ms a row": f"{latencies[name]:.2f}",
            "furthest": f"{np.abs(scores[name] - scores[CHAMPION]).max():.1e}",
            "no worse than": "-" if name == CHAMPION else f"{verdicts[name].low:+.1e}",
            "gate": "-" if name == CHAMPION else f"{verdicts[name].answer} ({', '.join(verdicts[name].codes)})",
        }
    print(table(list(measured.values()), ours=CHAMPION))
    print(keep("variants", list(measured.values()), told.into, rows=test.num_rows))


if __name__ == "__main__":
    main()
