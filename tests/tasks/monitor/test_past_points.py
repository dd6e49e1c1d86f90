"""What a partition is held against: earlier ones that nobody blocked, and whatever the champion was trained on."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.spec import UseCase
from tasks.monitor.observed import Action, OtherDecision
from tasks.monitor.past_points import PastPoints
from tests.tasks.watched import points, week

HEALTHY, BLOCKED = range(12), range(12, 14)


def stuck(number: int) -> pa.Table:
    table = points(week(number), seed=number)
    return table.set_column(table.column_names.index("x3"), "x3", pa.array(np.full(table.num_rows, 0.5)))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.concat_tables([*(points(week(n), seed=n) for n in HEALTHY), *map(stuck, BLOCKED)])


HISTORY = [
    OtherDecision(as_of=week(n).end, network_version="1", decision=Action.BLOCK, breached=frozenset()) for n in BLOCKED
]


def past(table: pa.Table, learnt: int) -> PastPoints:
    """Of a champion whose newest row is the last one of a week, as profiles have it."""
    newest = points(week(learnt), seed=learnt)["prediction_time"][-1].as_py()
    return PastPoints(table=table, begin=week(0).start, learnt_until=newest)


def test_a_blocked_partition_is_no_past_until_somebody_trains_on_it(use_case: UseCase, table: pa.Table) -> None:
    before = past(table, learnt=11).find_faults(use_case, week(14), stuck(14), HISTORY)
    assert [fault.feature for fault in before] == ["x3"]
    assert past(table, learnt=13).find_faults(use_case, week(14), stuck(14), HISTORY) == []
    taken = past(table, learnt=11).find_faults(use_case, week(14), stuck(14), [])
    assert taken == [], "nobody blocked them"


def test_a_partition_that_came_late_is_held_against_those_before_it_alone(use_case: UseCase, table: pa.Table) -> None:
    late = past(table, learnt=13).find_faults(use_case, week(12), stuck(12), [])
    assert [fault.feature for fault in late] == ["x3"]


def test_the_training_window_ends_with_the_newest_row_that_was_learnt(table: pa.Table) -> None:
    newest = table["prediction_time"][-1].as_py()
    assert PastPoints(table=table, begin=week(0).start, learnt_until=newest).training_window().num_rows == len(table)
    first = table["prediction_time"][0].as_py()
    assert PastPoints(table=table, begin=week(0).start, learnt_until=first).training_window().num_rows == 1


def test_without_a_past_nobody_can_tell(use_case: UseCase, table: pa.Table) -> None:
    assert past(table.slice(0, 0), learnt=9).find_faults(use_case, week(14), stuck(14), []) is None
    assert past(table, learnt=9).find_faults(use_case, week(0), stuck(0), []) is None
