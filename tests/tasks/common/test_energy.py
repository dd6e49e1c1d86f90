"""Energy is what the counters moved by, or nothing."""

from pathlib import Path

import pytest

from models.training import TrainingProgress
from tasks.common.energy import Meter
from tasks.train.study import Claim
from tasks.train.trials import Running


def count(folder: Path, name: str, microjoules: int) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("10000000\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        count(tmp_path, name, 1_000_000)
    meter = Meter("cpu", tmp_path)
    count(tmp_path, "intel-rapl:0", 3_500_000)
    count(tmp_path, "intel-rapl:1", 2_000_000)
    count(tmp_path, "intel-rapl:0:0", 9_000_000)
    assert meter.joules() == 3.5


def test_a_counter_that_went_round_goes_on(tmp_path: Path) -> None:
    count(tmp_path, "intel-rapl:0", 9_000_000)
    meter = Meter("cpu", tmp_path)
    count(tmp_path, "intel-rapl:0", 500_000)
    assert meter.joules() == 1.5


def test_without_counters_there_is_no_figure(tmp_path: Path) -> None:
    assert Meter("cpu", tmp_path).joules() is None
    assert Meter("cpu", tmp_path / "none").joules() is None


def test_a_card_is_not_charged_what_the_processor_took(tmp_path: Path) -> None:
    count(tmp_path, "intel-rapl:0", 1_000_000)
    meters = Meter("cpu", tmp_path), Meter("cuda", tmp_path)
    count(tmp_path, "intel-rapl:0", 3_000_000)
    assert [meter.joules() for meter in meters] == [2.0, None]


@pytest.mark.parametrize(("epochs", "expected"), [([2.0, 3.0], 5.0), ([2.0, None, 3.0], None), ([0.0], 0.0)])
def test_a_trial_has_the_energy_of_its_epochs_or_none(epochs: list[float | None], expected: float | None) -> None:
    claim = Claim(worker=0, tick=0, place=0)
    one = Running(claim=claim, trial=None, member=None, progress=TrainingProgress())  # type: ignore[arg-type]  # not asked
    for joules in epochs:
        one.charge(1.0, joules)
    assert one.attempt(pruned=True).energy_joules == expected
    assert one.attempt(pruned=True).seconds == len(epochs)
