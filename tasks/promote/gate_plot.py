"""The gate's evidence as one small picture: how sure the effect is, and where it comes from."""

import textwrap
from typing import IO

import numpy as np

from pipeline.handoffs import VerdictAnswer
from tasks.promote.gate import Judgement

_GOOD, _BAD, _QUIET = "#2a7f62", "#b3392f", "#8a8f98"
_MOST_SLICES = 24
_LABEL_CHARACTERS = 40
_LINE_CHARACTERS = 100


def draw_judgement(judgement: Judgement, title: str, target: IO[bytes]) -> None:
    """Write a PNG: the distribution of the effect with its bound, and every tested slice with its interval."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a slice's value is no formula, whatever signs it has
        _draw(judgement, title, target)


def _draw(judgement: Judgement, title: str, target: IO[bytes]) -> None:
    from matplotlib.figure import Figure  # not pyplot: it keeps figures, and looks for a screen

    rows = sorted((r for r in judgement.evidence.get("slices", []) if r["tested"]), key=lambda r: -r["rows"])[
        :_MOST_SLICES
    ]
    figure = Figure(figsize=(8.4, max(3.0, 1.4 + 0.2 * len(rows))), dpi=110, layout="constrained")
    colour = _GOOD if judgement.answer == VerdictAnswer.PROMOTE else _BAD
    figure.suptitle(f"{title}: {judgement.answer}", fontsize=11, color=colour, fontweight="bold")
    if judgement.effect is None:
        # Wrapped here: matplotlib, wrapping, takes the parts for formulas whatever it was told.
        lines = [line for reason in judgement.reasons for line in textwrap.wrap(reason, _LINE_CHARACTERS)]
        figure.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=9)
    else:
        left, right = figure.subplots(1, 2)
        _distribution(left, judgement)
        _slices(right, rows, judgement.evidence["effect"]["metric"])
    figure.savefig(target, format="png", metadata={"Software": None})


def _distribution(axes, judgement: Judgement) -> None:  # type: ignore[no-untyped-def]  # matplotlib ships no types
    metric, needed = judgement.evidence["effect"]["metric"], judgement.evidence["thresholds"]["min_effect"]
    axes.hist(judgement.replicates[np.isfinite(judgement.replicates)], bins=40, color="#c9d6df")
    expected = judgement.evidence["expected"]["mean"]
    axes.axvline(needed, color="black", linestyle=":", linewidth=1, label=f"a switch is worth {needed:g}")
    axes.axvline(judgement.effect, color=_QUIET, linewidth=1.4, label=f"measured {judgement.effect:+.4f}")
    axes.axvline(judgement.low, color=_QUIET, linewidth=1, linestyle="--", label=f"surely above {judgement.low:+.4f}")
    colour = _GOOD if expected > needed else _BAD
    axes.axvline(expected, color=colour, linewidth=1.8, label=f"expected {expected:+.4f}")
    axes.set_xlabel(f"better by ({metric}), over resampled blocks", fontsize=8)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False)


def _slices(axes, rows, metric: str) -> None:  # type: ignore[no-untyped-def]  # matplotlib ships no types
    for place, row in enumerate(reversed(rows)):
        colour = _BAD if row["failed"] else _QUIET
        low, high = (row[end] if row[end] is not None else row["effect"] for end in ("low", "high"))
        axes.plot([low, high], [place, place], color=colour, linewidth=1.4)
        axes.plot(row["effect"], place, "o", color=colour, markersize=3.5)
    axes.axvline(0, color="black", linestyle=":", linewidth=1)
    names = [f"{r['column']}={r['value'][:_LABEL_CHARACTERS]} ({r['rows']:,})" for r in reversed(rows)]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_xlabel(f"better by ({metric}), per slice", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
