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

from pipeline.monitoring import Monitor
from pipeline.partitions import utc
from pipeline.spec import UseCase

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

NOT_FEATURES = frozenset({"entity_key", "event_time", "prediction_time", "label", "label_time"})
_MIN_CATEGORY_SHARE = 0.005  # rarer categories are counted together: alone they are noise
_MAX_CATEGORIES = 50
_MAX_RARE = 20_000  # rare categories that a profile remembers, so that new ones are told from them
TOGETHER = "partitions_together"  # a key of those profiles only whose partitions are too small to be judged alone
MOST_TOGETHER = 8  # older partitions say little of today
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
        use_case: says how many bins, how blocks of time are cut, and how many rows a block needs to count. A block is a
            partition or, where the usual one has fewer rows, so many in a row.

    Raises:
        ValueError: no rows.
    """
    if train_table.num_rows == 0:
        raise ValueError(f"{use_case.name}: no training rows to take a monitoring profile of")
    partitions = _partition_numbers(train_table, use_case)
    together = _count_together(partitions, use_case.monitor.min_rows)
    blocks = partitions // together
    times = pc.min_max(train_table["prediction_time"]).as_py()
    return {
        "start": times["min"].isoformat(),
        "end": times["max"].isoformat(),
        "known_by": pc.max(train_table["label_time"]).as_py().isoformat(),  # the newest label learned from
        "rows": train_table.num_rows,
        "blocks": int(blocks.max()) + 1,
        **({TOGETHER: together} if together > 1 else {}),
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


def _count_together(partitions: Codes, min_rows: int) -> int:
    """How many partitions in a row are looked at as one, so that the usual one has enough rows: of most tables, one."""
    rows = np.bincount(partitions)
    return min(MOST_TOGETHER, int(np.ceil(min_rows / np.median(rows[rows > 0]))))


def _partition_numbers(table: pa.Table, use_case: UseCase) -> Codes:
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
    counts = _count(blocks[present], codes[present], count_bins(bins))
    enough = counts.sum(axis=1) >= monitor.min_rows
    # To the other blocks a rare category that only this one has is new, as one of a later partition is to all of them.
    alone = _only_here(column, blocks, bins) & present
    counts_alone = _count(blocks[present], np.where(alone, count_bins(bins) - 1, codes)[present], count_bins(bins))
    full = counts[enough]
    return {
        **bins,
        "counts": counts.sum(axis=0).astype(int).tolist(),
        "missing_share": float(1 - present.mean()),
        "worst_missing_share": _worst_missing_share(present, blocks, monitor.min_rows),
        "block_psi": _block_psi(full, counts_alone[enough]),
        # A feature too sparse for any week of training is watched by its missing share alone.
        "watched": len(full) > 0,
    }


def _count(blocks: Codes, codes: Codes, bins: int) -> Floats:
    """Rows of each block [blocks] in each bin [bins]."""
    counts = np.zeros((int(blocks.max(initial=0)) + 1, bins))
    np.add.at(counts, (blocks, codes), 1)
    return counts


def _only_here(column: pa.ChunkedArray, blocks: Codes, bins: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Rows [n] whose rare category no other block has."""
    rare = [value for group in bins.get("rare", ()) for value in group]
    if not rare:
        return np.zeros(len(column), np.bool_)
    numbers = pc.index_in(pc.cast(column, pa.string()), value_set=pa.array(rare, pa.string()))
    which = np.asarray(pc.fill_null(numbers, len(rare)), dtype=np.int64)  # the last: not rare, or missing
    in_blocks = np.bincount(np.unique(blocks * (len(rare) + 1) + which) % (len(rare) + 1), minlength=len(rare) + 1)
    alone: npt.NDArray[np.bool_] = (in_blocks[which] == 1) & (which < len(rare))
    return alone


def _block_psi(counts: Floats, counts_alone: Floats) -> list[float]:
    """PSI of each block, as the others see it, against all the other blocks together."""
    if len(counts) < _MIN_BLOCKS:
        return []
    return [round(float(value), 6) for value in corrected_psi(counts.sum(axis=0) - counts, counts_alone)]


