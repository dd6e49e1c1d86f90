"""The gate's picture is drawn whatever a slice is called: a verdict is not lost to it."""

import io
from dataclasses import replace

import numpy as np
import pytest

from tasks.promote.gate_plot import draw_judgement
from tests.tasks.promote.test_gate import World, judge


@pytest.mark.parametrize("rows", [11_200, 200], ids=["compared", "too few rows to compare"])
def test_a_verdict_about_values_with_signs_of_formulas_is_drawn(rows: int) -> None:
    world = World(1).first(rows)
    names = np.array(["$$", "$x^{$", "\\frac{"])[np.arange(rows) % 3]
    world.rows = replace(world.rows, slices={**world.rows.slices, "carrier": names})
    found = judge(world, world.model("2"), world.model("1", stale=0.6))
    found = replace(found, reasons=[*found.reasons, "carrier = $$ is worse by $x^{$"])
    drawn = io.BytesIO()
    draw_judgement(found, "What costs $$ and $", drawn)
    assert drawn.getvalue().startswith(b"\x89PNG")
