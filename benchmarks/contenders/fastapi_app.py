"""FastAPI: a pydantic model of the features, an async endpoint, the predictor loaded once."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from serving.predictor import Predictor

torch.set_num_threads(1)
_PREDICTOR = Predictor.load(Path(os.environ["BENCHMARK_BUNDLE"]))
_NUMERIC = _PREDICTOR.card["features"]["numeric"]
_CATEGORICAL = _PREDICTOR.card["features"]["categorical"]
_FIELDS: dict[str, Any] = dict.fromkeys(_NUMERIC, (float | None, ...))
_FIELDS |= dict.fromkeys(_CATEGORICAL, (str | None, ...))
_SCHEMA = pa.schema({**dict.fromkeys(_NUMERIC, pa.float64()), **dict.fromkeys(_CATEGORICAL, pa.string())})

Features = create_model("Features", **_FIELDS)


class Answer(BaseModel):
    """What is answered."""

    probability: float


app = FastAPI()


@app.post("/predict")
async def predict(features: Features) -> Answer:  # type: ignore[valid-type]  # made from the model's card
    """One event's probability."""
    values = features.model_dump()  # type: ignore[attr-defined]
    table = pa.Table.from_pylist([values], _SCHEMA)
    return Answer(probability=float(_PREDICTOR.predict(table)[0]))