def _worst_missing_share(present: npt.NDArray[np.bool_], blocks: Codes, min_rows: int) -> float:
    """The largest missing share of a block with enough rows; 0 without such a block."""
    rows = np.bincount(blocks)
    shares = 1 - np.bincount(blocks, weights=present) / np.maximum(rows, 1)
    return float(np.max(shares[rows >= min_rows], initial=0.0))


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type is binned by value; any other is text."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def count_bins(bins: Mapping[str, Any]) -> int:
    """How many bins there are. The last is for what training had not: edges, too, part the line into one more.

    Where rare categories are not remembered (there are too many, or the profile is of an earlier version) it holds
    these and new ones alike; alone, it says nothing.
    """
    return len(bins["values"]) + len(bins.get("rare", ())) + 1


def _bins(column: pa.ChunkedArray, bins: int) -> dict[str, Any]:
    """Where to cut: the values themselves where there are few, else quantiles; the common categories of text."""
    if not is_numeric(column.type):
        return _categories(column, bins)
    numbers = to_numbers(column)
    numbers = numbers[np.isfinite(numbers)]
    distinct = np.unique(numbers)
    if len(distinct) <= bins:
        return {"kind": "values", "values": distinct.tolist()}
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    if edges[0] == distinct[-1]:  # nearly all are the largest value: without a cut below it one bin would hold all
        edges = distinct[-2:]
    return {"kind": "edges", "values": edges.tolist()}


def _categories(column: pa.ChunkedArray, bins: int) -> dict[str, Any]:
    """The common categories, most frequent first; the rare ones in groups, each about as heavy as a bin of a number."""
    counted = pc.value_counts(pc.drop_null(pc.cast(column, pa.string()))).to_pylist()
    total = sum(row["counts"] for row in counted)
    ranked = sorted(counted, key=lambda row: (-row["counts"], row["values"]))
    common = [row["values"] for row in ranked[:_MAX_CATEGORIES] if row["counts"] >= _MIN_CATEGORY_SHARE * total]
    found: dict[str, Any] = {"kind": "text", "values": common}
    rare = sorted(ranked[len(common) :], key=lambda row: row["values"])  # neighbours in the alphabet belong together
    if 0 < len(rare) <= _MAX_RARE:
        counts = np.array([row["counts"] for row in rare])
        groups = max(1, int(bins * counts.sum() / total))
        number = (np.cumsum(counts) - counts) * groups // counts.sum()
        names = np.array([row["values"] for row in rare], dtype=object)
        found["rare"] = [names[number == group].tolist() for group in np.unique(number)]
    return found


def to_numbers(column: pa.ChunkedArray) -> Floats:
    """A numeric column as float64, NaN where it is null."""
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan), dtype=np.float64)


def bin_codes(column: pa.ChunkedArray | pa.Array, bins: Mapping[str, Any]) -> Codes:
    """Bin of each row; -1 where the value is missing (null, NaN or infinite)."""
    values = bins["values"]
    if bins["kind"] == "text":
        groups = [[value] for value in values] + list(bins.get("rare", ()))
        known = [value for group in groups for value in group]
        of_known = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        text = pc.cast(column, pa.string())
        index = pc.fill_null(pc.index_in(text, value_set=pa.array(known, pa.string())), len(known))
        codes = np.append(of_known, len(groups))[np.asarray(index, dtype=np.int64)]
        return np.where(np.asarray(pc.is_valid(text), dtype=np.bool_), codes, -1).astype(np.int64)
    numbers = to_numbers(column)
    cut = np.asarray(values, dtype=np.float64)
    found = np.searchsorted(cut, numbers, side="left")  # the bin (edge[i-1], edge[i]]
    if bins["kind"] == "values":
        found = np.where(np.isin(numbers, cut), found, len(values))
    return np.where(np.isfinite(numbers), found, -1).astype(np.int64)
