"""Numbers that are derived from a table contradict each other nowhere, however long, full or late it is."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from infra.new_use_case.answers import QUESTIONS, Answers, add_questions, collect_answers
from infra.new_use_case.block import render_block
from infra.new_use_case.naming import name_all, name_table
from infra.new_use_case.plan import make_plan
from infra.new_use_case.profile import DayProfile, TableProfile, TargetProfile
from infra.new_use_case.suite_text import widen
from pipeline.spec import UseCase, parse_use_cases
from tasks.check_use_case.params_check import check_params

FIRST = date(2025, 1, 1)  # a Wednesday


def answer(kind: str = "binary", lead_minutes: int = 60, label_delay_hours: int = 48) -> Answers:
    return Answers(
        name="shop", table="orders", event_time="due_at", available_at="placed_at", key=("id",), target="late",
        kind=kind, lead_minutes=lead_minutes, label_delay_hours=label_delay_hours,
    )  # fmt: skip


def profile(counts: Sequence[int], target: TargetProfile | None = None) -> TableProfile:
    days = [FIRST + timedelta(days=number) for number in range(len(counts))]
    return TableProfile(
        name="orders",
        relation="orders",
        rows=sum(counts),
        columns=(),
        days=tuple(
            DayProfile(
                day=day, rows=rows, latest=datetime(day.year, day.month, day.day, 23, 30, tzinfo=UTC) if rows else None,
                points=rows, labelled=rows,
            ) for day, rows in zip(days, counts, strict=True)
        ),
        target=target or TargetProfile(rows=sum(counts), mean=0.2, median=0.0, distance=0.2),
        asked_share=1.0,
        known_days=3.0,
        outcome_days=5.0,
        label_hours=0.0,
    )  # fmt: skip


def render(counts: Sequence[int], answers: Answers, today: date, target: TargetProfile | None = None) -> str:
    table = profile(counts, target)
    plan = make_plan(table, answers, today)
    return render_block(
        answers, table, plan, key=("id",), known="placed_at", slices=("channel",), structural=("channel",), features=20
    )


def derive(counts: Sequence[int], answers: Answers, today: date, target: TargetProfile | None = None) -> UseCase:
    return parse_use_cases(render(counts, answers, today, target), origin="a block")["shop"]


@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize("days", [170, 365, 1200])
@pytest.mark.parametrize("rows", [150, 5_000, 40_000])
@pytest.mark.parametrize(("lead", "delay"), [(0, 1), (60, 48), (10_080, 24), (1_440, 336)])
def test_a_derived_block_contradicts_itself_nowhere(kind: str, days: int, rows: int, lead: int, delay: int) -> None:
    answers = answer(kind, lead, delay)
    for today in (FIRST + timedelta(days=days), FIRST + timedelta(days=days + 900)):
        use_case = derive([rows] * days, answers, today)
        assert list(check_params(use_case, today)) == []
        assert use_case.source.partition_days == (1 if rows >= 20_000 else 7)
        assert (use_case.source.last_partition is None) == (today == FIRST + timedelta(days=days))


@pytest.mark.parametrize("rows", [150, 40_000])
def test_labels_that_take_a_month_are_waited_for_and_validation_is_no_longer_for_it(rows: int) -> None:
    today = FIRST + timedelta(days=500)
    use_case = derive([rows] * 500, answer(label_delay_hours=720), today)
    assert list(check_params(use_case, today)) == []
    assert use_case.train.validation_days == derive([rows] * 500, answer(), today).train.validation_days


def test_a_week_begins_on_a_monday_and_a_table_that_filled_up_slowly_begins_when_it_is_full() -> None:
    today = FIRST + timedelta(days=220)
    assert derive([500] * 220, answer(), today).source.first_partition == date(2025, 1, 6)
    assert derive([1] * 60 + [500] * 160, answer(), today).source.first_partition == date(2025, 3, 3)


@pytest.mark.parametrize(
    ("counts", "left_out"),
    [
        ([0] * 5 + [500] * 215, "0 of 107,500"),  # from the first Monday on
        ([500] * 220, "2,500 of 110,000"),
        ([1] * 60 + [500] * 160, "560 of 80,060"),
    ],
)
def test_the_block_says_how_many_rows_became_known_before_the_use_case_begins(counts: list[int], left_out: str) -> None:
    written = render(counts, answer(), FIRST + timedelta(days=220))
    [line] = [line for line in written.splitlines() if line.strip().startswith("first_partition:")]
    assert line.endswith(f"rows that became known before are left out: {left_out}")


def test_a_week_without_rows_is_exempt_and_the_others_keep_their_limit() -> None:
    counts = [500] * 220
    counts[5 + 28 : 5 + 35] = [0] * 7
    [table] = derive(counts, answer(), FIRST + timedelta(days=220)).source.tables.values()
    assert table.exempt == (date(2025, 2, 3),)
    assert table.min_rows > 1000


@pytest.mark.parametrize(
    ("counts", "answers", "message"),
    [
        ([500] * 40, answer(), "has 35 days in whole partitions, and a training needs"),
        ([500] * 120, answer(label_delay_hours=900), "a training needs"),
        ([60] * 200, answer(), "has 420 rows to predict, expected 600, .* set fewer, or, as --table,"),
    ],
)
def test_a_table_that_is_too_short_or_too_empty_is_refused(counts: list[int], answers: Answers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        derive(counts, answers, FIRST + timedelta(days=len(counts)))


def test_all_that_stands_against_the_rows_is_told_at_once() -> None:
    late = replace(profile([60] * 40), asked_share=0.2, label_hours=50.5)
    with pytest.raises(ValueError, match="--available-at") as caught:
        make_plan(late, answer(), FIRST + timedelta(days=40))
    share, delay, days = str(caught.value).splitlines()
    assert share.startswith("--available-at, --lead-minutes: 20% of the rows of orders became known (placed_at)")
    assert delay.startswith("--label-delay-hours: 48, and 99% of the targets are known only 50.5 hours after")
    assert days.startswith("orders has 35 days in whole partitions, and a training needs")
    fits = replace(profile([600] * 200), asked_share=0.9, label_hours=47.0)
    assert make_plan(fits, answer(), FIRST + timedelta(days=200)).days == 189


def test_a_target_that_is_always_the_same_is_refused() -> None:
    always = TargetProfile(rows=9, mean=1.0, median=1.0, distance=0.0)
    with pytest.raises(ValueError, match="late is 1 in practically every row"):
        derive([500] * 200, answer(), FIRST + timedelta(days=200), always)


def test_on_a_terminal_what_was_not_given_is_asked_in_order_and_the_table_is_shown() -> None:
    parser, asked, shown = argparse.ArgumentParser(), list[str](), list[str]()
    parser.add_argument("name")
    add_questions(parser)
    said = {"table": "orders", "key": "id, line", "lead_minutes": "60", "label_delay_hours": "48", "kind": "binary"}

    def ask(question: str) -> str:
        asked.append(question.partition(":")[0])
        return said.get(asked[-1], "a_column")

    def show(table: str) -> str:
        shown.append(table)
        return "its columns"

    found = collect_answers(parser.parse_args(["shop", "--target", "late"]), ask, show)
    assert asked == [name for name in QUESTIONS if name != "target"]
    assert shown == ["orders"]
    assert (found.key, found.target, found.lead_minutes) == (("id", "line"), "late", 60)


def test_names_are_those_that_a_definition_can_write_each_once() -> None:
    names = name_all(["Order No.", "order_no", "select", "Größe", "1st", "known_at", "label"], ["known_at"])
    assert [*names.values()] == ["order_no", "order_no_2", "select_", "gr_e", "c_1st", "known_at", "label_"]
    assert [name_table(name) for name in ("Order Lines", "order", "labels")] == [
        "order_lines",
        "order_rows",
        "labels_rows",
    ]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (5.03, 99.99), (-12.5, 3), (1e6, 1e6), (8.7e-05, 0.5), (-2e9, -1e9)])
def test_bounds_have_room_and_do_not_fall_below_0_where_nothing_did(low: float, high: float) -> None:
    wide_low, wide_high = widen(low, high)
    assert wide_low <= low <= high < wide_high
    assert (wide_low < 0) == (low < 0)
