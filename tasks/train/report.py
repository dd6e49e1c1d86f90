"""What a person wants to see of a configuration, on validation rows: calibration, slices, importances, curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.metrics import compute_metric, to_loss

Floats = NDArray[np.float64]
_BINS = 10
_SHOWN = 20
_SHOWN_SLICES = 60  # the largest: a picture of thousands of bars cannot be drawn
_LABEL_CHARACTERS = 60
_AS_WRITTEN = {"text.parse_math": False}  # a name or a value is no formula, whatever signs it has
_MIN_SLICE_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Numbers behind the plots, as JSON values."""

    calibration: list[dict[str, float]]
    slices: list[dict[str, Any]]
    importances: list[dict[str, Any]]


def calibration(score: Floats, label: Floats) -> list[dict[str, float]]:
    """Mean score and mean label of ten equally large groups of rows, ordered by score."""
    groups = np.array_split(np.argsort(score, kind="stable"), min(_BINS, len(score)))
    return [{"rows": len(g), "score": float(score[g].mean()), "label": float(label[g].mean())} for g in groups]


def slices(metric: str, table: pa.Table, score: Floats, label: Floats, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The metric within each value of each slice column that has enough rows, and both classes."""
    found = []
    for column in columns:
        values = np.array([str(value) for value in table.column(column).to_pylist()])
        for value in np.unique(values):
            rows = values == value
            if rows.sum() >= _MIN_SLICE_ROWS and len(np.unique(label[rows])) > 1:
                found.append(
                    {
                        "column": column,
                        "value": str(value),
                        "rows": int(rows.sum()),
                        metric: compute_metric(metric, score[rows], label[rows]),
                    }
                )
    return found


def importances(
    metric: str,
    predict: Callable[[pa.Table], Floats],
    table: pa.Table,
    label: Floats,
    *,
    columns: Sequence[str],
    rows: int,
    seed: int,
) -> list[dict[str, Any]]:
    """How much worse the metric becomes when one column is shuffled, on at most `rows` rows; largest first."""
    draw = np.random.default_rng(seed)
    sample = np.sort(draw.permutation(table.num_rows)[:rows])
    table, label = table.take(sample), label[sample]
    order = pa.array(draw.permutation(len(sample)))

    def compute_loss(rows: pa.Table) -> float:
        return to_loss(metric, compute_metric(metric, predict(rows), label))

    base, losses = compute_loss(table), []
    for name in columns:
        shuffled = table.set_column(table.column_names.index(name), name, table.column(name).take(order))
        losses.append({"feature": name, "loss": compute_loss(shuffled) - base})
    return sorted(losses, key=lambda entry: -entry["loss"])


def draw_training_report(
    folder: Path, report: TrainingReport, *, title: str, metric: str, curves: Mapping[str, Sequence[float | None]]
) -> None:
    """Write calibration.png, slices.png, importances.png and curves.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    largest = sorted(report.slices, key=lambda s: -s["rows"])[:_SHOWN_SLICES]
    shown = [s for s in report.slices if s in largest]
    with rc_context(_AS_WRITTEN):
        figures = {
            "calibration": _calibration(report.calibration),
            "slices": _bars([(_shorten(s), s[metric]) for s in shown], metric),
            "importances": _bars(
                [(e["feature"], e["loss"]) for e in report.importances[:_SHOWN]], f"{metric} lost when shuffled"
            ),
            "curves": _curves(curves),
        }
        for name, figure in figures.items():
            figure.suptitle(f"{title}: {name}", fontsize=10)
            figure.savefig(folder / f"{name}.png", dpi=110)


def _shorten(entry: Mapping[str, Any]) -> str:
    value = " ".join(entry["value"].split())
    value = value if len(value) <= _LABEL_CHARACTERS else value[: _LABEL_CHARACTERS - 3] + "..."
    return f"{entry['column']} = {value}  ({entry['rows']:,} rows)"


def _figure(height: float = 4.0) -> tuple[Figure, Any]:
    """A figure and its axes."""
    figure = Figure(figsize=(7, height), layout="constrained")
    return figure, figure.subplots()


def _calibration(groups: Sequence[Mapping[str, float]]) -> Figure:
    figure, axes = _figure()
    score, label = [g["score"] for g in groups], [g["label"] for g in groups]
    ends = [min(score + label), max(score + label)]
    axes.plot(ends, ends, color="0.7", linestyle="--", label="ideal")
    axes.plot(score, label, marker="o", label="groups of equally many rows")
    axes.set(xlabel="mean prediction", ylabel="mean outcome")
    axes.legend(frameon=False)
    return figure


def _bars(bars: Sequence[tuple[str, float]], label: str) -> Figure:
    """A bar each, by its place: two long names may be short alike."""
    figure, axes = _figure(height=1.2 + 0.24 * max(len(bars), 1))
    axes.barh(range(len(bars)), [value for _, value in bars], color="tab:blue")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return figure


def _curves(curves: Mapping[str, Sequence[float | None]]) -> Figure:
    figure, axes = _figure()
    for name, values in curves.items():
        points = [np.nan if value is None else value for value in values]
        axes.plot(range(1, len(points) + 1), points, marker=".", label=name)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False, fontsize=8)
    return figure
