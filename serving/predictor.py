"""The one inference path: batch, gate, golden rows and server all predict through it."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from features.feature_rows import FeatureRows
from models.bundle import Bundle, load_bundle
from models.fused import Fused
from models.interval import ConformalInterval
from models.small_batch import SmallBatch
from models.training import deterministic

_FEW_ROWS = 64  # answered in numpy, which then takes less than torch
_CHUNK_ROWS = 32_768  # encoded at once, by one thread
_THREADS = 1  # sums are then split the same way in every process, so that every door gives the same bits


class Predictor:
    """A bundle that answers. Missing, infinite and never-seen values are answered; a missing column is an error."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._ensemble = Fused(bundle.members)

    @classmethod
    def load(cls, folder: Path, *, sha256: str | None = None) -> "Predictor":
        """Open a bundle folder; ValueError when anything in it is not as it was written."""
        return cls(load_bundle(folder, sha256=sha256))

    @property
    def card(self) -> Mapping[str, Any]:
        """What this model is and where it comes from."""
        return self._bundle.card

    @property
    def interval(self) -> ConformalInterval | None:
        """The interval around its answers, where the model has one."""
        return self._bundle.interval

    @cached_property
    def _few(self) -> SmallBatch:
        return SmallBatch(self._bundle.members)

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        features = self.card["features"]
        return tuple(features["numeric"]), tuple(features["categorical"])

    @property
    def columns(self) -> tuple[str, ...]:
        numeric, categorical = self._names
        return (*numeric, *categorical)

    def predict(self, table: pa.Table, *, chunk_rows: int = _CHUNK_ROWS) -> NDArray[np.float64]:
        """Probabilities (binary) or values (regression), float64 [n]: the mean over the ensemble's members.

        Raises:
            ValueError: naming the columns that are missing or of another type.
        """
        starts = range(0, max(table.num_rows, 1), chunk_rows)
        with deterministic(_THREADS):
            if len(starts) == 1:
                answers = self._answers(table)
            else:  # each processor its chunks: where they are cut, and so every bit, is the same with one
                with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                    chunks = (table.slice(start, chunk_rows) for start in starts)
                    answers = np.concatenate(list(pool.map(self._answers, chunks)))
        return self._recalibrated(answers)

    def predict_rows(self, rows: FeatureRows) -> NDArray[np.float64]:
        """As `predict`, of rows in plain values, and to 1e-5 the same: a few of them are answered without torch.

        Raises:
            ValueError: a column is missing.
        """
        if self._names != (rows.numeric, rows.categorical) or not 0 < len(rows) <= _FEW_ROWS:
            return self.predict(rows.table)
        return self._recalibrated(self._few.answers(rows.numbers, self._bundle.encoder.encode_texts(rows.texts)))

    def _answers(self, table: pa.Table) -> NDArray[np.float64]:
        numbers, codes = (torch.from_numpy(array) for array in self._bundle.encoder.transform(table))
        return self._ensemble.answers(numbers, codes)

    def _recalibrated(self, answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """What clients get of what the networks answer, in float64 and so the same through every door."""
        known, recalibration = _require_finite(answers), self._bundle.recalibration
        return known if recalibration is None else recalibration.apply(known)


def _require_finite(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(answers).all():
        raise ArithmeticError("the weights overflow on these rows; no answer is better than NaN")
    return answers
