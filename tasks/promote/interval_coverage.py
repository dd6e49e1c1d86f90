"""How often the label lies in its interval, and how sure that is: an exact binomial bound for rows that come in days.

Rows of one day share what that day was like, so that many of them say less than as many rows of their own would. They
count as the number of independent rows that would leave as much in doubt, by how the days differ, and are then bounded
as those are (Clopper and Pearson 1934; Korn and Graubard 1998, Survey Methodology 24:193). Unlike a bootstrap over few
days this also holds where nearly all of the labels lie inside.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.promote.bootstrap import Floats


@dataclass(frozen=True, kw_only=True)
class IntervalCoverage:
    """The share of labels inside their intervals, with one-sided bounds, each at the confidence asked for.

    `mean_width` is in units of the label. Without two days to compare, nothing is sure: the bounds are 0 and 1.
    """

    covered: float
    low: float
    high: float
    mean_width: float
    rows: int
    days: int


def measure_coverage(
    lower: Floats, upper: Floats, label: Floats, day: NDArray[Any], *, confidence: float
) -> IntervalCoverage:
    """Of rows [n], at least one, with bounds and a label each; `day` [n] says to which block a row belongs."""
    inside = ((lower <= label) & (label <= upper)).astype(np.float64)
    blocks, code = np.unique(day, return_inverse=True)
    low, high = bound_share(inside, code, len(blocks), confidence=confidence)
    return IntervalCoverage(
        covered=float(inside.mean()),
        low=low,
        high=high,
        mean_width=float((upper - lower).mean()),
        rows=len(inside),
        days=len(blocks),
    )


def bound_share(inside: Floats, day: NDArray[np.intp], days: int, *, confidence: float) -> tuple[float, float]:
    """One-sided bounds of the share of ones among zeros and ones [n], whose days [n] count from 0 to days - 1."""
    from scipy.stats import beta

    if days < 2:
        return 0.0, 1.0
    rows = _count_effective(inside, day, days, confidence=confidence)
    ones = rows * float(inside.mean())
    low = float(beta.ppf(1 - confidence, ones, rows - ones + 1)) if ones > 0 else 0.0
    high = float(beta.ppf(confidence, ones + 1, rows - ones)) if ones < rows else 1.0
    return low, high


def _count_effective(inside: Floats, day: NDArray[np.intp], days: int, *, confidence: float) -> float:
    """As how many independent rows these count; never as more than they are."""
    from scipy.stats import t

    n, share = len(inside), float(inside.mean())
    off = np.bincount(day, inside - share, days)  # of each day, how many more than its rows make one expect
    variance = days / (days - 1) * float((off**2).sum()) / n**2
    # Few days tell little of how days differ: Student's t, as if for a mean over them.
    doubt = float(t.ppf(confidence, days - 1) / t.ppf(confidence, max(n - 1, 1)))
    most = n / doubt**2
    return most if variance == 0 else min(most, share * (1 - share) / (variance * doubt**2))
