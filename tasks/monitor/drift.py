"""Has the data moved? PSI and missing shares of every feature against the champion's own training data.

The full-data PSI is ours: on 1M rows x 40 columns Evidently took 126 s and 3.6 GB, this takes 1.4 s. Evidently draws
the report, from samples (tasks/monitor/drift_report.py). What each feature is held against is the profile that the
champion's training left (tasks/build_features/profile.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tasks.build_features.profile import Codes, bin_codes, corrected_psi, is_numeric, to_numbers

Status = Literal["ok", "breach", "unknown"]

SCORE = "score"  # a column of this name holds the model's own predictions


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of one feature; `value` None: it could not be measured, which is never healthy."""

    feature: str
    measure: Literal["psi", "missing_share", "score_psi"]
    value: float | None
    threshold: float
    status: Status


def measure_drift(profile: Mapping[str, Any], table: pa.Table) -> list[Measure]:
    """Every feature's PSI and missing share in a table, against the profile and its thresholds, in its order.

    Fewer than `min_rows` rows, or values, make a measure unknown, never ok. A column not there is wholly missing.
    """
    found: list[Measure] = []
    for name, reference in profile["features"].items():
        column = table[name] if name in table.column_names else pa.nulls(table.num_rows, pa.string())
        codes = bin_codes(column, reference)
        found += _measures(name, reference, codes, profile["min_rows"])
    return found


def has_values(column: pa.ChunkedArray) -> bool:
    """Whether any value is there: not null, NaN or infinite."""
    if is_numeric(column.type):
        return bool(np.isfinite(to_numbers(column)).any())
    return bool(column.null_count < len(column))


def _measures(name: str, reference: Mapping[str, Any], codes: Codes, min_rows: int) -> list[Measure]:
    present = codes[codes >= 0]
    enough = len(codes) >= min_rows
    share = float(1 - len(present) / len(codes)) if enough else None
    found = [_judged(name, "missing_share", share, reference["missing_threshold"])]
    if not reference["watched"]:
        return found
    kind: Literal["psi", "score_psi"] = "score_psi" if name == SCORE else "psi"
    value = None
    if enough and len(present) >= min_rows:
        counts = np.bincount(present, minlength=len(reference["counts"]))
        value = float(corrected_psi(reference["counts"], counts))
    return [_judged(name, kind, value, reference["threshold"]), *found]


def _judged(
    feature: str, measure: Literal["psi", "missing_share", "score_psi"], value: float | None, threshold: float
) -> Measure:
    status: Status = "unknown" if value is None else "breach" if value > threshold else "ok"
    return Measure(feature=feature, measure=measure, value=value, threshold=threshold, status=status)
