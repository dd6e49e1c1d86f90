"""The features of one partition as arrays, and how features of the past are brought to a common scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.build_features.profile import NOT_FEATURES, is_numeric, to_numbers

Floats = NDArray[np.float64]
Texts = NDArray[np.object_]

ROWS = 3000  # of a partition that are looked at, evenly spread; a share of a tenth is then known to a hundredth
_WHOLE = 100_000  # rows of which all values are kept
_LEVELS = np.linspace(0.0025, 0.9975, 200)
_NORMAL = np.array([NormalDist().inv_cdf(level) for level in _LEVELS])


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Numbers are NaN, and texts None, where they are missing; each [rows], in the order of prediction time."""

    numbers: Mapping[str, Floats]
    texts: Mapping[str, Texts]
    clock: Floats  # [rows, clock variables]: the hour and the weekday of the prediction time, in UTC
    partition_rows: int  # of which these are at most `ROWS`
    distinct: Mapping[str, Floats] = field(default_factory=dict)  # the values of numbers of all rows, up to `_WHOLE`

    @property
    def rows(self) -> int:
        """How many rows each has."""
        return len(self.clock)

    def values_of(self, name: str) -> Floats:
        """Every value that a number has, each once: of all rows where they are known."""
        known = self.distinct.get(name)
        return np.unique(present(self.numbers[name])) if known is None else known

    def missing(self, name: str) -> NDArray[np.bool_]:
        """Which rows [rows] have no value."""
        if name in self.numbers:
            return np.isnan(self.numbers[name])
        return np.array([value is None for value in self.texts[name]], np.bool_)


def read_columns(table: pa.Table) -> Columns:
    """Every feature of a table of points, of at most `ROWS` of its rows."""
    rows = table.num_rows
    whole = table.slice(0, _WHOLE)
    if rows > ROWS:
        table = table.take(pa.array(np.linspace(0, rows - 1, ROWS).astype(np.int64)))
    numbers, texts, distinct = {}, {}, {}
    for name in table.column_names:
        if name in NOT_FEATURES:
            continue
        if is_numeric(table[name].type):
            found = to_numbers(table[name])
            numbers[name] = np.where(np.isfinite(found), found, np.nan)
            distinct[name] = np.unique(present(to_numbers(whole[name])))
        else:
            texts[name] = np.array(pc.cast(table[name], pa.string()).to_pylist(), np.object_)
    clock = _tell_clock(table["prediction_time"])
    return Columns(numbers=numbers, texts=texts, clock=clock, partition_rows=rows, distinct=distinct)


def _tell_clock(moments: pa.ChunkedArray) -> Floats:
    """Two harmonics of the hour, and a column a weekday: [rows, 11]."""
    seconds = np.asarray(pc.cast(pc.cast(moments, pa.timestamp("us", "UTC")), pa.int64())) / 1e6
    angle = 2 * np.pi * (seconds % 86400) / 86400
    weekday = (seconds // 86400).astype(np.int64) % 7
    harmonics = (np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle))
    told: Floats = np.column_stack([*harmonics, np.eye(7)[weekday]])
    return told


@dataclass(frozen=True)
class Scale:
    """Brings a number to normal scores by where it lies among those of the past [quantiles]."""

    quantiles: Floats

    @classmethod
    def of(cls, values: Floats) -> "Scale":
        """Of values without NaN."""
        return cls(np.quantile(values, _LEVELS))

    def scores(self, values: Floats) -> Floats:
        """Normal scores [n]: of a value that takes more than one quantile the middle of these."""
        low = np.searchsorted(self.quantiles, values, side="left")
        high = np.searchsorted(self.quantiles, values, side="right")
        middle = _NORMAL[np.clip((low + high - 1) // 2, 0, len(_NORMAL) - 1)]
        scores: Floats = np.where(high - low > 1, middle, np.interp(values, self.quantiles, _NORMAL))
        return scores


def present(values: Floats) -> Floats:
    """Those that are there."""
    return values[~np.isnan(values)]


def logit(share: float) -> float:
    """Of a share that is neither nearly none nor nearly all, as far as 2 and 98 in 100 tell."""
    inside = min(max(share, 0.02), 0.98)
    return float(np.log(inside / (1 - inside)))
