"""The bundle as the other servers take it: an ONNX graph, and a model folder of MLflow's."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from models.bundle import Bundle, load_bundle
from serving.predictor import Predictor


class _Mean(nn.Module):
    """The whole ensemble as one graph."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.members = nn.ModuleList(bundle.members)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Probabilities [n]."""
        return torch.stack([torch.sigmoid(member(numbers, codes)) for member in self.members]).mean(dim=0)


def to_onnx(bundle: Path, folder: Path) -> None:
    """`model.onnx` and `encoder.json` in a folder."""
    loaded = load_bundle(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(bundle / "encoder.json", folder / "encoder.json")
    inputs = (
        torch.zeros(2, len(loaded.encoder.numeric)),
        torch.zeros(2, len(loaded.encoder.categorical), dtype=torch.int64),
    )
    rows = {0: "rows"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter through TorchScript is deprecated; the other needs more packages
        torch.onnx.export(
            _Mean(loaded).eval(),
            inputs,
            folder / "model.onnx",
            input_names=["numbers", "codes"],
            output_names=["probability"],
            dynamic_axes={"numbers": rows, "codes": rows, "probability": rows},
            dynamo=False,
        )


def to_mlflow(bundle: Path, folder: Path, sample: pa.Table, *, signed: bool) -> None:
    """A pyfunc model with its signature, as MLflow advises; or without, which spares the server its checks."""
    import mlflow
    from mlflow.models import infer_signature

    shutil.rmtree(folder, ignore_errors=True)
    predictor = Predictor.load(bundle)
    frame = as_frame(sample, predictor)
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"bundle": str(bundle)},
        signature=infer_signature(frame, np.zeros(len(frame))) if signed else None,
        pip_requirements=["torch", "pyarrow", "numpy", "safetensors"],
    )


def as_frame(points: pa.Table, predictor: Predictor) -> Any:
    """The columns the model reads: numbers as float64, so that any of them may be missing, and texts."""
    numeric = predictor.card["features"]["numeric"]
    columns = {name: points[name].cast(pa.float64()) if name in numeric else points[name] for name in predictor.columns}
    return pa.table(columns).to_pandas()
