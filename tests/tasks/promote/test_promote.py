"""Promotion happens once, to one, in order, with a trace; the registry follows."""

import secrets
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg2.errors
import pytest

from adapters.connect import Outside
from adapters.registry import Registry, RunRecord, folder_sha256
from pipeline.handoffs import RefittedWinner, Verdict
from pipeline.spec import UseCase
from tasks.common.ledger import champion_at, find_judged_version, load_champions
from tasks.promote import promote
from tests.tasks import killed, planted

APRIL = datetime(2013, 4, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


NAME = f"flights_{secrets.token_hex(4)}"  # the registry is shared by all tests of a session


@pytest.fixture
def use_case(use_case) -> UseCase:
    return use_case.model_copy(update={"name": NAME})


@pytest.fixture(scope="module")
def registered(mlflow_stack, tmp_path_factory) -> Registry:
    """A registry with four model versions."""
    registry = Registry(mlflow_stack.home().url("mlflow"), tmp_path_factory.mktemp("registry"))
    for n in range(4):
        folder = tmp_path_factory.mktemp("run")
        (folder / "bundle").mkdir()
        (folder / "bundle" / "weights").write_text(str(n))
        record = RunRecord(
            use_case=NAME, key=str(n), name=str(n), dataset_version="d", params={}, tags={}, metrics={}, curves={},
            artifacts=folder, bundle_sha256=folder_sha256(folder / "bundle"),
        )  # fmt: skip
        registry.register(NAME, registry.log_run(record))
    return registry


@pytest.fixture
def versions(registered) -> list[str]:
    """The four versions, none of them champion."""
    planted.forget_champion(registered, NAME)
    return ["1", "2", "3", "4"]


def verdict(use_case: UseCase, candidate: str, champion: str | None, *, answer="promote", as_of=APRIL, risk="low"):
    return Verdict(
        verdict_id=f"{use_case.name}-{candidate}-{champion}-{as_of:%m%d}",
        use_case=use_case.name,
        candidate_version=candidate,
        champion_version=champion,
        answer=answer,
        reasons=["because"],
        effect=0.01,
        effect_low=0.005,
        effect_high=0.015,
        evidence_uri="s3://lake/evidence",
        as_of=as_of,
        needs_approval=risk == "high",
    )


def ledger(outside: Outside, use_case: UseCase) -> list[tuple[str, str, str | None]]:
    rows = outside.warehouse.query("select * from ledger where use_case = %s order by entry", (use_case.name,))
    return [(row["action"], row["model_version"], row["champion_version"]) for row in rows]


def test_a_promotion_sets_row_ledger_and_aliases_and_again_changes_nothing(outside, use_case, versions):
    first = promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    second = promote.promote(use_case, verdict(use_case, "2", "1", as_of=APRIL + WEEK), outside, actor="gate")
    assert (first.outcome, first.champion_version, first.previous_version, first.revision) == ("promoted", "1", None, 1)
    assert (second.outcome, second.champion_version, second.previous_version, second.revision) == (
        "promoted",
        "2",
        "1",
        2,
    )
    assert outside.registry.aliases(use_case.name) == {"champion": "2", "previous_champion": "1"}
    again = promote.promote(use_case, verdict(use_case, "1", None), outside, actor="someone else")
    assert again == first
    assert ledger(outside, use_case) == [("promote", "1", None), ("promote", "2", "1")]
    assert promote.current(use_case, outside).version == "2"


def refit_of(use_case: UseCase, judged: str, version: str | None, *reasons: str) -> RefittedWinner:
    return RefittedWinner(
        use_case=use_case.name, judged_version=judged, model_version=version, reasons=list(reasons), measured={}
    )


def test_a_refitted_winner_serves_the_ledger_names_its_twin_and_a_rollback_brings_back_what_served(
    outside, use_case, versions
):
    first, second = verdict(use_case, "1", None), verdict(use_case, "3", "2", as_of=APRIL + WEEK)
    for _ in range(2):
        release = promote.promote(use_case, first, outside, actor="gate", refitted=refit_of(use_case, "1", "2"))
        assert (release.champion_version, release.revision) == ("2", 1)
    stale = replace(second, champion_version="1", verdict_id="stale")
    assert promote.promote(use_case, stale, outside, actor="gate").outcome == "superseded", "2 serves, not its twin"
    release = promote.promote(use_case, second, outside, actor="gate", refitted=refit_of(use_case, "3", "4"))
    assert (release.champion_version, release.previous_version) == ("4", "2")
    assert outside.registry.aliases(use_case.name) == {"champion": "4", "previous_champion": "2"}
    assert ledger(outside, use_case) == [("promote", "2", None), ("superseded", "3", "2"), ("promote", "4", "2")]
    rows = outside.warehouse.query("select reason, evidence from ledger where action = 'promote' order by entry")
    assert [row["evidence"]["judged_version"] for row in rows] == ["1", "3"]
    assert [row["evidence"]["verdict"]["candidate_version"] for row in rows] == ["1", "3"]
    assert rows[1]["reason"] == "because; version 3 was judged, and refitted on all that was known"

    back = promote.roll_back_champion(use_case, outside, actor="Ada", reason="late alarms", as_of=APRIL + 2 * WEEK)
    assert (back.champion_version, back.previous_version) == ("2", None)
    assert {each: find_judged_version(use_case, each, outside) for each in "24"} == {"2": "1", "4": "3"}


@pytest.mark.parametrize("version", ["2", None])
def test_a_winner_whose_refit_was_turned_down_is_promoted_as_it_was_judged(outside, use_case, versions, version):
    refitted = refit_of(use_case, "1", version, "worse by 0.1")
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate", refitted=refitted)
    assert ledger(outside, use_case) == [("promote", "1", None)]
    assert find_judged_version(use_case, "1", outside) == "1"
    [row] = outside.warehouse.query("select reason from ledger")
    assert row["reason"] == "because; as it was judged, for its refit was turned down: worse by 0.1"


def test_a_champion_of_before_was_judged_itself(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    assert find_judged_version(use_case, "1", outside) == "1"


def test_a_refit_of_another_version_than_was_judged_is_refused(outside, use_case, versions):
    with pytest.raises(ValueError, match="version 3 was refitted, 1 was judged"):
        promote.promote(
            use_case, verdict(use_case, "1", None), outside, actor="gate", refitted=refit_of(use_case, "3", "4")
        )
    assert promote.current(use_case, outside) is None


@pytest.mark.parametrize(
    ("changes", "approved", "expected"),
    [
        ({}, None, True), ({"answer": "hold"}, None, False), ({}, False, False),
        ({"needs_approval": True}, None, False), ({"needs_approval": True}, True, True),
        ({"champion_version": "1"}, None, False),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("versions")
def test_only_what_would_be_promoted_is_trained_once_more(outside, use_case, changes, approved, expected):
    asked = replace(verdict(use_case, "2", None), **changes)
    assert promote.will_promote(use_case, asked, outside, actor="Ada", approved=approved) is expected
    outcome = promote.promote(use_case, asked, outside, actor="Ada", approved=approved).outcome
    assert (outcome == "promoted") is expected
    assert not promote.will_promote(use_case, asked, outside, actor="Ada", approved=approved), "it is done"


@pytest.mark.parametrize(
    ("answer", "outcome"), [("hold", "held"), ("refuse", "refused"), ("need-more-data", "need-more-data")]
)
def test_a_refusal_leaves_a_trace_and_the_champion(outside, use_case, versions, answer, outcome):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    refused = verdict(use_case, "2", "1", answer=answer, as_of=APRIL + WEEK)
    for _ in range(2):
        release = promote.promote(use_case, refused, outside, actor="gate")
        assert (release.outcome, release.champion_version, release.revision) == (outcome, "1", 1)
    assert ledger(outside, use_case) == [("promote", "1", None), (answer, "2", "1")]


def test_of_promotions_at_once_exactly_one_wins_and_the_others_are_superseded(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    rivals = [verdict(use_case, v, "1", as_of=APRIL + WEEK) for v in ("2", "3", "4")]
    together, releases = threading.Barrier(len(rivals) * 2), []

    def attempt(rival):
        together.wait()
        releases.append(promote.promote(use_case, rival, outside, actor="gate"))

    threads = [threading.Thread(target=attempt, args=(rival,)) for rival in rivals * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.outcome for r in releases) == ["promoted"] * 2 + ["superseded"] * 4, "each verdict was tried twice"
    champion = promote.current(use_case, outside)
    assert {r.champion_version for r in releases} == {champion.version}
    assert champion.revision == 2
    assert sorted(action for action, _, _ in ledger(outside, use_case)) == ["promote"] * 2 + ["superseded"] * 2
    assert outside.registry.aliases(use_case.name) == {"champion": champion.version, "previous_champion": "1"}


def test_the_loser_of_a_race_judged_again_against_the_winner_may_still_win(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    promote.promote(use_case, verdict(use_case, "2", "1"), outside, actor="gate")
    assert promote.promote(use_case, verdict(use_case, "3", "1"), outside, actor="gate").outcome == "superseded"
    assert promote.promote(use_case, verdict(use_case, "3", "2"), outside, actor="gate").outcome == "promoted"


def test_a_verdict_older_than_the_champion_is_superseded(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None, as_of=APRIL + WEEK), outside, actor="gate")
    late = promote.promote(use_case, verdict(use_case, "2", "1", as_of=APRIL), outside, actor="gate")
    assert (late.outcome, late.champion_version) == ("superseded", "1")


@pytest.mark.parametrize(
    "statement",
    ["update ledger set actor = 'me'", "delete from ledger", "truncate ledger"],
)
def test_the_ledger_cannot_be_rewritten(outside, use_case, versions, statement):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    with pytest.raises(psycopg2.errors.RestrictViolation, match="append-only"), outside.warehouse.transaction() as at:
        at.execute(statement)
    assert ledger(outside, use_case) == [("promote", "1", None)]


@pytest.mark.parametrize(
    ("approved", "actions"), [(True, ["approve", "promote"]), (False, ["reject"]), (None, ["reject"])]
)
def test_high_risk_is_promoted_by_a_named_person_and_by_nothing_else(outside, use_case, versions, approved, actions):
    use_case = use_case.model_copy(update={"risk": "high"})
    outcome = "promoted" if approved else "rejected"
    forgetful = verdict(use_case, "1", None, risk="low")  # what the verdict says of approval cannot lower the risk
    for _ in range(2):
        assert promote.promote(use_case, forgetful, outside, actor="Ada", approved=approved).outcome == outcome
    rows = outside.warehouse.query(
        "select action, actor from ledger where use_case = %s order by entry", (use_case.name,)
    )
    assert rows == [{"action": action, "actor": "Ada"} for action in actions]
    assert (promote.current(use_case, outside) is not None) == (outcome == "promoted")


@pytest.mark.parametrize("actor", ["", " ", "Anonymous", "anonymous", "nobody (approval expired)"])
def test_an_approval_without_a_name_is_refused(outside, use_case, versions, actor):
    use_case = use_case.model_copy(update={"risk": "high"})
    with pytest.raises(ValueError, match=r"actor is empty|named person"):
        promote.promote(use_case, verdict(use_case, "1", None), outside, actor=actor, approved=True)
    assert ledger(outside, use_case) == []


def test_a_rejection_is_final_for_its_verdict(outside, use_case, versions):
    use_case = use_case.model_copy(update={"risk": "high"})
    asked = verdict(use_case, "1", None)
    promote.promote(use_case, asked, outside, actor="nobody (approval expired)", approved=False)
    assert promote.promote(use_case, asked, outside, actor="Ada", approved=True).outcome == "rejected"


def test_a_person_may_also_refuse_what_needs_no_approval(outside, use_case, versions):
    assert (
        promote.promote(use_case, verdict(use_case, "1", None), outside, actor="Ada", approved=False).outcome
        == "rejected"
    )


def test_a_dry_run_writes_nothing(outside, use_case, versions):
    release = promote.promote(use_case, verdict(use_case, "1", None), outside, actor="Ada", dry_run=True)
    assert (release.outcome, release.champion_version) == ("dry-run", None)
    assert ledger(outside, use_case) == []
    assert outside.registry.aliases(use_case.name) == {}


def test_rollback_puts_the_previous_champion_back_and_then_the_one_before_it(outside, use_case, versions):
    for n, candidate in enumerate("123"):
        champion = str(n) if n else None
        promote.promote(use_case, verdict(use_case, candidate, champion, as_of=APRIL + n * WEEK), outside, actor="gate")
    when = APRIL + 3 * WEEK
    back = promote.roll_back_champion(use_case, outside, actor="Ada", reason="late alarms", as_of=when)
    assert (back.outcome, back.champion_version, back.previous_version, back.revision) == ("rolled-back", "2", "1", 4)
    assert outside.registry.aliases(use_case.name) == {"champion": "2", "previous_champion": "1"}
    retried = promote.roll_back_champion(use_case, outside, actor="Ada", reason="late alarms", as_of=when)
    assert retried == back, "a retried task does not go back twice"
    once_more = promote.roll_back_champion(
        use_case, outside, actor="Ada", reason="late alarms", as_of=when, request_id="run 2"
    )
    assert (once_more.champion_version, once_more.previous_version) == ("1", None)
    assert outside.registry.aliases(use_case.name) == {"champion": "1"}
    with pytest.raises(ValueError, match="no previous champion"):
        promote.roll_back_champion(use_case, outside, actor="Ada", reason="again", as_of=when)
    assert [action for action, _, _ in ledger(outside, use_case)] == ["promote"] * 3 + ["rollback"] * 2


def test_rollback_needs_a_champion_a_name_a_reason_and_a_time_not_before_the_champion(outside, use_case, versions):
    with pytest.raises(ValueError, match="no previous champion"):
        promote.roll_back_champion(use_case, outside, actor="Ada", reason="why not", as_of=APRIL)
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    promote.promote(use_case, verdict(use_case, "2", "1", as_of=APRIL + WEEK), outside, actor="gate")
    with pytest.raises(ValueError, match="named person"):
        promote.roll_back_champion(use_case, outside, actor="Anonymous", reason="why not", as_of=APRIL + WEEK)
    with pytest.raises(ValueError, match="not yet"):
        promote.roll_back_champion(use_case, outside, actor="Ada", reason="why not", as_of=APRIL)
    assert promote.current(use_case, outside).version == "2"


def test_the_champion_of_a_moment_is_read_from_the_ledger(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    promote.promote(use_case, verdict(use_case, "2", "1", as_of=APRIL + WEEK), outside, actor="gate")
    promote.promote(use_case, verdict(use_case, "3", "2", answer="hold", as_of=APRIL + 2 * WEEK), outside, actor="gate")
    promote.roll_back_champion(use_case, outside, actor="Ada", reason="late alarms", as_of=APRIL + 3 * WEEK)
    moments = [APRIL - WEEK, APRIL, APRIL + WEEK - timedelta(seconds=1), APRIL + WEEK, APRIL + 3 * WEEK]
    found = [champion_at(load_champions(use_case, outside), moment) for moment in moments]
    assert [c and c.version for c in found] == [None, "1", "1", "2", "1"]
    assert [c and c.previous_version for c in found] == [None, None, None, "1", None]
    assert [c and c.revision for c in found] == [None, 1, 1, 2, 3]


_KILLED_BEFORE_THE_ALIASES = """
from tests.tasks.promote.test_promote import verdict
from tasks.promote import promote
from adapters.registry import Registry
Registry.set_aliases = die
case = use_cases(settings().params)["flights"].model_copy(update={"name": NAME})
promote.promote(case, verdict(case, "2", "1", as_of=datetime(2013, 4, 8, tzinfo=UTC)), outside, actor="gate")
"""


def test_a_kill_between_commit_and_aliases_is_mended_by_the_next_call(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    killed.run(outside.settings, f"NAME = {use_case.name!r}\n" + _KILLED_BEFORE_THE_ALIASES, killed=True)
    assert promote.current(use_case, outside).version == "2"
    assert outside.registry.aliases(use_case.name) == {"champion": "1"}, "the mirror is behind"
    retried = promote.promote(use_case, verdict(use_case, "2", "1", as_of=APRIL + WEEK), outside, actor="gate")
    assert (retried.outcome, retried.revision) == ("promoted", 2)
    assert outside.registry.aliases(use_case.name) == {"champion": "2", "previous_champion": "1"}
    assert ledger(outside, use_case) == [("promote", "1", None), ("promote", "2", "1")]


def test_aliases_that_someone_else_moved_are_put_right(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    outside.registry.set_aliases(use_case.name, "3", "4")
    assert promote.reconcile_aliases(use_case, outside)
    assert outside.registry.aliases(use_case.name) == {"champion": "1"}
    assert not promote.reconcile_aliases(use_case, outside)


def test_with_the_registry_down_the_champion_stays_and_the_work_waits(outside, use_case, versions):
    promote.promote(use_case, verdict(use_case, "1", None), outside, actor="gate")
    down = Outside(replace(outside.settings, tracking_uri="http://127.0.0.1:9"))
    challenge = verdict(use_case, "2", "1", as_of=APRIL + WEEK)
    with pytest.raises(ConnectionError):
        promote.promote(use_case, challenge, down, actor="gate")
    assert promote.current(use_case, outside).version == "1"
    assert ledger(outside, use_case) == [("promote", "1", None)]
    assert promote.promote(use_case, challenge, outside, actor="gate").outcome == "promoted"


def test_a_version_that_is_not_registered_cannot_become_champion(outside, use_case, versions):
    with pytest.raises(ValueError, match="no model version '99'"):
        promote.promote(use_case, verdict(use_case, "99", None), outside, actor="gate")
    assert promote.current(use_case, outside) is None


def test_a_verdict_about_another_use_case_is_refused(outside, use_case, versions):
    with pytest.raises(ValueError, match="is about"):
        promote.promote(use_case, replace(verdict(use_case, "1", None), use_case="other"), outside, actor="gate")
