"""A version that does badly goes back once, by itself; what no rollback mends calls a person until it is well."""

from datetime import timedelta

import pytest

from adapters.gateway import Route
from serving.reasons import DegradedReason
from tasks.deploy import deploy, deployments, reconcile, watch
from tests.tasks.rollouts import actions, alerts, challenge, clients, go, last
from tests.tasks.server_room import TOO_SLOW_MS, Misbehaviour, Room, crown

TWO = Route("2", None, 0.0)


@pytest.fixture(autouse=True)
def no_overlap(monkeypatch) -> None:
    """The room's log is never late, and a look shall not see what the one before it saw."""
    monkeypatch.setattr(watch, "_OVERLAP", timedelta(0))


def look(room: Room) -> str:
    return watch.watch_online(room.use_case, room.outside)


def looks(room: Room) -> list[dict]:
    return room.outside.warehouse.query("select * from online_watch order by looked_at")


@pytest.fixture
def second(first) -> Room:
    """Version 2 answers everyone, version 1 before it."""
    assert "answers everyone" in challenge(first)
    return first


def test_the_word_for_a_silent_store_is_the_one_that_stored_answers_have():
    assert DegradedReason.STORE_SILENT == "feature store did not answer"


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


@pytest.mark.parametrize("bad", [{"fails": lambda number: number % 4 == 0}, {"off": 0.01}, {"slow_ms": TOO_SLOW_MS}])
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


@pytest.mark.parametrize(("every", "stays"), [(60, True), (10, False)])
def test_one_slow_request_of_many_is_no_reason_and_one_in_ten_is(second, every, stays):
    look(second)
    second.bad["2"] = Misbehaviour(slow_ms=TOO_SLOW_MS, slow=lambda number: number % every == 0)
    second.traffic(60)
    said = look(second)
    assert ("60 requests, 0 errors" in said) == stays
    assert (second.now == TWO) == stays
    assert bool(alerts(second)) != stays


class Killed(BaseException):
    """Ends the watch where it is."""


def killing(room: Room, monkeypatch, name: str, *, after: bool) -> None:
    """Kill the process the next time that it does this to the server or the gateway."""
    real = getattr(room, name)

    def once(*arguments, **named):
        monkeypatch.setattr(room, name, real)
        if after:
            real(*arguments, **named)
        raise Killed

    monkeypatch.setattr(room, name, once)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["set_route", "_through", "make_default", "set_fallback"])
def test_a_rollback_that_was_killed_is_gone_on_with_by_the_next_look(second, monkeypatch, step, after):
    look(second)  # nothing is left to be mended before
    second.bad["2"] = Misbehaviour(off=0.01)
    second.traffic(20)
    real = deployments.insert_deployment

    def opened(*arguments):
        real(*arguments)
        killing(second, monkeypatch, step, after=after)

    monkeypatch.setattr(deployments, "insert_deployment", opened)
    with pytest.raises(Killed):
        look(second)
    monkeypatch.setattr(deployments, "insert_deployment", real)
    under_way = deployments.find_ongoing_deployment(second.use_case, second.outside)
    assert (under_way.version, under_way.stage) == ("1", "full")
    assert deploy.find_undeployed(second.use_case, second.outside) == [], "nobody else takes it up"
    with pytest.raises(ConnectionError, match="being taken back"):
        deploy.start_deployment(
            second.use_case, second.outside, request_id="r", actor="Ada", reason="again", again=True, version="2"
        )
    assert "version 1 answers everyone" in look(second)
    assert second.now == Route("1", None, 0.0)
    assert (last(second).version, last(second).outcome) == ("1", "full")
    assert len(second.outside.warehouse.query("select 1 from deployments")) == 3
    assert ("critical", "flights.deploy.reverted") in alerts(second)
    second.traffic(20)
    look(second)
    assert second.now == Route("1", None, 0.0), "and it stays"


def test_a_rollback_that_failed_is_told_as_that(second):
    second.bad["2"] = Misbehaviour(off=0.01)
    second.traffic(20)
    second.on_route = lambda route: second.bad.update({"1": Misbehaviour(fails=lambda _number: route.stable == "1")})
    assert "version 1 was reverted at full, version 2 answers" in look(second)
    assert second.now == TWO
    [told] = second.outside.warehouse.query("select * from alerts where fingerprint = 'flights.watch.stable'")
    assert (told["tier"], "could not be taken back" in told["title"]) == ("critical", True)
    assert "version 2 answers" in told["body"]
    assert not second.outside.warehouse.query("select 1 from alerts where title like '%was taken back%'")
    second.traffic(20)
    assert "not rolled back: that was tried before" in look(second)


def test_a_moment_without_an_answer_does_not_end_a_rollback(second):
    second.bad["2"] = Misbehaviour(off=0.01)
    second.traffic(20)
    had = second._asked["1"]
    second.bad["1"] = Misbehaviour(fails=lambda number: number <= had + 3)
    assert "version 1 answers everyone" in look(second)
    assert second.now == Route("1", None, 0.0)


