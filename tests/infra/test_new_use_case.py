"""A table of many types becomes a use case by two commands and one file of answers; nothing is ever overwritten."""

import argparse
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from adapters.connect import Outside
from features.engine import moment_sql
from features.expressions import compile_expressions
from infra.new_use_case.__main__ import render_use_case
from infra.new_use_case.answers import add_questions, collect_answers
from infra.new_use_case.column_checks import find_column_mistakes
from tests.infra.new_use_case_world import ANSWERS, HOURS, LINES, ORDERS, PHONED, Copy, make_copy
from tests.tasks.killed import environment

WRITTEN = ("features/shop.py", "expectations/shop.py", "tests/use_cases/test_shop.py")
_OF_A_CLOCK = ("event_hour", "event_weekday")


@pytest.fixture
def table(outside: Outside) -> None:
    with outside.source.transaction() as at:
        at.execute(ORDERS)


@pytest.fixture
def copy(outside: Outside, table: None, tmp_path: Path) -> Copy:
    (tmp_path / "copy").mkdir()
    return make_copy(tmp_path / "copy", environment(outside.settings))


def test_what_is_missing_is_named_all_at_once_and_nothing_is_written(copy: Copy) -> None:
    before = copy.read_all()
    done = copy.run("-m", "infra.new_use_case", "shop", "--table", "orders", "--key", "order_id")
    assert done.returncode == 2
    missing = re.findall(r"^  --([a-z-]+): ", done.stderr, flags=re.MULTILINE)
    assert missing == ["event-time", "available-at", "target", "kind", "lead-minutes", "label-delay-hours"]
    assert copy.read_all() == before


def test_a_table_becomes_a_use_case_that_check_use_case_has_nothing_against(copy: Copy) -> None:
    done = copy.write_use_case("shop", ANSWERS)
    assert done.returncode == 0, done.stderr
    ruff = str(Path(sys.executable).parent / "ruff")
    for verb in (["check"], ["format", "--check"]):
        said = copy.run("-c", f"import subprocess; raise SystemExit(subprocess.call({[ruff, *verb, *WRITTEN]!r}))")
        assert said.returncode == 0, said.stdout + said.stderr

    definition = (copy.root / WRITTEN[0]).read_text()
    comment = definition[definition.index("# A point") : definition.index("_POINT = ")]
    left_out = " ".join(line.removeprefix("# ") for line in comment.splitlines())
    assert "Left out are placed_at, settled_at, is_late (which say when something became known" in left_out
    assert "hours_late (which seem to be filled in with the outcome)" in left_out

    blank = copy.check("shop")
    assert blank.returncode == 1
    named = re.findall(r"^features/shop.py:(\d+)  (\w+): .* is yet to be done", blank.stdout, flags=re.MULTILINE)
    assert [word for _, word in named] == ["columns", "labels", "costs"]
    assert blank.stdout.splitlines()[-1].startswith("shop: 3 to be changed")
    generated = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/use_cases/test_shop.py")
    assert "FAILED tests/use_cases/test_shop.py::test_nothing_is_left_blank" in copy.run(*generated).stdout

    copy.fill_blanks("shop")
    checked = copy.check("shop")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.splitlines()[-1].startswith("shop: nothing stands against a backfill")
    passed = copy.run(*generated)
    assert passed.returncode == 0, passed.stdout

    before = copy.read_all()
    again = copy.write_use_case("shop", ANSWERS)
    assert again.stdout == "shop: all of it is there, and nothing was changed\n"
    assert copy.read_all() == before

    (copy.root / WRITTEN[2]).unlink()
    mended = copy.write_use_case("shop", ANSWERS)
    assert next(line for line in mended.stdout.splitlines() if "stays" not in line) == f"{WRITTEN[2]}: written"
    assert copy.read_all() == before


def test_each_blank_that_is_left_is_named_alone_with_its_line(copy: Copy) -> None:
    nobody = "".join(line for line in ANSWERS.splitlines(keepends=True) if not line.startswith(("owner:", "meaning:")))
    assert copy.write_use_case("shop", nobody).returncode == 0
    blanks = copy.read_blanks("shop")
    assert [blank.partition(":")[0] for blank in blanks] == ["columns", "labels", "costs", "words"]
    for blank in blanks:
        copy.write_blanks("shop", [blank])
        checked = copy.check("shop")
        lines = (copy.root / "features" / "shop.py").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, start=1) if blank in text)
        named, last = checked.stdout.splitlines()
        assert named.startswith(f"features/shop.py:{line}  {blank}: is yet to be done. Set: what it says")
        assert last.startswith("shop: 1 to be changed")


