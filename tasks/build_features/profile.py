"""What training data looked like: bins and counts of every feature, and how far its own weeks strayed from them.

Monitoring judges later partitions by it (tasks/monitor/drift.py). It keeps facts and no thresholds, so that a threshold
follows params.yaml at the next monitoring.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.partitions import utc
from pipeline.spec import Monitor, UseCase

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

NOT_FEATURES = frozenset({"entity_key", "event_time", "prediction_time", "label", "label_time"})
_MIN_CATEGORY_SHARE = 0.005  # rarer categories are counted together: alone they are noise
_MAX_CATEGORIES = 50
_MIN_BLOCKS = 4  # fewer weeks than this say nothing about how weeks differ


def psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> Floats:
    """Population stability index over the last axis of two arrays of bin counts; half a row is added to each bin."""
    p, q = (_smooth(np.asarray(counts, dtype=np.float64)) for counts in (expected, actual))
    total: Floats = np.sum((q - p) * np.log(q / p), axis=-1)
    return total


def corrected_psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> Floats:
    """PSI less what chance alone gives, not below 0.

    Without drift PSI / (1/n + 1/m) is chi-squared with bins - 1 degrees of freedom (Yurdakul and Naranjo, "Statistical
    properties of the population stability index", Journal of Risk Model Validation 14(4), 2020), so its mean is
    (bins - 1)(1/n + 1/m).
    """
    m, n = (np.maximum(np.asarray(counts, dtype=np.float64).sum(axis=-1), 1) for counts in (expected, actual))
    bins = np.asarray(expected).shape[-1]
    beyond_chance: Floats = np.maximum(psi(expected, actual) - (bins - 1) * (1 / n + 1 / m), 0.0)
    return beyond_chance


def make_profile(train_table: pa.Table, use_case: UseCase) -> dict[str, Any]:
    """What the training data looked like, and how far its own weeks strayed from it; JSON-able.

    Args:
        train_table: the rows trained on, with their labels' times; every column but keys, times and label is a
            feature. With a column `score`, the model's predictions for these rows, prediction drift is measured too.
        use_case: says how many bins, how blocks of time are cut, and how many rows a block needs to count.

    Raises:
        ValueError: no rows.
    """
    if train_table.num_rows == 0:
        raise ValueError(f"{use_case.name}: no training rows to take a monitoring profile of")
    blocks = _blocks(train_table, use_case)
    times = pc.min_max(train_table["prediction_time"]).as_py()
    return {
        "start": times["min"].isoformat(),
        "end": times["max"].isoformat(),
        "known_by": pc.max(train_table["label_time"]).as_py().isoformat(),  # the newest label learned from
        "rows": train_table.num_rows,
        "blocks": int(blocks.max()) + 1,
        "features": {
            name: _feature_profile(train_table[name], blocks, use_case.monitor)
            for name in train_table.column_names
            if name not in NOT_FEATURES
        },
    }


def _smooth(counts: Floats) -> Floats:
    smoothed = counts + 0.5
    shares: Floats = smoothed / smoothed.sum(axis=-1, keepdims=True)
    return shares


def _blocks(table: pa.Table, use_case: UseCase) -> Codes:
    """Number of the grid partition each row lies in, counted from the first that has rows."""
    microseconds = pc.cast(pc.cast(table["prediction_time"], pa.timestamp("us", tz="UTC")), pa.int64())
    since_first = np.asarray(microseconds, dtype=np.float64) / 1e6 - utc(use_case.grid.first).timestamp()
    numbers: Codes = (since_first // (use_case.grid.days * 86400)).astype(np.int64)
    first: np.int64 = numbers.min()
    return numbers - first


def _feature_profile(column: pa.ChunkedArray, blocks: Codes, monitor: Monitor) -> dict[str, Any]:
    bins = _bins(column, monitor.bins)
    codes = bin_codes(column, bins)
    present = codes >= 0
    # One bin more: edges part the line into that many, and values and categories have `other`.
    counts = np.zeros((int(blocks.max()) + 1, len(bins["values"]) + 1))
    np.add.at(counts, (blocks[present], codes[present]), 1)
    full = counts[counts.sum(axis=1) >= monitor.min_rows]
    return {
        **bins,
        "counts": counts.sum(axis=0).astype(int).tolist(),
        "missing_share": float(1 - present.mean()),
        "worst_missing_share": _worst_missing_share(present, blocks, monitor.min_rows),
        "block_psi": _block_psi(full),
        # A feature too sparse for any week of training is watched by its missing share alone.
        "watched": len(full) > 0,
    }


def _block_psi(counts: Floats) -> list[float]:
    """PSI of each block against all the other blocks together."""
    if len(counts) < _MIN_BLOCKS:
        return []
    return [round(float(value), 6) for value in corrected_psi(counts.sum(axis=0) - counts, counts)]


def _worst_missing_share(present: npt.NDArray[np.bool_], blocks: Codes, min_rows: int) -> float:
    """The largest missing share of a block with enough rows; 0 without such a block."""
    rows = np.bincount(blocks)
    shares = 1 - np.bincount(blocks, weights=present) / np.maximum(rows, 1)
    return float(np.max(shares[rows >= min_rows], initial=0.0))


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type is binned by value; any other is text."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _bins(column: pa.ChunkedArray, bins: int) -> dict[str, Any]:
    """Where to cut: the values themselves where there are few, else quantiles; the common categories of text."""
    if not is_numeric(column.type):
        counted = pc.value_counts(pc.drop_null(pc.cast(column, pa.string()))).to_pylist()
        least = _MIN_CATEGORY_SHARE * sum(row["counts"] for row in counted)
        ranked = sorted(counted, key=lambda row: (-row["counts"], row["values"]))
        return {"kind": "text", "values": [row["values"] for row in ranked[:_MAX_CATEGORIES] if row["counts"] >= least]}
    numbers = to_numbers(column)
    numbers = numbers[np.isfinite(numbers)]
    distinct = np.unique(numbers)
    if len(distinct) <= bins:
        return {"kind": "values", "values": distinct.tolist()}
    edges = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1], method="lower")
    return {"kind": "edges", "values": np.unique(edges).tolist()}


def to_numbers(column: pa.ChunkedArray) -> Floats:
    """A numeric column as float64, NaN where it is null."""
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan), dtype=np.float64)


def bin_codes(column: pa.ChunkedArray | pa.Array, bins: Mapping[str, Any]) -> Codes:
    """Bin of each row; -1 where the value is missing (null, NaN or infinite)."""
    values = bins["values"]
    if bins["kind"] == "text":
        text = pc.cast(column, pa.string())
        index = pc.index_in(text, value_set=pa.array(values, pa.string()))
        return np.asarray(pc.if_else(pc.is_valid(text), pc.fill_null(index, len(values)), -1), dtype=np.int64)
    numbers = to_numbers(column)
    cut = np.asarray(values, dtype=np.float64)
    found = np.searchsorted(cut, numbers, side="left")  # the bin (edge[i-1], edge[i]]
    if bins["kind"] == "values":
        found = np.where(np.isin(numbers, cut), found, len(values))
    return np.where(np.isfinite(numbers), found, -1).astype(np.int64)
