"""A version that does badly goes back once, by itself; what no rollback mends calls a person until it is well."""

from datetime import timedelta

import pytest

from adapters.gateway import Route
from serving.lookup import NO_ANSWER
from tasks import deploy, deployments, watch
from tasks.server import STORE_SILENT
from tests.tasks.rollouts import actions, alerts, challenge, clients, go, last
from tests.tasks.server_room import Misbehaviour, Room, crown

TWO = Route("2", None, 0.0)


@pytest.fixture(autouse=True)
def no_overlap(monkeypatch) -> None:
    """The room's log is never late, and a look shall not see what the one before it saw."""
    monkeypatch.setattr(watch, "_OVERLAP", timedelta(0))


def look(room: Room) -> str:
    return watch.watch(room.use_case, room.outside)


def looks(room: Room) -> list[dict]:
    return room.outside.warehouse.fetch("select * from online_watch order by looked_at")


@pytest.fixture
def second(first) -> Room:
    """Version 2 answers everyone, version 1 before it."""
    assert "answers everyone" in challenge(first)
    return first


def test_the_word_for_a_silent_store_is_the_servers():
    assert STORE_SILENT == NO_ANSWER


def test_without_a_gateway_or_a_deployment_there_is_nothing_to_watch(use_case, outside, room):
    assert "nothing answers yet" in look(room)
    object.__setattr__(outside.settings, "gateway_url", None)
    assert "no gateway" in look(room)
    assert looks(room) == []


def test_a_version_that_does_well_stays_and_each_look_is_a_row(second):
    second.traffic(20)
    assert "errors" in look(second)
    second.traffic(3)
    look(second)
    one, two = looks(second)
    assert (one["model_version"], one["errors"], one["findings"]) == ("2", 0, [])
    assert one["requests"] >= 20
    assert one["checked"] >= 20
    assert one["max_difference"] <= 1e-5
    assert two["requests"] == 10, "three are too few to judge by"
    assert second.now == TWO
    assert alerts(second) == []


@pytest.mark.parametrize("bad", [{"fails": lambda number: number % 4 == 0}, {"off": 0.01}, {"slow_ms": 900.0}])
def test_errors_wrong_scores_or_latency_bring_the_version_before_back_once(second, bad):
    second.bad["2"] = Misbehaviour(**bad)
    second.traffic(20)
    assert "version 1 answers everyone" in look(second)
    assert second.now == Route("1", None, 0.0)
    found = last(second)
    assert (found.kind, found.version, found.previous_version, found.actor) == ("rollback", "1", "2", "watch")
    assert ("critical", "flights.deploy.reverted") in alerts(second)
    assert actions(second)[-1] == ("deploy", "1")
    second.bad["1"] = Misbehaviour(**bad)
    second.traffic(20)
    assert "not rolled back: it was put back itself" in look(second)
    assert second.now == Route("1", None, 0.0)
    assert ("critical", "flights.watch.stable") in alerts(second)
    second.bad.clear()
    second.traffic(20)
    look(second)
    assert ("critical", "flights.watch.stable") not in alerts(second), "it ends by itself"


def test_a_champion_rolled_back_to_what_the_watch_put_back_moves_nothing(second):
    second.bad["2"] = Misbehaviour(off=0.01)
    second.traffic(20)
    look(second)
    crown(second.outside, second.use_case, "1", None, 3)
    assert "version 1 answers everyone" in go(second, "1", None, 3, "rolled-back")
    assert second.now == Route("1", None, 0.0)
    crown(second.outside, second.use_case, "1", "2", 4)
    assert "version 1 answers everyone" in go(second, "1", "2", 4)
    assert second.now == Route("1", None, 0.0)
    assert deploy.pending(second.use_case, second.outside) == []


def test_what_hits_both_versions_is_told_and_not_rolled_back(second):
    second.bad["2"] = Misbehaviour(fails=lambda _number: True)
    second.traffic(20)
    second.registered.pop("1")
    second.register = lambda *_a, **_k: (_ for _ in ()).throw(ValueError("out of memory"))
    assert "not rolled back: version 1 does no better" in look(second)
    assert second.now == TWO
    assert ("critical", "flights.watch.stable") in alerts(second)


def test_the_first_version_has_none_to_go_back_to(first):
    first.bad["1"] = Misbehaviour(fails=lambda _number: True)
    first.traffic(20)
    assert "no other version answered before" in look(first)
    assert first.now == Route("1", None, 0.0)


def test_a_gateway_that_does_not_answer_is_told_until_it_does(second):
    second.traffic(20)
    look(second)
    second.reachable = False
    look(second)
    assert alerts(second) == [("critical", "flights.watch.gateway")]
    second.reachable = True
    look(second)
    assert alerts(second) == []


def answer(room: Room, *, degraded: bool, reason: str) -> None:
    room.traffic(1)
    room.outside.warehouse.fetch(
        "update online_answers set degraded = %s, reasons = %s where answered_at = (select max(answered_at) from"
        " online_answers)",
        (degraded, [reason] if degraded else []),
    )


def test_degraded_answers_are_told_until_they_are_well_again(second):
    look(second)
    for _ in range(4):
        answer(second, degraded=True, reason=STORE_SILENT)
    look(second)
    assert alerts(second) == [("warning", "flights.watch.degraded"), ("warning", "flights.watch.store")]
    look(second)
    assert len(alerts(second)) == 2, "no answer is no news"
    second.traffic(4)
    look(second)
    assert alerts(second) == []


def test_some_unknown_planes_are_no_alarm(second):
    look(second)
    answer(second, degraded=True, reason="unknown tail N1")
    second.traffic(9)
    look(second)
    assert alerts(second) == []


def test_answers_that_the_log_lost_are_counted_and_told(second):
    look(second)
    second.outside.warehouse.fetch(
        "insert into online_losses (session, use_case, started_at, segments, answered, shipped, dropped, lost)"
        " values ('s', 'flights', now(), 1, 9, 4, 2, 3)"
    )
    assert "5 answers are not in the prediction log" in look(second)
    assert alerts(second) == [("warning", "flights.watch.lost")]
    second.traffic(1)
    look(second)
    assert alerts(second) == []


def test_a_route_and_a_registration_that_differ_from_the_table_are_mended(second):
    second.now = Route("1", "3", 0.3)
    del second.registered["2"], second.registered["1"]
    said = look(second)
    assert second.now == TWO
    assert set(second.registered) == {"1", "2"}
    assert "loaded again" in said
    assert "the route was" in said


def test_a_canary_that_nobody_attends_gets_no_requests_until_it_is_taken_up(first):
    class Killed(BaseException):
        pass

    def kill(_route: Route) -> None:
        first.on_route = lambda _route: None
        raise Killed

    first.on_route = kill
    crown(first.outside, first.use_case, "2", "1", 2)
    with clients(first), pytest.raises(Killed):
        go(first, "2", "1", 2)
    assert first.now.share > 0
    look(first)
    assert first.now == Route("1", None, 0.0)
    assert deployments.in_flight(first.use_case, first.outside).stage == "canary"
    with clients(first):
        assert "version 2 answers everyone" in go(first, "2", "1", 2)
