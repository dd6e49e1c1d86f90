"""`mlflow models serve`: a model from code, as MLflow's documentation has it; the signature says the columns."""

from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
from mlflow.pyfunc import PythonModel


class Flights(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """The bundle as an artifact, the predictor around it."""

    def load_context(self, context: Any) -> None:
        """Once, when the server starts."""
        from pathlib import Path

        import torch

        from serving.predictor import Predictor

        torch.set_num_threads(1)
        self._predictor = Predictor.load(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[float]:  # noqa: ARG002
        """A probability a row."""
        answers: list[float] = self._predictor.predict(pa.Table.from_pandas(model_input, preserve_index=False)).tolist()
        return answers


mlflow.models.set_model(Flights())