def test_a_number_of_a_view_with_names_of_any_characters_is_a_target_too(copy: Copy, outside: Outside) -> None:
    with outside.source.transaction() as at:
        at.execute(LINES)
    done = copy.write_use_case("hours", HOURS)
    assert done.returncode == 0, done.stderr
    block = yaml.safe_load((copy.root / "params.yaml").read_text())["hours"]
    assert block["source"]["tables"]["order_lines"]["relation"] == 'sales."Order Lines"'
    assert 'source="Hours % late"' in (copy.root / "expectations" / "hours.py").read_text()
    copy.fill_blanks("hours")
    checked = copy.check("hours")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_an_event_that_is_known_as_it_happens_and_a_text_that_counts_make_a_use_case(copy: Copy) -> None:
    done = copy.write_use_case("phoned", PHONED)
    assert done.returncode == 0, done.stderr
    copy.fill_blanks("phoned")
    checked = copy.check("phoned")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("table: orders", "table: order"), "--table: the source has no table order"),
        (("event_time: due_at", "event_time: due"), "--event-time: orders has no column 'due'; it has order_id,"),
        (("event_time: due_at", "event_time: note"), "--event-time: expected a timestamp or date, note is text"),
        (("zone: Europe/Warsaw", ""), "--zone: settled_at have no time zone"),
        (("kind: binary", "kind: both"), "--kind: expected binary or regression, got 'both'"),
        (("kind: binary", "kind: multiclass"), "--kind: several classes are not built"),
        (("lead_minutes: 60", "lead_minutes: soon"), "--lead-minutes: expected a whole number, 0 or more, got 'soon'"),
        (("lead_minutes: 60", "lead_minutes: 9000"), "--available-at, --lead-minutes: 0% of the rows of orders"),
        (("label_delay_hours: 48", "label_delay_hours: 5"), "--label-delay-hours: 5, and 99% of the targets are known"),
        (
            ("label_delay_hours: 48", "label_delay_hours: 900"),
            "orders has 112 days in whole partitions",
        ),
        (
            ("target: is_late", "target: channel"),
            "--positive: channel is text: say which value counts as 1, of these, with their rows: 'web' (",
        ),
        (
            ("target: is_late", "target: channel\npositive: fax"),
            "--positive: channel is 'fax' in no row of orders; its values, with their rows: 'web' (",
        ),
        (
            ("target: is_late", "target: is_late\npositive: yes"),
            "--positive: is_late is boolean, and only of a text one value counts as 1: leave it out",
        ),
        (("target: is_late", "target: nothing"), "--target: orders has no column 'nothing'"),
        (("zone: Europe/Warsaw", "zone: Warsaw"), "--zone: expected one such as Europe/Paris, got 'Warsaw'"),
        (("table: orders", "table: my orders"), "--table: expected a name as in SQL: a table or schema.table"),
        (
            ("lead_minutes: 60\nlabel_delay_hours: 48", "lead_minutes: 0\nlabel_delay_hours: 0"),
            "--label-delay-hours: 0, and so is --lead-minutes",
        ),
        (("target: is_late", "target: amount"), "--kind: amount has other values than 0 and 1"),
        (("target: is_late", "target: tags"), "--target: tags is of a type that is left out"),
        (("key: [order_id]", "key: [note]"), "--key: note has no value in"),
        (("kind: binary", "kinds: binary"), "expected table, event_time,"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
@pytest.mark.usefixtures("table")
def test_an_answer_that_does_not_fit_is_named(
    outside: Outside, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in ANSWERS
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        render(outside, tmp_path, ANSWERS.replace(*change))
    assert "\n--" not in str(caught.value), "what follows from one answer is no mistake of another"


@pytest.mark.usefixtures("table")
def test_the_answers_as_they_are_fit(outside: Outside, tmp_path: Path) -> None:
    assert {*render(outside, tmp_path, ANSWERS)} == {"block", "suites", "definition"}


WRONG = """
table: orders
event_time: due
available_at: note
key: [order_id, note]
target: channel
kind: binary
lead_minutes: soon
label_known_at: wanted_on
meanings: that it comes late
"""


def test_all_that_is_wrong_is_told_at_once(copy: Copy) -> None:
    before = copy.read_all()
    done = copy.write_use_case("engine", WRONG)
    told = done.stderr.splitlines()
    assert done.returncode == 2
    for line, start in zip(
        told,
        [
            "--answers: expected table, event_time,",
            "missing, as arguments or in a file that --answers names:",
            "  --label-delay-hours: after how many hours",
            "--lead-minutes: expected a whole number, 0 or more, got 'soon'",
            "NAME: features/engine.py is another module",
            "--event-time: orders has no column 'due'",
            "--available-at: expected a timestamp, note is text",
            "--key: note has no value in 12",
            "--label-known-at: expected a timestamp, wanted_on is date",
            "--positive: channel is text: say which value counts as 1, of these, with their rows: 'web' (",
            "--zone: settled_at have no time zone",
        ],
        strict=True,
    ):
        assert line.startswith(start)
    assert {**copy.read_all(), "answers.yaml": b""} == {**before, "answers.yaml": b""}


@pytest.mark.usefixtures("table")
def test_of_a_target_without_a_value_that_counts_the_most_frequent_are_listed_and_the_others_counted(
    outside: Outside, tmp_path: Path
) -> None:
    outside.source.execute("update orders set note = repeat('long ', 20) where order_id % 3 = 0")
    outside.source.execute("update orders set note = 'short' where order_id % 3 = 1")
    [counted] = outside.source.query("select count(distinct note) - 8 as others from orders")
    with pytest.raises(ValueError, match="--positive: note is text") as caught:
        render(outside, tmp_path, ANSWERS.replace("target: is_late", "target: note"))
    told = str(caught.value).partition(" rows: ")[2]
    assert told.startswith(f"'{'long ' * 8}...' (5,334), 'short' (5,333), 'call ")
    assert told.endswith(f" (1), and {counted['others']:,} others")
    assert told.count("), ") == 8


@pytest.mark.usefixtures("table")
def test_an_example_is_a_value_of_few_that_the_rows_have_and_never_of_many(outside: Outside, tmp_path: Path) -> None:
    outside.source.execute(
        "create view wares as select 'customer ' || customer_id as customer,"
        " 'ware ' || case when order_id % 2 = 0 then 7 else order_id % 40 end as ware, orders.* from orders"
    )
    texts = render(outside, tmp_path, ANSWERS.replace("table: orders", "table: wares"))
    examples = dict(re.findall(r'RequestField\(name="(\w+)", kind="varchar".*, example="([^"]*)"', texts["definition"]))
    assert {**examples, "country": ""} == {"customer": "a customer", "ware": "ware 7", "channel": "web", "country": ""}
    assert examples["country"] in ("DE", "FR", "PL", "ES")


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(("zone", "hour", "weekday"), [("Europe/Warsaw", 0, "Wednesday"), (None, 22, "Tuesday")])
def test_hours_and_weekdays_are_those_of_the_zone_that_was_answered_in_every_engine(
    outside: Outside, tmp_path: Path, zone: str | None, hour: int, weekday: str
) -> None:
    answers = ANSWERS
    if zone is None:
        outside.source.execute("create view sold as select order_id, placed_at, due_at, is_late, channel from orders")
        kept = (line for line in ANSWERS.splitlines() if not line.startswith(("zone:", "label_known_at:", "table:")))
        answers = "\n".join([*kept, "table: sold"])
    made: dict[str, Any] = {}
    exec(render(outside, tmp_path, answers)["definition"], made)  # noqa: S102  # as a person's module
    sql = {name: {**made["SHOP"].numeric_sql, **made["SHOP"].categorical_sql}[name] for name in _OF_A_CLOCK}
    moment = datetime(2025, 7, 1, 22, 30, tzinfo=UTC)
    batch = duckdb.sql(f"select {', '.join(sql.values())} from (select {moment_sql(moment)} as event_time)").fetchall()
    online = compile_expressions(sql, {"event_time": "timestamp"}).run({"event_time": int(moment.timestamp()) * 10**6})
    assert batch == [online] == [(hour, weekday)]


@pytest.mark.usefixtures("table")
def test_an_event_that_is_a_day_is_the_same_day_in_every_zone(outside: Outside, tmp_path: Path) -> None:
    later = ANSWERS.replace("label_delay_hours: 48", "label_delay_hours: 120")
    definition = render(outside, tmp_path, later.replace("event_time: due_at", "event_time: wanted_on"))["definition"]
    assert '"event_weekday": "dayname(event_time)"' in definition
    assert "_CLOCK" not in definition
    assert "event_hour" not in definition


def render(outside: Outside, folder: Path, answers: str) -> Mapping[str, str]:
    (folder / "answers.yaml").write_text(answers)
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    add_questions(parser)
    given = parser.parse_args(["shop", "--answers", str(folder / "answers.yaml")])
    answers = collect_answers(given, None, look=lambda known: find_column_mistakes(outside.source, known))
    return render_use_case(answers, outside.source, datetime.now(UTC))


def test_a_name_that_is_a_module_of_ours_is_refused(copy: Copy) -> None:
    done = copy.write_use_case("engine", ANSWERS)
    assert done.returncode == 2
    assert "features/engine.py is another module" in done.stderr


def test_the_block_stands_beside_the_shipped_ones_as_they_were(copy: Copy) -> None:
    shipped = (copy.root / "params.yaml").read_text()
    declared = read_stage(copy)
    assert copy.write_use_case("shop", ANSWERS).returncode == 0
    written = (copy.root / "params.yaml").read_text()
    assert written.startswith(shipped)
    block = yaml.safe_load(written)["shop"]
    assert block["source"]["first_partition"] == "2025-01-06"
    assert block["source"]["tables"]["orders"]["min_rows"] <= 500
    assert read_stage(copy) == [*declared, "shop"]


def read_stage(copy: Copy) -> list[str]:
    """The use cases whose features DVC builds."""
    found: list[str] = yaml.safe_load((copy.root / "dvc.yaml").read_text())["stages"]["features"]["foreach"]
    return found
