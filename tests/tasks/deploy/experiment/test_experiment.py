"""An experiment's life in a real database, with a gateway of ten lines, and once with the real one."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from adapters.errors import FencedOut
from adapters.gateway import GatewayRecord, Route
from infra.local import gateway as infra_gateway
from tasks.deploy.experiment import answers, experiment, log
from tasks.deploy.judge import GoldenTally
from tasks.deploy.server import UseCaseServer
from tests.gateway_stand import Stand, stand
from tests.tasks import killed
from tests.tasks.deploy.experiment.planting import (
    DECLARED,
    EVENT_TIME,
    Answer,
    Killed,
    build_dataset,
    ledger,
    looks,
    plant,
    start,
    tell,
)
from tests.waiting import until


def answer(
    outside, version: str, n: int, *, costly: float, seed: int, degraded: float = 0.0, at: datetime | None = None
):
    """n events answered by a version, a share of them missed at 5 each; their outcomes are known."""
    draw, at = np.random.default_rng(seed), at or datetime.now(UTC)
    missed, bad = draw.random(n) < costly, draw.random(n) < degraded
    keys = [f"{version}-{seed}-{i}" for i in range(n)]
    each = zip(keys, missed.tolist(), bad.tolist(), strict=True)
    plant(outside, (Answer(version=version, key=k, at=at, decision=not m, degraded=b) for k, m, b in each))


def is_unsettled(use_case, outside) -> bool:
    """Whether an experiment has the candidate's place."""
    return log.find_unsettled_experiment(use_case, outside) is not None


def test_a_start_gives_the_treatment_its_share_once_and_is_in_the_ledger(use_case, outside, gateway):
    assert not is_unsettled(use_case, outside)
    assert start(use_case, outside) == start(use_case, outside) == "flights: version 8 against 7: goes on"
    assert gateway.now == Route("7", "8", 0.3)
    assert is_unsettled(use_case, outside)
    assert ledger(outside) == ["experiment-start by ada"]
    assert [row["look"] for row in looks(outside)] == [0]


def test_a_harmful_treatment_is_stopped_and_the_stable_version_has_everyone_back(use_case, outside, gateway):
    start(use_case, outside)
    answer(outside, "7", 400, costly=0.05, seed=1)
    answer(outside, "8", 200, costly=0.30, seed=2)
    said = experiment.judge_experiment(use_case, outside)
    assert "stopped-by-guardrail: harm" in said
    assert gateway.now == Route("7")
    assert not is_unsettled(use_case, outside)
    assert ledger(outside) == ["experiment-start by ada", "experiment-end by experiment"]
    [alert] = outside.warehouse.query("select tier, title, delivered_at from alerts")
    assert alert["tier"] == "critical"
    assert alert["title"].endswith("ended: stopped-by-guardrail")
    assert alert["delivered_at"] is not None
    assert experiment.judge_experiment(use_case, outside) is None


def test_a_better_treatment_is_said_to_be_and_promoted_by_nobody(use_case, outside, gateway):
    start(use_case, outside)
    answer(outside, "7", 800, costly=0.30, seed=1)
    answer(outside, "8", 400, costly=0.05, seed=2)
    assert "treatment-better" in (said := experiment.judge_experiment(use_case, outside))
    assert "flights.train" in said
    assert gateway.now == Route("7")
    assert outside.warehouse.query("select * from champions") == []
    assert start(use_case, outside, request_id="run 2").endswith("goes on")


def test_the_healthy_twin_goes_on(use_case, outside, gateway):
    start(use_case, outside)
    answer(outside, "7", 800, costly=0.10, seed=1)
    answer(outside, "8", 400, costly=0.10, seed=2)
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    assert gateway.now == Route("7", "8", 0.3)
    [_, row] = looks(outside)
    assert (row["control_events"], row["treatment_events"]) == (800, 400)
    assert row["low"] < row["difference"] < row["high"]
    assert row["treatment_cost"] % 5 == 0


def test_a_second_look_at_the_same_data_writes_nothing(use_case, outside, gateway):
    start(use_case, outside)
    answer(outside, "7", 50, costly=0.1, seed=1)
    answer(outside, "8", 50, costly=0.1, seed=2)
    experiment.judge_experiment(use_case, outside)
    before = looks(outside)
    experiment.judge_experiment(use_case, outside)
    assert looks(outside) == before
    answer(outside, "8", 1, costly=0.1, seed=3)
    experiment.judge_experiment(use_case, outside)
    assert len(looks(outside)) == len(before) + 1


