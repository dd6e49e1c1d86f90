"""What counts against a version: neither what the client nor what the gateway ended, and late only what is timed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from adapters.gateway import GatewayRecord
from tasks.deploy.batch_scores import NO_SCORES
from tasks.deploy.canary import tally_traffic
from tasks.deploy.watch import choose_recent
from tests.tasks.server_room import RULES

AT = datetime(2026, 1, 1, tzinfo=UTC)
WELL = GatewayRecord(request_id="r", use_case="flights", client="test", slot="stable", version="2", status=200,
              milliseconds=5.0, at=AT)  # fmt: skip


def many(count: int, **changes: object) -> list[GatewayRecord]:
    return [replace(WELL, request_id=f"r{n}-{changes}", at=AT + timedelta(seconds=n), **changes) for n in range(count)]


@pytest.mark.parametrize("cause", ["client", "overload"])
@pytest.mark.parametrize("status", [-1, 503])
def test_who_went_away_or_was_turned_away_says_nothing_about_the_version(cause, status):
    records = [*many(20), *many(20, status=status, cause=cause, milliseconds=9000.0)]
    seen = tally_traffic(records, NO_SCORES, max_ms=250)
    assert (seen.requests, seen.errors, seen.timed, seen.slow) == (20, 0, 20, 0)
    judged = choose_recent(records, "2", AT, RULES)
    assert len(judged) == 20
    assert tally_traffic(many(20, status=status), NO_SCORES, max_ms=250).errors == 20, "without a cause it does"


@pytest.mark.parametrize("change", [{"verb": "explain"}, {"is_list": True}, {"retries": 1}])
def test_only_single_predictions_answered_at_once_are_timed(change):
    records = [*many(20), *many(20, milliseconds=9000.0, **change)]
    seen = tally_traffic(records, NO_SCORES, max_ms=250, forgiving=True)
    assert (seen.requests, seen.errors, seen.timed, seen.slow, seen.p99_ms) == (40, 0, 20, 0, 5.0)
    slow = tally_traffic(many(20, milliseconds=9000.0), NO_SCORES, max_ms=250)
    assert (slow.timed, slow.slow) == (20, 20)
