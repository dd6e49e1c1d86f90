"""A hand-off crosses XCom as JSON: what comes back equals what was sent, its enums included."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from pipeline.handoffs import Release, ReleaseOutcome, VerdictAnswer

RELEASE = Release(
    use_case="toy", outcome=ReleaseOutcome.HELD, champion_version="1", previous_version=None, revision=1,
    as_of=datetime(2013, 4, 1, tzinfo=UTC), actor="gate",
)  # fmt: skip


@pytest.mark.parametrize("outcome", list(ReleaseOutcome))
def test_an_outcome_is_stored_and_comes_back_as_its_text(outcome):
    sent = {**asdict(replace(RELEASE, outcome=outcome)), "as_of": None}
    back = json.loads(json.dumps(sent))
    assert back == sent
    assert (back["outcome"], f"{outcome}", type(back["outcome"])) == (outcome.value, outcome.value, str)
    assert ReleaseOutcome(back["outcome"]) is outcome


def test_the_stored_values_are_those_that_they_always_were():
    assert [answer.value for answer in VerdictAnswer] == ["promote", "hold", "refuse", "need-more-data"]
    assert [outcome.value for outcome in ReleaseOutcome] == [
        "promoted", "held", "refused", "need-more-data", "superseded", "rejected", "rolled-back", "recalibrated",
        "dry-run",
    ]  # fmt: skip