def test_an_event_counts_once_by_its_first_answer_and_not_before_the_start(use_case, outside, gateway):
    answer(outside, "7", 20, costly=0.0, seed=9)
    start(use_case, outside)
    answer(outside, "7", 20, costly=0.0, seed=1)
    answer(outside, "8", 10, costly=1.0, seed=2)
    outside.warehouse.execute(  # asked again, a minute later, and answered by the other version
        "insert into online_answers select use_case, 'again' || request_id, position, '7', 'stable', client,"
        " entity_key, event_time, prediction_time, score, true, degraded, reasons, feature_as_of, feature_snapshot,"
        " feature_age_seconds, server_ms, request, features, answered_at + interval '1 minute'"
        " from online_answers where model_version = '8'"
    )
    experiment.judge_experiment(use_case, outside)
    row = looks(outside)[-1]
    assert (row["control_events"], row["treatment_events"]) == (20, 10)
    assert (row["control_cost"], row["treatment_cost"]) == (0, 50)


def draw_early_outcomes(n: int, *, seed: int) -> Iterator[tuple[Answer, Answer]]:
    """Events of a day, each as it is known now and later: of what was to be warned of nothing is known yet.

    The treatment hardly ever warns. That saves .25 where there was nothing to warn of, and costs .58 over all.
    """
    draw = np.random.default_rng(seed)
    warns = {"7": (0.3, 0.8), "8": (0.05, 0.3)}  # by label
    for number, (part, kind, act) in enumerate(draw.random((n, 3)).tolist()):
        version, label = "8" if part < 0.3 else "7", int(kind < 0.3)
        known = Answer(
            version=version,
            key=f"{seed}-{number}",
            at=datetime.now(UTC),
            decision=act < warns[version][label],
            label=float(label),
            predicted=EVENT_TIME - timedelta(hours=24 * number / n),
        )
        yield replace(known, label=None if label else 0.0), known


@pytest.fixture
def early(use_case, outside, gateway) -> list[Answer]:
    """An experiment of whose events only those are known that there was nothing to warn of; all, as they come to be."""
    build_dataset(outside, "early", EVENT_TIME)
    start(use_case, outside)
    now, later = zip(*draw_early_outcomes(3000, seed=1), strict=True)
    plant(outside, now)
    return list(later)


def test_early_outcomes_of_one_kind_call_nothing_and_once_all_had_their_time_harm_is_seen(
    use_case, outside, gateway, early
):
    assert use_case.time.label_lag == timedelta(hours=26)
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    assert (looks(outside)[-1]["answers"] > 800, looks(outside)[-1]["treatment_events"]) == (True, 0)
    tell(outside, early)
    build_dataset(outside, "later", EVENT_TIME + timedelta(days=2))
    assert "stopped-by-guardrail: harm" in experiment.judge_experiment(use_case, outside)


def test_sabotage_counted_at_once_early_outcomes_call_a_harmful_version_better(use_case, outside, gateway, early):
    at_once = use_case.time.model_copy(update={"lead_minutes": 0, "label_delay_hours": 0})
    said = experiment.judge_experiment(use_case.model_copy(update={"time": at_once}), outside)
    assert "treatment-better" in said


def test_events_of_one_request_are_one_unit(use_case, outside, gateway):
    start(use_case, outside)
    answer(outside, "7", 20, costly=0.0, seed=1)
    answer(outside, "8", 10, costly=1.0, seed=2)
    outside.warehouse.execute(
        "update online_answers set request_id = 'all', position = split_part(entity_key, '-', 3)::int"
        " where model_version = '8'"
    )
    experiment.judge_experiment(use_case, outside)
    assert (looks(outside)[-1]["control_units"], looks(outside)[-1]["treatment_units"]) == (20, 1)


