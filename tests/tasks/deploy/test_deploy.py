"""A version answers everyone only after real rows, mirrored requests and a share of the traffic went well."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import psycopg2.errors
import pytest

from adapters.gateway import Route
from models.interval import ConformalInterval
from pipeline.handoffs import Release
from tasks.deploy import deploy, golden
from tests.tasks import server_room
from tests.tasks.rollouts import actions, alerts, challenge, clients, go, last
from tests.tasks.server_room import Misbehaviour, Room, crown

ALONE = Route("1", None, 0.0)


def test_without_an_endpoint_or_a_gateway_it_says_so_and_does_nothing(use_case, outside, capsys):
    promoted = Release(use_case=use_case.name, outcome="promoted", champion_version="1", previous_version=None,
                       revision=1, as_of=server_room.AS_OF, actor="Ada")  # fmt: skip
    assert "has no gateway, so nothing is deployed" in deploy.deploy_release(use_case, promoted, outside)
    none = use_case.model_copy(update={"endpoint": None})
    assert "no endpoint is configured" in deploy.deploy_release(none, promoted, outside)
    assert "no endpoint is configured" in capsys.readouterr().out
    assert deploy.find_undeployed(use_case, outside) == []


def test_the_first_version_answers_after_its_golden_rows(first):
    assert first.now == ALONE
    found = last(first)
    assert (found.stage, found.outcome, set(found.evidence)) == ("done", "full", {"package", "golden"})
    assert found.evidence["golden"]["rows"] == 32
    assert found.archive_sha256 == first.registered["1"].sha256
    assert actions(first) == [("deploy", "1")]
    assert alerts(first) == []


def test_the_next_one_passes_golden_rows_mirror_and_canary_and_the_one_before_is_kept(first):
    assert "version 2 answers everyone" in challenge(first)
    found = last(first)
    assert set(found.evidence) == {"package", "golden", "shadow", "canary"}
    assert found.evidence["shadow"]["requests"] >= 10
    assert found.evidence["shadow"]["versus_stable"]["max_difference"] > 0, "how they differ is evidence"
    assert found.evidence["canary"]["requests"] >= 10
    assert first.routes == [ALONE, Route("1", "2", 0.5), Route("2", None, 0.0)]
    assert set(first.registered) == {"1", "2"}
    pairs = first.outside.warehouse.query("select * from shadow_pairs")
    assert len(pairs) >= 10
    assert {(pair["stable_version"], pair["candidate_version"]) for pair in pairs} == {("1", "2")}
    assert actions(first) == [("deploy", "1"), ("deploy", "2")]


def test_a_recalibration_answers_everyone_after_its_golden_rows(first):
    recalibrated(first, "2", "1")
    assert "version 2 answers everyone" in go(first, "2", "1", 2)
    assert set(last(first).evidence) == {"package", "golden"}, "it waited for no traffic"
    assert first.routes == [ALONE, Route("2", None, 0.0)]
    assert set(first.registered) == {"1", "2"}


def test_a_recalibration_of_what_does_not_answer_yet_takes_every_stage(first):
    recalibrated(first, "2", "0")
    challenge(first)
    assert set(last(first).evidence) == {"package", "golden", "shadow", "canary"}


def test_back_from_a_recalibration_is_another_network_where_there_was_one(first):
    challenge(first)
    recalibrated(first, "3", "2", before="2", revision=3)
    assert "version 3 answers everyone" in go(first, "3", "2", 3)
    assert last(first).previous_version == "1"
    assert set(first.registered) == {"1", "3"}, "what would come back is kept"


def recalibrated(room, version, network, before="1", revision=2):
    """Have the warehouse say that one version is a recalibration of another, and is champion."""
    crown(room.outside, room.use_case, version, before, revision)
    with room.outside.warehouse.transaction() as at:
        at.execute(
            "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence)"
            " values ('d', %s, %s, '1', 'ignore', '{}', '{}')",
            (room.use_case.name, server_room.AS_OF),
        )
        at.execute(
            "insert into recalibrations (decision_id, use_case, network_version, as_of, intercept, evidence, state,"
            " model_version) values ('d', %s, %s, %s, 0.1, '{}', 'done', %s)",
            (room.use_case.name, network, server_room.AS_OF, version),
        )


def test_asked_again_it_answers_the_same_and_does_nothing(first):
    said = challenge(first)
    routes = list(first.routes)
    assert go(first, "2", "1", 2) == said
    assert first.routes == routes
    assert len(first.outside.warehouse.query("select 1 from deployments")) == 2
    with pytest.raises(psycopg2.errors.RestrictViolation):
        first.outside.warehouse.execute("update deployments set outcome = 'held'")


def test_a_third_version_leaves_two_at_the_server(first):
    challenge(first)
    crown(first.outside, first.use_case, "3", "2", 3)
    with clients(first):
        go(first, "3", "2", 3)
    assert set(first.registered) == {"2", "3"}


def test_a_server_that_answers_other_than_the_batch_is_refused_and_its_twin_passes(first):
    said = challenge(first, off=2e-5)
    assert "version 2 was refused at golden, version 1 answers" in said
    assert first.now == ALONE
    assert set(first.registered) == {"1"}
    assert alerts(first) == [("critical", "flights.deploy.refused")]
    assert actions(first)[-1] == ("deploy-refused", "2")
    assert deploy.find_undeployed(first.use_case, first.outside) == [], "nobody tries again by himself"
    first.bad.clear()
    with clients(first):
        said = deploy.start_deployment(
            first.use_case, first.outside, request_id="run", actor="Ada", reason="mended", again=True
        )
    assert "answers everyone" in said
    assert alerts(first) == [], "what was wrong is over"


@pytest.mark.parametrize(("shrunk", "refused"), [(1.0, False), (0.5, True), (None, True)])
def test_a_server_that_answers_other_bounds_than_the_batch_or_none_is_refused_and_its_twin_passes(
    first, monkeypatch, shrunk, refused
):
    interval = ConformalInterval(coverage=0.9, rows=99, low=-1.0, high=2.0, knots=(0.0, 1.0), scales=(0.1, 0.4))
    load, direct = golden.load_batch_predictor, first._direct

    def load_bounded(*arguments):
        return SimpleNamespace(predict=load(*arguments).predict, interval=interval)

    def answer_bounds(*arguments, **named):
        answers = direct(*arguments, **named)
        for answer in answers:
            score = np.array([answer["probability"]])
            lower, upper = (float(score[0] + (shrunk or 0) * (each - score)[0]) for each in interval.bounds(score))
            answer.update({"lower": lower, "upper": upper} if shrunk else {})
        return answers

    monkeypatch.setattr(golden, "load_batch_predictor", load_bounded)
    monkeypatch.setattr(first, "_direct", answer_bounds)
    said = challenge(first)
    assert ("refused at golden" in said) is refused
    assert (first.now == ALONE) is refused


def test_a_slow_server_is_refused(first, monkeypatch):
    slow = first._direct

    def late(*arguments, **named):
        time.sleep(0.03)
        return slow(*arguments, **named)

    monkeypatch.setattr(first, "_direct", late)
    first.use_case = server_room.rolled_out(first.use_case, max_p99_ms=20)
    crown(first.outside, first.use_case, "2", "1", 2)
    assert "refused at golden" in go(first, "2", "1", 2)
    assert first.now == ALONE


def test_an_archive_that_was_changed_is_refused(first):
    first.tamper = lambda archive: archive.path.write_text("something else")
    assert "refused at package" in challenge(first)
    assert first.now == ALONE
    assert set(first.registered) == {"1"}


def test_a_stored_bundle_that_was_changed_is_refused(first):
    first.registry.tampered.add("2")
    assert "refused at package" in challenge(first)
    assert first.now == ALONE
    assert alerts(first) == [("critical", "flights.deploy.refused")]
    assert actions(first)[-1] == ("deploy-refused", "2")


def test_a_version_without_a_stored_bundle_is_refused_at_once_and_not_begun_again(first):
    first.registry.lost.add("2")
    assert "version 2 was refused at package, version 1 answers" in challenge(first)
    assert "nothing is stored for version 2" in last(first).problem
    assert first.now == ALONE
    assert alerts(first) == [("critical", "flights.deploy.refused")]
    assert deploy.find_undeployed(first.use_case, first.outside) == []


def test_a_stored_bundle_that_is_changed_on_the_way_ends_the_deployment(first):
    first.on_route = lambda route: first.registry.tampered.add("2") if route.share else None
    said = challenge(first)
    assert "was reverted at canary" in said
    assert "not what was registered" in said
    assert first.now == ALONE


def test_a_version_of_other_features_is_refused(first):
    first.registry.add("4", seed=4, digest="old")
    crown(first.outside, first.use_case, "4", "1", 2)
    assert "learnt other features" in go(first, "4", "1", 2)
    assert first.now == ALONE


def impatient(room: Room) -> None:
    """Nobody waits longer than two seconds for requests."""
    room.use_case = server_room.rolled_out(room.use_case, hold_minutes=2 / 60)


def test_without_traffic_it_holds_and_can_be_started_again(first):
    impatient(first)
    crown(first.outside, first.use_case, "2", "1", 2)
    assert "was held at shadow, version 1 answers" in go(first, "2", "1", 2)
    assert alerts(first) == [("warning", "flights.deploy.held")]
    assert first.now == ALONE
    assert set(first.registered) == {"1"}
    first.use_case = server_room.rolled_out(first.use_case)
    assert "set `again`" in deploy.start_deployment(
        first.use_case, first.outside, request_id="a", actor="floor", reason="left"
    )
    with clients(first):
        said = deploy.start_deployment(
            first.use_case, first.outside, request_id="b", actor="Ada", reason="now", again=True
        )
    assert "answers everyone" in said
    assert (
        deploy.start_deployment(first.use_case, first.outside, request_id="b", actor="Ada", reason="now", again=True)
        == said
    )
    assert actions(first)[1:] == [("deploy-held", "2"), ("deploy", "2")]


def test_a_canary_without_traffic_holds(first):
    impatient(first)
    first.on_route = lambda route: setattr(first, "traffic", lambda _requests: None) if route.share else None
    assert "was held at canary" in challenge(first)
    assert first.now == ALONE


def test_a_canary_whose_answers_are_not_logged_holds(first):
    impatient(first)
    first.on_route = lambda route: setattr(first, "logging", not route.share)
    assert "was held at canary" in challenge(first)
    assert first.now == ALONE


def test_a_canary_with_5_percent_errors_is_reverted_and_its_twin_goes_full(first):
    assert "was reverted at canary" in challenge(first, fails=lambda number: number % 20 == 5)
    assert first.now == ALONE
    assert alerts(first) == [("critical", "flights.deploy.reverted")]
    assert last(first).evidence["canary"]["errors"] > 0
    first.bad.clear()
    with clients(first):
        said = deploy.start_deployment(
            first.use_case, first.outside, request_id="run", actor="Ada", reason="mended", again=True
        )
    assert "answers everyone" in said


def test_a_canary_with_no_errors_and_shifted_predictions_is_reverted(first):
    def shift(route: Route) -> None:
        first.bad["2"] = Misbehaviour(off=0.01 if route.share else 0.0)

    first.on_route = shift
    assert "was reverted at canary" in challenge(first)
    assert last(first).evidence["canary"]["errors"] == 0
    assert last(first).evidence["canary"]["max_difference"] == pytest.approx(0.01)
    assert first.now == ALONE


def test_a_slow_canary_is_reverted(first):
    def slow(route: Route) -> None:
        first.bad["2"] = Misbehaviour(slow_ms=server_room.TOO_SLOW_MS if route.share else 0)

    first.on_route = slow
    assert "was reverted at canary" in challenge(first)
    assert first.now == ALONE


def test_a_version_that_does_not_answer_in_the_end_is_reverted(first):
    first.on_route = lambda route: first.bad.update({"2": Misbehaviour(fails=lambda _number: route.stable == "2")})
    assert "was reverted at full" in challenge(first)
    assert first.now == ALONE


def test_with_the_server_down_nothing_moves_and_the_same_call_goes_on_later(first):
    crown(first.outside, first.use_case, "2", "1", 2)
    first.reachable = False
    with pytest.raises(ConnectionError):
        go(first, "2", "1", 2)
    first.reachable = True
    assert first.now == ALONE
    assert deploy.find_undeployed(first.use_case, first.outside) == ["2"]
    with clients(first):
        assert "answers everyone" in go(first, "2", "1", 2)
    assert len(first.outside.warehouse.query("select 1 from deployments")) == 2


class Killed(BaseException):
    """Ends a deployment where it is, as a kill does: no transaction is committed, every connection closes."""


STEPS = ("archive", "register", "ask golden", "ask shadow", "route canary", "records", "route full", "ask proof",
         "make_default")  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_killed_before_or_after_any_step_it_is_one_deployment_with_the_same_end(first, step, after):
    name = step.split()[0]
    name = {"route": "set_route"}.get(name, name)
    real, killed = getattr(first, name), []

    def concerns(arguments, named) -> bool:
        if step == "ask proof":
            return len(arguments) == 2
        if name == "ask":
            return named.get("slot") == step.split()[1]
        if name == "set_route":
            return (arguments[1].share > 0) == step.endswith("canary")
        return True

    def once(*arguments, **named):
        if killed or not concerns(arguments, named):
            return real(*arguments, **named)
        killed.append(step)
        if after:
            real(*arguments, **named)
        raise Killed

    setattr(first, name, once)
    crown(first.outside, first.use_case, "2", "1", 2)
    with clients(first):
        with pytest.raises(Killed):
            go(first, "2", "1", 2)
        assert killed == [step]
        assert deploy.find_undeployed(first.use_case, first.outside) == ["2"]
        assert "answers everyone" in go(first, "2", "1", 2)
    assert first.now == Route("2", None, 0.0)
    assert set(first.registered) == {"1", "2"}
    assert actions(first) == [("deploy", "1"), ("deploy", "2")]
    assert set(last(first).evidence) == {"package", "golden", "shadow", "canary"}
    assert len(first.outside.warehouse.query("select 1 from deployments")) == 2


def test_two_at_once_are_one_deployment(first):
    crown(first.outside, first.use_case, "2", "1", 2)
    said: list[str] = []
    both = [threading.Thread(target=lambda: said.append(go(first, "2", "1", 2))) for _ in range(2)]
    with clients(first):
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert sum("answers everyone" in sentence for sentence in said) >= 1
    assert all("answers everyone" in sentence or "under way" in sentence for sentence in said)
    assert len(first.outside.warehouse.query("select 1 from deployments")) == 2
    assert first.now == Route("2", None, 0.0)


def test_a_deployment_waits_for_the_lock_for_a_while_and_then_says_so(first, monkeypatch):
    crown(first.outside, first.use_case, "2", "1", 2)

    def by_hand() -> str:
        return deploy.start_deployment(first.use_case, first.outside, request_id="run", actor="Ada", reason="now")

    with first.outside.warehouse.alone("deploy/flights") as mine:
        assert mine
        monkeypatch.setattr(deploy, "_WAIT_SECONDS", 0.0)
        with pytest.raises(ConnectionError, match="somebody else is deploying"):
            by_hand()
        monkeypatch.setattr(deploy, "_WAIT_SECONDS", 30.0)
        said: list[str] = []
        waiting = threading.Thread(target=lambda: said.append(by_hand()))
        waiting.start()
        time.sleep(0.7)
        assert waiting.is_alive()
    with clients(first):
        waiting.join()
    assert "version 2 answers everyone" in said[0]


def test_a_champion_that_changes_meanwhile_ends_the_deployment(first):
    first.on_route = lambda route: crown(first.outside, first.use_case, "3", "2", 3) if route.share else None
    assert "was superseded at canary" in challenge(first)
    assert first.now == ALONE
    assert deploy.find_undeployed(first.use_case, first.outside) == ["3"]


def test_a_rollback_is_at_once_and_ends_what_is_under_way(first):
    challenge(first)
    crown(first.outside, first.use_case, "3", "2", 3)
    said: list[str] = []
    slow = threading.Thread(target=lambda: said.append(go(first, "3", "2", 3)))
    slow.start()
    deadline = time.monotonic() + 20
    while last(first).stage != "shadow":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    crown(first.outside, first.use_case, "2", "1", 4)
    assert "version 2 answers everyone" in go(first, "2", "1", 4, "rolled-back")
    assert not {"shadow", "canary"} & set(last(first).evidence)  # it waited for no traffic
    slow.join()
    assert "superseded" in said[0] or "taken over" in said[0]
    rows = first.outside.warehouse.query("select outcome from deployments where version = '3'")
    assert [row["outcome"] for row in rows] == ["superseded"]
    assert first.now == Route("2", None, 0.0)


def test_a_rollback_puts_the_version_before_back_also_where_the_server_forgot_it(first):
    challenge(first)
    first.registered.pop("1")
    crown(first.outside, first.use_case, "1", None, 3)
    said = go(first, "1", None, 3, "rolled-back")
    assert "version 1 answers everyone" in said
    assert first.now == ALONE
    assert ("warning", "flights.deploy.put-back") in alerts(first)
    assert go(first, "1", None, 3, "rolled-back") == said
    assert actions(first)[-1] == ("deploy", "1")


def test_only_what_was_champion_once_can_be_deployed_by_hand(first):
    with pytest.raises(ValueError, match="never promoted"):
        deploy.start_deployment(
            first.use_case, first.outside, request_id="r", actor="Ada", reason="why not", version="3"
        )
