"""The report's pictures, as inline SVG."""

import io
from collections.abc import Sequence
from datetime import datetime

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infra.replay.measures import ReplayedWeek

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.parse_math": False,  # a title is no formula
}
FROZEN, LIVE = "#8a8f98", "#0b6bcb"
MARKS = {
    "promoted": ("^", "#1a7f37", "challenger promoted"),
    "refused": ("X", "#b35900", "challenger not promoted"),
    "recalibrated": ("D", "#7048c6", "recalibrated"),
    "blocked": ("s", "#c62828", "blocked: broken feed"),
}


def choose_mark(week: ReplayedWeek) -> str | None:
    """Which mark a week carries."""
    if week.decision == "block":
        return "blocked"
    if week.retrain_outcome is None:
        return "recalibrated" if week.recalibrated else None
    return "promoted" if week.retrain_outcome == "promoted" else "refused"


def render_svg(figure: Figure) -> str:
    """A figure as an element of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def choose_day_format(days: Sequence[datetime]) -> str:
    """How days are written: with the year where they lie in several."""
    return "%-d %b" if len({day.year for day in days}) < 2 else "%-d %b %y"


def _label_weeks(axes: Axes, starts: list[datetime]) -> None:
    step, written = max(1, len(starts) // 13), choose_day_format(starts)
    if len(starts) > 52:
        step = max(step, len(starts) // 9)  # a label with its year is wider
    axes.set_xticks(range(0, len(starts), step), [start.strftime(written) for start in starts[::step]])


def _place_marks(axes: Axes, weeks: list[ReplayedWeek], heights: list[float]) -> None:
    for name, (marker, colour, label) in MARKS.items():
        places = [index for index, week in enumerate(weeks) if choose_mark(week) == name]
        if places:
            axes.scatter(places, [heights[i] for i in places], marker=marker, color=colour, s=70, zorder=3, label=label)


@mpl.rc_context(STYLE)
def plot_metric(weeks: list[ReplayedWeek], metric: str, title: str) -> str:
    """The weekly metric of the frozen first champion and of the live champion, with the marks of what happened."""
    figure = Figure(figsize=(9, 2.9))
    axes = figure.subplots()
    places = np.arange(len(weeks))
    live = [week.live[metric] for week in weeks]
    axes.plot(
        places, [week.frozen[metric] for week in weeks], color=FROZEN, marker="o", ms=4, label="frozen first champion"
    )
    axes.plot(places, live, color=LIVE, marker="o", ms=4, label="live champion")
    _place_marks(axes, weeks, live)
    _label_weeks(axes, [week.start for week in weeks])
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return render_svg(figure)


@mpl.rc_context(STYLE)
def plot_drift(weeks: list[datetime], ratios: dict[str, list[float]], *, most: int = 14) -> str:
    """PSI over its calibrated threshold, the features that went furthest, week by week; 1 is the threshold."""
    table = np.array([ratios[name] for name in ratios])
    height = np.where(np.isnan(table), np.inf, table).max(axis=1)  # what could not be measured goes first
    order = np.argsort(-height)[:most]
    names = [list(ratios)[index] for index in order]
    figure = Figure(figsize=(9, 0.6 + 0.26 * len(names)))
    axes = figure.subplots()
    image = axes.imshow(
        np.ma.masked_invalid(table[order]),
        aspect="auto",
        cmap=mpl.colormaps["RdYlBu_r"].with_extremes(bad="#5a5a5a"),
        vmin=0,
        vmax=2,
    )
    axes.set_yticks(range(len(names)), names)
    _label_weeks(axes, weeks)
    axes.set_title(
        "Drift: PSI over its calibrated threshold (red: beyond; grey: cannot be measured)",
        loc="left",
        fontweight="bold",
    )
    for row, column in np.argwhere(table[order] > 1):
        axes.text(column, row, f"{table[order][row, column]:.1f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=axes, fraction=0.025, pad=0.02)
    return render_svg(figure)
