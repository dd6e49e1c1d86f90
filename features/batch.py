"""The events of one call: their columns so far, by the names that expressions use, and their problems."""

from collections.abc import Hashable, Mapping
from string import Formatter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.operations import MaskedColumn, missing_column
from features.series import Series

REQUEST = "asked."  # the prefix of what clients send, as definitions write it in expressions


class EventBatch:
    """Columns by name, each over all the rows; `known` is the moment up to which each row may know, in microseconds."""

    def __init__(self, events: pa.Table, kinds: Mapping[str, str]) -> None:
        self.rows = events.num_rows
        self.problems: list[list[str]] = [[] for _ in range(self.rows)]
        self.key_lists: dict[str, list[Hashable]] = {}
        self.event_time = self.known = np.zeros(self.rows, np.int64)
        self.columns = {
            REQUEST + name: _column(events[name], kind)
            if name in events.column_names
            else missing_column(self.rows, kind)
            for name, kind in kinds.items()
        }

    def keys(self, series: Series) -> list[Hashable]:
        """The key of each row in a series; None where any part of it is missing."""
        if not series.on:
            return [()] * self.rows
        lists = [self._key_list(REQUEST + name if series.lookup else name) for name in series.on]
        if len(lists) == 1:
            return lists[0]
        return [None if None in key else key for key in zip(*lists, strict=True)]

    def note_absence(self, absent: str | None, rows: NDArray[np.bool_]) -> None:
        """Add to the problems of some rows why something is not known of them."""
        if absent is not None and rows.any():
            columns = {
                name: self.columns[name if name in self.columns else REQUEST + name].values
                for _, name, _, _ in Formatter().parse(absent)
                if name
            }
            for row in np.flatnonzero(rows).tolist():
                self.problems[row].append(absent.format(**{name: values[row] for name, values in columns.items()}))

    def _key_list(self, name: str) -> list[Hashable]:
        if name not in self.key_lists:
            values, valid = self.columns[name]
            self.key_lists[name] = (
                values.tolist()
                if valid.all()
                else [value if there else None for value, there in zip(values.tolist(), valid.tolist(), strict=True)]
            )
        return self.key_lists[name]


def _column(values: pa.ChunkedArray, kind: str) -> MaskedColumn:
    valid = values.is_valid().to_numpy() if values.null_count else np.ones(len(values), np.bool_)
    if kind == "varchar":
        return MaskedColumn(np.array(values.to_pylist(), object), valid)
    if kind == "timestamp":
        values = values.cast(pa.timestamp("us")).cast(pa.int64())
    return MaskedColumn(values.cast(pa.float64() if kind == "double" else pa.int64()).fill_null(0).to_numpy(), valid)
