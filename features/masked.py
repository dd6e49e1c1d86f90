"""Columns of values with a mark for each that is there."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class MaskedColumn(NamedTuple):
    """Values of one type (moments as microseconds since 1970, in UTC or a local clock), and which of them are there."""

    values: Array
    valid: NDArray[np.bool_]


def missing_column(rows: int, kind: str) -> MaskedColumn:
    """Nothing in each row, of a type."""
    kinds = {"varchar": object, "double": np.float64, "boolean": np.bool_, "struct": np.bool_}
    return MaskedColumn(np.zeros(rows, kinds.get(kind, np.int64)), np.zeros(rows, np.bool_))
