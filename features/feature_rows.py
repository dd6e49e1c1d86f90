"""The features of a few events as plain values, row by row: what a server reads, logs and predicts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.engine import UTC_MOMENT


@dataclass(frozen=True)
class FeatureRows:
    """Key columns and features of events; moments are microseconds since 1970, and a missing value is None.

    `values` holds for each event the numbers, and then the texts; numbers are not rounded to 32 bits yet.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    entity_keys: Sequence[str]
    event_times: Sequence[int]
    prediction_times: Sequence[int]
    values: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return len(self.entity_keys)

    @cached_property
    def numbers(self) -> NDArray[np.float32]:
        """[events, numbers]: 32 bits, and NaN for what is missing."""
        wide = np.array([row[: len(self.numeric)] for row in self.values], np.float64)
        with np.errstate(over="ignore"):  # too large for 32 bits is infinite
            return wide.reshape(len(self), len(self.numeric)).astype(np.float32)

    @property
    def texts(self) -> list[Sequence[str | None]]:
        """[events][texts]."""
        return [row[len(self.numeric) :] for row in self.values]

    @cached_property
    def table(self) -> pa.Table:
        """As the batch has them."""
        columns: list[Sequence[Any]] = list(zip(*self.values, strict=True)) or [()] * len(
            self.numeric + self.categorical
        )
        masks = [np.array([value is None for value in column], np.bool_) for column in columns[: len(self.numeric)]]
        return pa.table(
            {
                "entity_key": pa.array(self.entity_keys, pa.string()),
                "event_time": pa.array(self.event_times, pa.int64()).cast(UTC_MOMENT),
                "prediction_time": pa.array(self.prediction_times, pa.int64()).cast(UTC_MOMENT),
                **{
                    name: pa.array(self.numbers[:, place], pa.float32(), mask=masks[place])
                    for place, name in enumerate(self.numeric)
                },
                **{
                    name: pa.array(columns[place], pa.string())
                    for place, name in enumerate(self.categorical, len(self.numeric))
                },
            }
        )