def test_a_bad_version_is_taken_back_although_the_next_one_is_on_its_way(second):
    def kill(route: Route) -> None:
        if route.share:
            second.on_route = lambda _route: None
            raise Killed

    second.on_route = kill
    crown(second.outside, second.use_case, "3", "2", 3)
    with clients(second), pytest.raises(Killed):
        go(second, "3", "2", 3)
    second.bad["2"] = Misbehaviour(off=0.01)
    second.traffic(20)
    assert "version 1 answers everyone" in look(second)
    assert second.now == Route("1", None, 0.0)
    assert actions(second)[-2:] == [("deploy-superseded", "3"), ("deploy", "1")]
    assert deploy.find_undeployed(second.use_case, second.outside) == ["3"], "it is begun again, on top of version 1"


def test_a_rollback_that_begins_while_a_route_is_mended_is_not_undone(second, monkeypatch):
    """The look at what is loaded takes long; meanwhile somebody rolls back and is at the proof."""
    second.traffic(20)
    real, row = second.versions, []

    def slowly(use_case: str) -> dict[str, bool]:
        if not row:
            row.append(second.outside.warehouse.begin("deploy/flights"))
            with second.outside.warehouse.transaction(row[0]) as at:
                deployments.insert_deployment(at, {
                    "deployment_id": "by-hand", "request_id": "r", "use_case": "flights", "kind": "rollback",
                    "version": "1", "previous_version": "2", "revision": 2, "stage": "full", "actor": "Ada",
                    "reason": "bad", "as_of": "2013-04-01",
                })  # fmt: skip
            second.now = Route("1", None, 0.0)
        return real(use_case)

    monkeypatch.setattr(second, "versions", slowly)
    reconcile.reconcile_server(second.use_case, second.outside)
    assert row
    assert second.now == Route("1", None, 0.0)


def test_what_cannot_be_mended_is_told_and_the_watch_goes_on(second, monkeypatch):
    second.traffic(20)
    second.registered["9"] = second.registered["1"]

    def refuse(*_arguments: str) -> None:
        raise ValueError("version 9 cannot be unloaded")

    real = second.retire
    monkeypatch.setattr(second, "retire", refuse)
    assert "version 9 cannot be unloaded" in look(second)
    assert alerts(second) == [("critical", "flights.watch.mending")]
    monkeypatch.setattr(second, "retire", real)
    look(second)
    assert alerts(second) == []
    assert set(second.registered) == {"1", "2"}


def test_a_default_that_a_kill_left_behind_does_not_stay_loaded(second, monkeypatch):
    killing(second, monkeypatch, "make_default", after=True)
    crown(second.outside, second.use_case, "3", "2", 3)
    with clients(second), pytest.raises(Killed):
        go(second, "3", "2", 3)
    assert second.default == "3"
    crown(second.outside, second.use_case, "2", "1", 4)
    assert "version 2 answers everyone" in go(second, "2", "1", 4)
    assert (second.default, set(second.registered)) == ("2", {"1", "2"})


def test_a_stored_bundle_that_was_changed_is_told_and_the_watch_goes_on(second):
    second.registry.tampered.add("2")
    second.traffic(20)
    look(second)
    assert alerts(second) == [("critical", "flights.watch.bundle")]
    second.registry.tampered.clear()
    second.traffic(3)
    look(second)
    assert alerts(second) == []


def test_the_same_problem_is_told_once_whatever_its_numbers(second):
    look(second)
    second.bad["2"] = Misbehaviour(fails=lambda number: number % 3 == 0)
    second.bad["1"] = Misbehaviour(fails=lambda _number: True)
    second.registered.pop("1")
    second.register = lambda *_a, **_k: (_ for _ in ()).throw(ValueError(f"out of memory at {len(second.seen)}"))
    said = set()
    for number in (21, 32):
        second.traffic(number)
        answer(second, degraded=True, reason=DegradedReason.STORE_SILENT)
        second.outside.warehouse.execute(
            "insert into online_losses (session, use_case, started_at, segments, answered, shipped, dropped, lost)"
            " values (%s, 'flights', now(), 1, 9, 4, %s, 3)", (f"s{number}", number),
        )  # fmt: skip
        look(second)
        rows = second.outside.warehouse.query("select fingerprint, title, body from alerts where resolved_at is null")
        said.add(tuple(sorted(tuple(row.values()) for row in rows)))
    assert len(said) == 1
    assert {name for name, *_ in said.pop()} >= {"flights.watch.stable", "flights.watch.lost", "flights.watch.store"}
    one, two = looks(second)[-2:]
    assert one["findings"] != two["findings"], "the numbers are there"


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
    assert deploy.find_undeployed(second.use_case, second.outside) == []


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
    room.outside.warehouse.execute(
        "update online_answers set degraded = %s, reasons = %s where answered_at = (select max(answered_at) from"
        " online_answers)",
        (degraded, [reason] if degraded else []),
    )


def test_degraded_answers_are_told_until_they_are_well_again(second):
    look(second)
    for _ in range(4):
        answer(second, degraded=True, reason=DegradedReason.STORE_SILENT)
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
    second.outside.warehouse.execute(
        "insert into online_losses (session, use_case, started_at, segments, answered, shipped, dropped, lost)"
        " values ('s', 'flights', now(), 1, 9, 4, 2, 3)"
    )
    assert "answers are not in the prediction log: 5 more" in look(second)
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
    assert deployments.find_ongoing_deployment(first.use_case, first.outside).stage == "canary"
    with clients(first):
        assert "version 2 answers everyone" in go(first, "2", "1", 2)
