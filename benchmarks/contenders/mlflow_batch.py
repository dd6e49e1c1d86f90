"""Batch scoring as one writes it with MLflow: pandas makes the arrays, a pyfunc with a signature answers."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from mlflow.models import infer_signature
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from models import bundle


class Ensemble(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """The networks of a bundle, asked with a frame."""

    def load_context(self, context: Any) -> None:
        """Once, when the model is loaded."""
        loaded = bundle.load_bundle(Path(context.artifacts["bundle"]))
        self._members = loaded.members
        self._numeric = [column.name for column in loaded.encoder.numeric]
        self._codes = {
            c.name: {value: code for code, value in enumerate(c.values, 1)} for c in loaded.encoder.categorical
        }

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> NDArray[np.float64]:  # noqa: ARG002
        """A probability a row."""
        numbers = model_input[self._numeric].replace([np.inf, -np.inf], np.nan).to_numpy(np.float32, na_value=np.nan)
        codes = np.stack([model_input[name].map(known).fillna(0) for name, known in self._codes.items()], axis=1)
        with torch.no_grad():
            inputs = torch.tensor(numbers), torch.from_numpy(codes.astype(np.int64))
            each = [torch.sigmoid(member(*inputs).double()).numpy() for member in self._members]
        return np.asarray(np.mean(each, axis=0), np.float64)


def save(bundled: Path, folder: Path, sample: pa.Table) -> None:
    """The model with its signature, as MLflow advises."""
    shutil.rmtree(folder, ignore_errors=True)
    encoder = bundle.load_bundle(bundled).encoder
    columns = [*(column.name for column in encoder.numeric), *(column.name for column in encoder.categorical)]
    mlflow.pyfunc.save_model(
        folder,
        python_model=__file__,
        artifacts={"bundle": str(bundled)},
        signature=infer_signature(sample.select(columns).to_pandas(), np.zeros(1)),
        pip_requirements=["torch", "pyarrow", "numpy", "safetensors"],
    )


mlflow.models.set_model(Ensemble())