def records(n: int, *, status: int = 200, static: bool = False, start_id: int = 0) -> list[GatewayRecord]:
    return [
        GatewayRecord(
            f"r{start_id + i}", "flights", "test", "candidate", "8", status, 5.0, datetime.now(UTC), static=static
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("how", [{"status": 503}, {"static": True}])
def test_errors_and_static_answers_stop_it_and_are_counted_on_after_the_gateway_has_forgotten_them(
    use_case, outside, gateway, how
):
    start(use_case, outside)
    gateway.answered = records(100) + records(3, start_id=100, **how)
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    assert (looks(outside)[-1]["requests"], looks(outside)[-1]["errors"]) == (103, 3)
    gateway.answered = records(20, start_id=200) + records(10, start_id=220, **how)
    assert "errors: 13 of 133" in experiment.judge_experiment(use_case, outside)
    assert gateway.now == Route("7")


def test_degraded_answers_stop_it(use_case, outside, gateway):
    start(use_case, outside)
    answer(outside, "8", 200, costly=0.0, seed=2, degraded=0.5)
    assert "degraded answers" in experiment.judge_experiment(use_case, outside)


def test_killed_before_the_gateway_was_told_the_next_look_tells_it(use_case, outside, gateway):
    gateway.dies = True
    with pytest.raises(Killed):
        start(use_case, outside)
    assert is_unsettled(use_case, outside)
    assert gateway.now == Route("7")
    gateway.dies = False
    experiment.judge_experiment(use_case, outside)
    assert gateway.now == Route("7", "8", 0.3)
    assert len(looks(outside)) == 1


def test_killed_at_the_end_the_place_is_taken_until_the_next_look_has_given_it_back(use_case, outside, gateway):
    start(use_case, outside)
    answer(outside, "7", 400, costly=0.05, seed=1)
    answer(outside, "8", 200, costly=0.30, seed=2)
    gateway.dies = True
    with pytest.raises(Killed):
        experiment.judge_experiment(use_case, outside)
    assert is_unsettled(use_case, outside)
    with pytest.raises(ValueError, match="one experiment at a time"):
        start(use_case, outside, request_id="run 2")
    gateway.dies = False
    assert "stopped-by-guardrail" in experiment.judge_experiment(use_case, outside)
    assert gateway.now == Route("7")
    assert ledger(outside) == ["experiment-start by ada", "experiment-end by experiment"]


def test_a_route_that_the_gateway_lost_is_told_again(use_case, outside, gateway, monkeypatch):
    """Its file may know a route that its memory does not: a kill came between the two."""
    start(use_case, outside)
    told = []
    monkeypatch.setattr(gateway, "set_route", lambda _, route: told.append(route))
    experiment.judge_experiment(use_case, outside)
    gateway.now = Route("7")
    experiment.stop_experiment(use_case, outside, actor="ada", reason="enough")
    assert told == [Route("7", "8", 0.3), Route("7")]


def test_a_look_that_was_overtaken_writes_nothing(use_case, outside, gateway, monkeypatch):
    start(use_case, outside)
    answer(outside, "7", 400, costly=0.05, seed=1)
    answer(outside, "8", 200, costly=0.30, seed=2)
    events = answers.read_events

    def overtaken(*arguments):
        outside.warehouse.begin("experiment/flights")
        return events(*arguments)

    monkeypatch.setattr(answers, "read_events", overtaken)
    with pytest.raises(FencedOut):
        experiment.judge_experiment(use_case, outside)
    assert len(looks(outside)) == 1
    assert gateway.now == Route("7", "8", 0.3)


def test_whoever_changes_the_route_ends_the_experiment_and_keeps_the_route(use_case, outside, gateway):
    start(use_case, outside)
    gateway.now = Route("6")  # a rollback
    assert "interrupted" in experiment.judge_experiment(use_case, outside)
    assert gateway.now == Route("6")
    assert not is_unsettled(use_case, outside)


def test_a_start_taken_up_again_leaves_a_route_alone_that_somebody_changed_meanwhile(use_case, outside, gateway):
    gateway.dies = True
    with pytest.raises(Killed):
        start(use_case, outside)
    gateway.dies, gateway.now = False, Route("6")
    start(use_case, outside)
    assert gateway.now == Route("6")
    assert "interrupted" in experiment.judge_experiment(use_case, outside)
    assert gateway.now == Route("6")


def test_a_person_stops_it_with_a_reason(use_case, outside, gateway):
    assert experiment.stop_experiment(use_case, outside, actor="ada", reason="enough") is None
    start(use_case, outside)
    with pytest.raises(ValueError, match="say why"):
        experiment.stop_experiment(use_case, outside, actor="ada", reason=" ")
    assert "ended as stopped: enough" in experiment.stop_experiment(use_case, outside, actor="ada", reason="enough")
    assert gateway.now == Route("7")
    assert ledger(outside) == ["experiment-start by ada", "experiment-end by ada"]


def test_what_was_declared_at_the_start_holds_to_the_end(use_case, outside, gateway):
    start(use_case, outside)
    edited = use_case.model_copy(update={"experiment": DECLARED.model_copy(update={"max_harm": 9.0, "share": 0.5})})
    answer(outside, "7", 400, costly=0.05, seed=1)
    answer(outside, "8", 200, costly=0.30, seed=2)
    assert "stopped-by-guardrail: harm" in experiment.judge_experiment(edited, outside)


def test_thompson_sampling_moves_the_share_and_an_event_keeps_the_share_it_was_asked_under(use_case, outside, gateway):
    moving = DECLARED.model_copy(update={"mode": "thompson", "alpha": 1e-6})
    use_case = use_case.model_copy(update={"experiment": moving})
    start(use_case, outside)
    answer(outside, "7", 800, costly=0.14, seed=1)
    answer(outside, "8", 400, costly=0.10, seed=2)
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    share = looks(outside)[-1]["share"]
    assert 0.8 < share <= 0.95
    assert gateway.now == Route("7", "8", share)
    answer(outside, "8", 10, costly=0.1, seed=3)
    running = log.find_unsettled_experiment(use_case, outside)
    found = answers.read_events(running, outside, EVENT_TIME + timedelta(days=1))
    assert dict(zip(*np.unique(found.share, return_counts=True), strict=True)) == {0.3: 1200, share: 10}


@pytest.mark.parametrize(
    ("route", "because"),
    [
        (Route(None), "deploy a champion first"),
        (Route("8"), "answers everyone already"),
        (Route("7", "9", 0.05), "version 9 has the candidate's place"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(use_case, outside, gateway, route, because):
    gateway.now = route
    with pytest.raises(ValueError, match=because):
        start(use_case, outside)
    assert gateway.now == route
    assert not is_unsettled(use_case, outside)


def test_a_start_without_a_declaration_or_a_gateway_is_refused(use_case, outside, gateway):
    with pytest.raises(ValueError, match=r"declare flights\.experiment"):
        start(use_case.model_copy(update={"experiment": None}), outside)
    outside.__dict__["gateway"] = None
    with pytest.raises(ValueError, match="needs the gateway"):
        start(use_case, outside)


def test_a_version_that_does_not_answer_as_in_batch_answers_nobody(use_case, outside, gateway, monkeypatch):
    def refuses(*_: object) -> None:
        raise ValueError("version 8 may not answer anyone")

    monkeypatch.setattr(experiment, "admit_version", refuses)
    with pytest.raises(ValueError, match="may not answer"):
        start(use_case, outside)
    assert gateway.now == Route("7")
    assert not is_unsettled(use_case, outside)


@pytest.mark.parametrize(("difference", "allowed"), [(1e-7, True), (1e-2, False)])
def test_a_version_is_let_in_when_real_rows_get_the_batchs_answers(use_case, outside, monkeypatch, difference, allowed):
    asked = []
    seen = GoldenTally(rows=256, wanted=256, max_difference=difference, worst="UA1", p99_ms=1.0)
    monkeypatch.setattr(UseCaseServer, "ensure_loaded", lambda _, version, sha256: asked.append((version, sha256)))
    monkeypatch.setattr(experiment, "ask_golden_rows", lambda *_: (seen, {}))
    if allowed:
        experiment.admit_version(use_case, "8", outside)
    else:
        with pytest.raises(ValueError, match="version 8 may not answer anyone"):
            experiment.admit_version(use_case, "8", outside)
    assert asked == [("8", None)]


def test_high_risk_takes_only_versions_that_were_approved(use_case, outside, gateway):
    with pytest.raises(ValueError, match="never approved"):
        start(use_case.model_copy(update={"risk": "high"}), outside)


def test_a_deployment_under_way_refuses_the_start_and_its_end_lets_it(use_case, outside, gateway):
    outside.warehouse.execute(
        "insert into deployments (deployment_id, use_case, kind, version, revision, stage, actor, reason, as_of)"
        " values ('d', 'flights', 'rollout', '9', 1, 'shadow', 'ada', 'why', now())"
    )
    with pytest.raises(ValueError, match="deployment of flights is under way"):
        start(use_case, outside)
    outside.warehouse.execute("update deployments set outcome = 'held', finished_at = now()")
    with outside.warehouse.alone("deploy/flights"), pytest.raises(ValueError, match="deployment of flights"):
        start(use_case, outside)
    held = "select from pg_locks join pg_database on oid = database and datname = current_database()"
    until(lambda: not outside.warehouse.query(f"{held} where locktype = 'advisory'"))  # a closed connection lingers
    assert start(use_case, outside).endswith("goes on")


STARTS = """
from adapters import gateway_maps
from pipeline.online import ExperimentSettings
from tasks.deploy.experiment import experiment
gateway_maps.Admin.send_command = die  # the gateway's file is written by now, its memory is not
experiment.admit_version = lambda *_: None
use_case = use_cases(settings().params)["flights"].model_copy(update={"experiment": ExperimentSettings(**DECLARED)})
experiment.start_experiment(use_case, "8", outside, actor="ada", request_id="run 1")
"""


@pytest.fixture
def stood(outside, gateway) -> Iterator[Stand]:
    """The real gateway, with version 7 for everyone."""
    for found in stand():
        outside.__dict__["gateway"] = found.gateway
        found.gateway.set_route("flights", Route("7"))
        yield found


def test_through_the_real_gateway_entities_keep_their_version_and_all_come_back_at_the_end(use_case, outside, stood):
    start(use_case, outside)
    entities = [f"E{i}" for i in range(600)]
    first, second = stood.ask_all("flights", entities), stood.ask_all("flights", entities)
    assert first == second
    treated = sum(slot == "candidate" for slot in first.values())
    assert 0.22 < treated / 600 < 0.38
    experiment.judge_experiment(use_case, outside)
    assert (looks(outside)[-1]["requests"], looks(outside)[-1]["errors"]) == (2 * treated, 0)
    experiment.stop_experiment(use_case, outside, actor="ada", reason="enough")
    assert stood.gateway.route("flights") == Route("7")
    assert set(stood.ask_all("flights", entities[:100]).values()) == {"stable"}


def test_the_real_gateways_draws_keep_their_share_and_the_loss_of_a_fifth_of_the_rows_is_told(use_case, outside, stood):
    start(use_case, outside, ago=timedelta(hours=2))
    slots, at = stood.ask_all("flights", [f"E{i}" for i in range(4000)]), datetime.now(UTC) - timedelta(hours=1)
    plant(outside, (Answer(version="8" if s == "candidate" else "7", key=e, entity=e, at=at) for e, s in slots.items()))
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    assert looks(outside)[-1]["treatment_keys"] == list(slots.values()).count("candidate")
    outside.warehouse.execute("delete from online_answers where model_version = '8' and md5(entity_key) < '34'")
    assert "sample-ratio-mismatch" in experiment.judge_experiment(use_case, outside)
    assert stood.gateway.route("flights") == Route("7")


def test_a_request_that_its_version_fails_is_answered_by_no_other(use_case, outside, stood):
    """So it is in no log: the keys of a version that fails are fewer than were drawn."""
    start(use_case, outside)
    replies = [stood.gateway.ask("flights", {"do": "fail"}, entity=f"E{i}") for i in range(30)]
    assert {reply.status for reply in replies} == {503}
    records = stood.gateway.records("flights", datetime.now(UTC) - timedelta(minutes=5))
    assert {(record.slot, record.version) for record in records} == {("candidate", "8"), ("stable", "7")}


def test_killed_between_the_gateways_file_and_its_memory_the_next_look_gives_the_share(
    use_case, outside, settings, stood, monkeypatch
):
    for name, value in infra_gateway.gateway_variables(stood.home).items():
        monkeypatch.setenv(name, value)
    killed.run(settings, STARTS.replace("DECLARED", repr(DECLARED.model_dump())), killed=True)
    entities = [f"E{i}" for i in range(200)]
    assert set(stood.ask_all("flights", entities).values()) == {"stable"}
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    slots = list(stood.ask_all("flights", entities).values())
    assert 0.2 < slots.count("candidate") / 200 < 0.4
    assert ledger(outside) == ["experiment-start by ada"]
