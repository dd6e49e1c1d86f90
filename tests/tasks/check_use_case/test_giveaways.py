"""What is known in time and gives the target away is named, alone or by twos; what is merely good, or a key, is not."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features import FeatureSet
from features.vocabulary import local_time_sql
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.check_use_case.giveaway_check import check_giveaways
from tasks.check_use_case.mistakes import Mistake
from tasks.check_use_case.sample_check import check_sample
from tests.tasks.check_use_case.test_declared import assert_named
from tests.tasks.check_use_case.test_params import change
from tests.tasks.check_use_case.test_sample import FILE, FLIGHTS, USE_CASE, label, make_sample

TAXI = use_cases(REPOSITORY / "params.yaml")["taxi"]
ROWS = 8_000
SPLIT = datetime(2013, 2, 4, tzinfo=UTC)
ANY = np.random.default_rng(0)
LATE = (ANY.random(ROWS) < 0.2).astype(float)
MINUTES = ANY.lognormal(2.5, 0.7, ROWS)
SMALL = round(0.02 * float(np.abs(MINUTES - np.median(MINUTES)).mean()), 2)  # as `make new-use-case` sets the alarm
UNIFORM = ANY.random(ROWS) * 1000
PARITY = ANY.integers(0, 2, ROWS)


def find(
    target: Any, use_case: UseCase = USE_CASE, definition: FeatureSet | None = None, **columns: Any
) -> list[Mistake]:
    """Points of two weeks with these features: texts are categories. None of them has a history."""
    texts = [name for name, values in columns.items() if isinstance(next(v for v in values if v is not None), str)]
    told = replace(
        FLIGHTS,
        numeric_sql={name: "distance_km" for name in columns if name not in texts},
        categorical_sql=dict.fromkeys(texts, "origin"),
    )
    moments = [SPLIT + timedelta(days=7) * (2 * number / ROWS - 1) for number in range(ROWS)]
    table = pa.table(
        {
            "entity_key": [str(number) for number in range(ROWS)],
            "prediction_time": pa.array(moments, pa.timestamp("us", "UTC")),
            "label_last": target,
            **{name: pa.array(values, from_pandas=True) for name, values in columns.items()},
        }
    )
    return list(check_giveaways(use_case, definition or told, table, SPLIT))


def spell(values: Sequence[Any], word: str = "v") -> list[str]:
    return [f"{word}{value}" for value in values]


GIVEAWAYS = {
    "a number beside the label": LATE * 10 + ANY.random(ROWS),
    "a number that is high for most": LATE * 1.6 + ANY.normal(size=ROWS),
    "a number that is there where the label is": np.where(LATE == 1, UNIFORM, np.nan),
    "a flag": LATE,
    "a code of the outcome among many": spell(2 * ANY.integers(0, 40, ROWS) + LATE.astype(int)),
    "a text that is there where the label is": [f"r{n % 3}" if late else None for n, late in enumerate(LATE)],
}
HARMLESS = {
    "a good number": LATE + ANY.normal(size=ROWS),
    "a good category": spell((LATE / 2 + ANY.normal(size=ROWS)).round()),
    "a number of the row, counting up": np.arange(ROWS, dtype=float),
    "a number of the row, in no order": ANY.permutation(ROWS).astype(float),
    "a name of the row": spell(range(ROWS)),
    "a key of many rows": spell(ANY.integers(0, 900, ROWS)),
    "always the same": np.ones(ROWS),
    "never there": np.full(ROWS, np.nan),
}


@pytest.mark.parametrize("what", GIVEAWAYS)
def test_a_feature_that_alone_gives_the_target_away_is_named(what: str) -> None:
    findings = find(LATE, x=GIVEAWAYS[what])
    assert len(findings) == 1
    assert_named(findings, FILE, "x", "alone it gives the target away: learnt from one partition", "no such feature")
    assert "a model above 0.82 is refused as too good to be true (gate.leak_alarm)" in findings[0].found
    assert "120 minutes before the event, another gate.leak_alarm" in findings[0].set_to


@pytest.mark.parametrize("what", HARMLESS)
def test_a_feature_that_is_merely_good_or_a_key_is_not_named(what: str) -> None:
    assert find(LATE, x=HARMLESS[what]) == []


def test_no_two_of_what_is_harmless_alone_are_named() -> None:
    assert find(LATE, **{f"x{number}": values for number, values in enumerate(HARMLESS.values())}) == []


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (spell(PARITY), spell(PARITY ^ LATE.astype(int), "w")),
        (UNIFORM, UNIFORM + (2 * LATE - 1) * ANY.random(ROWS)),
        (spell(PARITY), np.where(PARITY == 1, LATE, 1 - LATE) + ANY.random(ROWS) / 2),
    ],
    ids=["two texts", "the difference of two numbers", "a text and a number"],
)
def test_two_features_that_together_give_the_target_away_are_named(x: Any, y: Any) -> None:
    assert find(LATE, x=x) == find(LATE, y=y) == []
    [found] = find(LATE, x=x, y=y, z=ANY.random(ROWS))
    assert {found.key, *found.found.split("'")[1:2]} == {"x", "y"}
    assert "it gives the target away" in found.found


def test_how_others_ended_is_looked_at_alone_and_not_with_others() -> None:
    """A window holds what was known before: of many features most are windows, and of their pairs nothing is asked."""
    difference = {"x": UNIFORM, "y": UNIFORM + (2 * LATE - 1) * ANY.random(ROWS)}
    history = replace(FLIGHTS, numeric_sql={"x": "distance_km", "y": "route_arrived_30d"}, categorical_sql={})
    assert find(LATE, definition=history, **difference) == []
    assert len(find(LATE, definition=history, x=UNIFORM, y=LATE)) == 1


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"x": 2 * MINUTES + 5}, True),
        ({"x": MINUTES + ANY.normal(size=ROWS) / 20}, True),
        ({"x": UNIFORM, "y": UNIFORM + MINUTES}, True),
        ({"x": MINUTES + 8 * ANY.normal(size=ROWS)}, False),
        ({"x": np.arange(ROWS, dtype=float), "y": spell(range(ROWS))}, False),
    ],
    ids=["twice as much", "nearly the same", "a difference", "a good one", "names of rows"],
)
def test_of_a_number_the_alarm_is_its_own_error(columns: Any, *, named: bool) -> None:
    alarm = change(TAXI, {"gate.leak_alarm": {"metric": "mae", "below": SMALL}})
    findings = find(MINUTES, alarm, **columns)
    assert len(findings) == named
    for found in findings:
        assert f"a model below {SMALL} is refused as too good to be true" in found.found


def test_what_is_told_of_one_partition_and_not_of_the_other_is_not_enough() -> None:
    codes = spell(2 * ANY.integers(0, 40, ROWS) + LATE.astype(int))
    few = spell(LATE.astype(int))
    assert find(LATE, x=[*codes[: ROWS // 2], *few[ROWS // 2 :]]) == []
    assert len(find(LATE, x=codes)) == len(find(LATE, x=few)) == 1


def test_an_alarm_that_a_constant_passes_is_named_instead() -> None:
    blind = change(USE_CASE, {"gate.leak_alarm": {"metric": "calibration_gap", "below": 0.05}})
    [found] = find(LATE, blind, x=LATE)
    assert (found.file, found.key) == ("params.yaml", "gate.leak_alarm")
    assert "calibration_gap below 0.05: always saying the mean of the labels comes to 0.0" in found.found


def test_a_handful_of_labels_tells_nothing() -> None:
    few = np.zeros(ROWS)
    few[::1000] = 1
    assert find(few, x=few) == []
    few[::100] = 1
    assert len(find(few, x=few)) == 1


def test_on_real_rows_a_column_that_decides_is_named_and_so_are_two() -> None:
    decided = label("cast(dest < 'L' as bigint)")
    findings = list(check_sample(USE_CASE, decided, make_sample(decided)))
    assert_named(findings, FILE, "dest", "alone it gives the target away", "no such feature")
    day = f"dayname({local_time_sql('tzone', 'scheduled_departure')}) < 'T'"
    by_two = label(f"cast(({day}) = (origin = 'EWR') as bigint)")
    findings = list(check_sample(USE_CASE, by_two, make_sample(by_two)))
    assert any("with 'weekday' it gives the target away" in found.found for found in findings), findings
    assert not any("alone" in found.found for found in findings), findings
