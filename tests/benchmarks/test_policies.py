"""The tables of policies in the benchmarks' page are those of the results that it names."""

import json
import re

import pytest

from benchmarks.policies import Played, render, summarise
from pipeline.settings import REPOSITORY

PAGE = (REPOSITORY / "benchmarks/README.md").read_text()
NAMED = sorted(set(re.findall(r"\]\((results/policies-[a-z_]+-\d{8}T\d{6}\.json)\)", PAGE)))


@pytest.mark.parametrize("result", NAMED)
def test_a_table_of_the_page_is_that_of_its_result(result: str) -> None:
    for lines in json.loads((REPOSITORY / "benchmarks" / result).read_text())["tables"].values():
        assert render(lines) in PAGE


def _played(policy: str, *, gain: float, trainings: int, worse: int) -> Played:
    return Played(
        policy=policy, start=0, gain=gain, trainings=trainings, reference_trainings=10, regret=(1.0, gain, 3.0),
        promotions=4, surely_worse=worse,
    )  # fmt: skip


def test_a_line_is_a_policy_over_its_starts() -> None:
    played = [_played("a", gain=0.5, trainings=2, worse=1), _played("a", gain=1.0, trainings=4, worse=0)]
    [line, other] = summarise([*played, _played("b", gain=0.0, trainings=0, worse=0)])
    assert line == {
        "policy": "a", "gain": [0.75, 0.5, 1.0], "trainings": 0.3, "regret": [1.0, 0.75, 3.0], "promotions": 8,
        "surely_worse": 1,
    }  # fmt: skip
    assert render([line, other]).splitlines()[2] == "| a | 0.75 [0.50, 1.00] | 0.30 | 1 | 0.75 | 3 | 1 of 8 |"
