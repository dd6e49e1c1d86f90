"""From an Arrow table to the two arrays a network reads; what was fitted travels as JSON, floats exact."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_CLIP_SHARE = 0.001  # the outermost share of values on each side that is pulled in: one wind speed of 1048 mph
_RARE_ROWS = 20  # a category seen less often is pooled with the unknown ones, so that `unknown` is trained too
_SELDOM_SHARE = 0.001  # missing more rarely (or less rarely) than this, the missing mask cannot be learned
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class NumericColumn:
    """How one number is normalised: clipped to [low, high], minus mean, divided by scale."""

    name: str
    low: float
    high: float
    mean: float
    scale: float
    mask: bool  # whether "missing" was seen often enough, and seldom enough, to mean something


@dataclass(frozen=True, kw_only=True)
class CategoricalColumn:
    """The known values of one category; value i has code i + 1, and unknown, rare and missing have code 0."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What was learned about columns from the training rows."""

    numeric: tuple[NumericColumn, ...]
    categorical: tuple[CategoricalColumn, ...]

    @classmethod
    def fit(cls, table: pa.Table, *, numeric: Sequence[str], categorical: Sequence[str]) -> "Encoder":
        """Statistics and vocabularies of a table's columns; all-null and constant columns say nothing."""
        if not table.num_rows:
            raise ValueError("an encoder is fitted on rows, got none")
        _require(table, [*numeric, *categorical])
        return cls(
            numeric=tuple(_fit_numeric(name, _numbers(table, name)) for name in numeric),
            categorical=tuple(_fit_categorical(name, _strings(table, name)) for name in categorical),
        )

    def transform(self, table: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(numbers [n, d] with NaN for missing and for infinite, category codes [n, c]).

        Raises:
            ValueError: naming the columns that are missing, or the one of another type.
        """
        _require(table, [*(c.name for c in self.numeric), *(c.name for c in self.categorical)])
        rows = table.num_rows
        numbers = np.empty((len(self.numeric), rows), np.float32).T  # a column is one piece, as in the table
        for i, column in enumerate(self.numeric):
            numbers[:, i] = _single(table, column.name)
        if (infinite := np.isinf(numbers)).any():
            numbers[infinite] = np.nan
        codes = np.empty((rows, len(self.categorical)), np.int64)
        for i, (category, known) in enumerate(zip(self.categorical, self._codes, strict=True)):
            found = _dictionary(table, category.name)
            of_value = np.array([known.get(value, 0) for value in found.dictionary.to_pylist()] + [0], np.int64)
            codes[:, i] = of_value[found.indices.fill_null(len(of_value) - 1).to_numpy()]
        return numbers, codes

    def encode_texts(self, texts: Sequence[Sequence[str | None]]) -> NDArray[np.int64]:
        """Category codes [n, c] of rows [n][c], in the encoder's order."""
        return np.array(
            [[codes.get(t, 0) for t, codes in zip(row, self._codes, strict=True)] for row in texts], np.int64
        )

    @cached_property
    def _codes(self) -> tuple[dict[str | None, int], ...]:
        """Made once: a server encodes a handful of rows a thousand times a minute."""
        return tuple({value: code for code, value in enumerate(c.values, 1)} for c in self.categorical)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many codes each category has, unknown included."""
        return tuple(len(column.values) + 1 for column in self.categorical)

    @property
    def masked(self) -> tuple[int, ...]:
        """The numbers whose being missing means something, by position."""
        return tuple(i for i, column in enumerate(self.numeric) if column.mask)

    def to_json(self) -> str:
        """This encoder as JSON; the same encoder gives the same text."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Encoder":
        """The encoder written by `to_json`, exact to the last bit.

        Raises:
            ValueError: the text is no encoder.
        """
        try:
            document = json.loads(text)
            return cls(
                numeric=tuple(_checked(NumericColumn(**column)) for column in document["numeric"]),
                categorical=tuple(
                    CategoricalColumn(name=str(c["name"]), values=tuple(map(str, c["values"])))
                    for c in document["categorical"]
                ),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an encoder: {error!r}") from error


def _checked(column: NumericColumn) -> NumericColumn:
    bounds = (column.low, column.high, column.mean, column.scale)
    if not all(isinstance(value, float) and np.isfinite(value) for value in bounds) or column.scale <= 0:
        raise ValueError(f"not an encoder: column {column.name!r} has the statistics {bounds}")
    return column


def _require(table: pa.Table, names: Sequence[str]) -> None:
    if missing := sorted(set(names) - set(table.column_names)):
        raise ValueError(f"columns missing from the table: {', '.join(missing)}")


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as float64 [n]; null, NaN and infinity all become NaN."""
    values = np.array(_cast(table, name, pa.float64(), "numbers").to_numpy(), np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _cast(table: pa.Table, name: str, kind: pa.DataType, expected: str) -> pa.ChunkedArray:
    column = table.column(name)
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"column {name}: expected {expected}, got {column.type}") from error


def _single(table: pa.Table, name: str) -> NDArray[np.float32]:
    """A column as float32 [n]; what is too large for that is the largest there is."""
    column: Any = table.column(name)
    if column.type == pa.float32():
        single: NDArray[np.float32] = column.to_numpy()
        return single
    return np.clip(_numbers(table, name), -_LARGEST, _LARGEST).astype(np.float32)


def _strings(table: pa.Table, name: str) -> Any:
    return _cast(table, name, pa.string(), "strings").combine_chunks()


def _dictionary(table: pa.Table, name: str) -> Any:
    column: Any = table.column(name)
    if pa.types.is_dictionary(column.type) and column.type.value_type == pa.string():
        return column.combine_chunks()
    return _strings(table, name).dictionary_encode()


def _fit_numeric(name: str, values: NDArray[np.float64]) -> NumericColumn:
    present = values[~np.isnan(values)]
    if not len(present):
        return NumericColumn(name=name, low=0.0, high=0.0, mean=0.0, scale=1.0, mask=False)
    low, high = (float(v) for v in np.quantile(present, (_CLIP_SHARE, 1 - _CLIP_SHARE)))
    if low == high:  # practically constant; keep what little variation there is
        low, high = float(present.min()), float(present.max())
    low, high = max(low, -_LARGEST), min(high, _LARGEST)
    clipped = np.clip(present, low, high)
    scale = float(clipped.std())
    missing_share = 1 - len(present) / len(values)
    return NumericColumn(
        name=name,
        low=low,
        high=high,
        mean=float(clipped.mean()),
        scale=scale if low < high and np.isfinite(scale) and scale > 1e-30 else 1.0,
        mask=_SELDOM_SHARE <= missing_share <= 1 - _SELDOM_SHARE,
    )


def _fit_categorical(name: str, values: Any) -> CategoricalColumn:
    counts = pc.value_counts(values.drop_null()).to_pylist()
    return CategoricalColumn(name=name, values=tuple(sorted(c["values"] for c in counts if c["counts"] >= _RARE_ROWS)))
