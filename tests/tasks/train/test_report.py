"""The pictures of a training are drawn whatever its data are called: a finished training is not lost to one."""

from pathlib import Path

import pytest

from tasks.train.report import TrainingReport, draw_training_report

ODD = [
    "$$",
    "$",
    "$x^2$",
    "$\\frac{1}{",
    "cost in $ or in $$",
    "\\notacommand{",
    "a\nb\tc",
    "",
    "x" * 5000,
    "x" * 5000 + "y",
    "Zürich",
]


def report(values: list[str]) -> TrainingReport:
    return TrainingReport(
        calibration=[{"rows": 5, "score": 0.2, "label": 0.1}, {"rows": 5, "score": 0.6, "label": 0.7}],
        slices=[{"column": "zone", "value": value, "rows": 100 + i, "auc": 0.7} for i, value in enumerate(values)],
        importances=[{"feature": value or "x", "loss": 0.1} for value in ODD],
    )


@pytest.mark.parametrize("values", [ODD, [f"zone {i}" for i in range(5000)], []], ids=["odd", "many", "none"])
def test_pictures_are_drawn_of_any_values_and_any_number_of_them(tmp_path: Path, values: list[str]) -> None:
    title = "Who pays in $$ or in $, as of 2013-04-01"
    draw_training_report(tmp_path, report(values), title=title, metric="auc", curves={"$$": [0.5, None, 0.4]})
    pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(pictures) == {"calibration", "slices", "importances", "curves"}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
