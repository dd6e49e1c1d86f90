"""A champion recalibrated on a real registry and warehouse: once, judged as what it is made of, taken back."""

import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from adapters.registry import Registry
from models.ensemble import fit_ensemble
from models.recalibration import Recalibration
from pipeline.spec import LeakAlarm
from serving.predictor import Predictor
from tasks.common.ledger import current, find_judged_version, load_champions
from tasks.promote import intercept_limits, promote, recalibrate
from tasks.promote.evaluate import judge_candidate
from tasks.promote.recalibrate import ask_recalibration, recalibrate_champion, supersede_recalibration
from tasks.train import refit
from tasks.train.recalibration import measure_intercept
from tasks.train.split import split
from tests.models import synthetic
from tests.models.test_training import CPU, recipe
from tests.tasks import planted

NAME = f"flights_{secrets.token_hex(4)}"  # the registry is shared by all tests of a session
AS_OF = datetime(2013, 2, 11, tzinfo=UTC)
LATER = AS_OF + timedelta(days=28)
CHANGED = AS_OF  # from then on more is true than before
GATE = {
    "slices": ("carrier",), "min_rows": 1000, "min_slice_rows": 200, "resamples": 400, "max_latency_ms": 5000.0,
    "leak_alarm": LeakAlarm(metric="auc", above=0.95), "max_calibration_gap": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """A world in which, from one day on, a third of what was false is true."""
    rows = synthetic.table(20_000, seed=1, days=70)
    label, times = rows["label"].to_numpy().copy(), rows["prediction_time"].to_numpy()
    turned = np.random.default_rng(2).random(len(label)) < 1 / 3
    label[turned & (times >= np.datetime64(CHANGED.replace(tzinfo=None), "us"))] = 1.0
    return rows.set_column(rows.column_names.index("label"), "label", pa.array(label))


@pytest.fixture
def use_case(use_case):
    return use_case.model_copy(update={"name": NAME, "gate": use_case.gate.model_copy(update=GATE)})


@pytest.fixture(scope="module")
def ensemble(mlflow_stack):
    """What learnt well of the world of before."""
    return fit_ensemble(recipe(epochs=4, seeds=(1, 2, 3)), synthetic.table(6_000, seed=9, days=30), CPU)


@pytest.fixture
def room(ensemble, outside, use_case, table, tmp_path):
    """Registers models of this test's own; nobody is champion yet."""
    planted.forget_champion(outside.registry, NAME)
    return Room(outside, use_case, planted.dataset(outside, use_case, table), ensemble, tmp_path)


class Room:
    """A use case with a dataset, whose models are put in force as the gate says."""

    def __init__(self, outside, use_case, snapshot, ensemble, folder):
        self.outside, self.use_case, self.snapshot = outside, use_case, snapshot
        self.ensemble, self.folder = ensemble, folder

    def register(self, as_of, ensemble=None):
        key = secrets.token_hex(4)
        (self.folder / key / "monitoring").mkdir(parents=True)
        (self.folder / key / "monitoring/profile.json").write_text(json.dumps({"rows": 7, "of": key}))
        version = planted.model(
            self.outside.registry, self.use_case, self.folder / key, ensemble or self.ensemble, key=key,
            cutoff=split(self.use_case, as_of).cutoff,
        )  # fmt: skip
        return planted.candidate(self.outside.registry, self.use_case, version, self.snapshot, as_of)

    def judge(self, candidate, use_case=None):
        return judge_candidate(use_case or self.use_case, candidate, self.outside)

    def crown(self, candidate):
        verdict = self.judge(candidate)
        assert verdict.answer == "promote", verdict.reasons
        return promote.promote(self.use_case, verdict, self.outside, actor="gate").champion_version

    def measure(self, version, known_by=LATER):
        return measure_intercept(self.use_case, version, self.snapshot.version, known_by, self.outside)

    def ask(self, version, as_of=LATER, by=None):
        """As monitoring does, in the transaction of its decision; `by` is what to add instead of what is measured."""
        measured, decision = self.measure(version), f"{NAME}-{as_of:%Y%m%d}"
        if by is not None:
            measured = replace(measured, fitted=replace(measured.fitted, value=by))
        with self.outside.warehouse.transaction() as at:
            at.execute(
                "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence)"
                " values (%s, %s, %s, %s, 'ignore', %s, '{}')",
                (decision, NAME, as_of, version, ["quiet", "recalibrated: by hand"]),
            )
            supersede_recalibration(at, self.use_case)
            ask_recalibration(at, self.use_case, decision, version, as_of, measured, self.snapshot.version)
        return measured

    def recalibrate(self):
        return recalibrate_champion(self.use_case, self.outside)

    def load(self, version):
        known = self.outside.registry.version(NAME, version)
        return Predictor.load(self.outside.registry.download_bundle(NAME, version), sha256=known.bundle_sha256)

    def rows(self, what="state, model_version"):
        return self.outside.warehouse.query(f"select {what} from recalibrations order by decision_id")

    def ledger(self):
        return [row["action"] for row in self.outside.warehouse.query("select action from ledger order by entry")]


def test_a_champion_is_recalibrated_by_what_it_had_wrong_and_is_in_force_with_its_proof(room, table):
    version = room.crown(room.register(AS_OF))
    measured = room.ask(version)
    assert measured.before == 0
    assert measured.fitted.value > 0.3
    release = room.recalibrate()
    new = release.champion_version
    assert (release.outcome, release.previous_version, release.as_of) == ("recalibrated", version, LATER)
    raw, ours = room.load(version).predict(table), room.load(new).predict(table)
    assert np.array_equal(ours, Recalibration(intercept=measured.fitted.value).apply(raw))
    off = [table["label"].to_numpy()[-3000:].mean() - answers[-3000:].mean() for answers in (ours, raw)]
    assert 0 < off[0] < 0.7 * off[1]

    now = current(room.use_case, room.outside)
    assert (now.version, now.previous_version, now.network_version, now.as_of) == (new, version, version, LATER)
    assert room.outside.registry.aliases(NAME) == {"champion": new, "previous_champion": version}
    assert room.rows() == [{"state": "done", "model_version": new}]
    [entry] = room.outside.warehouse.query("select * from ledger where action = 'recalibrate'")
    assert (entry["model_version"], entry["champion_version"], entry["actor"]) == (new, version, "monitor")
    assert entry["reason"] == "recalibrated: by hand"
    assert entry["evidence"]["measured"]["fitted"]["value"] == measured.fitted.value
    assert room.outside.registry.profile(NAME, new) == room.outside.registry.profile(NAME, version)
    assert find_judged_version(room.use_case, new, room.outside) == version
    again = room.measure(new)
    assert again.before == measured.fitted.value == again.fitted.value
    assert again.gain == 0


def test_asked_again_it_says_the_same_and_does_nothing(room):
    room.ask(room.crown(room.register(AS_OF)))
    release = room.recalibrate()
    assert room.recalibrate() is None
    assert recalibrate.find_release_in_force(room.use_case, room.outside) == release
    assert room.ledger() == ["promote", "recalibrate"]
    assert current(room.use_case, room.outside).version == release.champion_version


@pytest.mark.parametrize("point", ["log_run", "register", "set_aliases"])
def test_killed_between_two_steps_and_run_again_there_is_one_version_and_one_entry(room, monkeypatch, point):
    version = room.crown(room.register(AS_OF))
    room.ask(version)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Registry, point, die)
        with pytest.raises(KeyboardInterrupt):
            room.recalibrate()
    room.recalibrate()
    [row] = room.rows()
    assert row["state"] == "done"
    assert current(room.use_case, room.outside).version == row["model_version"]
    promote.reconcile_aliases(room.use_case, room.outside)
    assert room.outside.registry.aliases(NAME)["champion"] == row["model_version"]
    assert room.ledger() == ["promote", "recalibrate"]
    found = room.outside.registry._client.search_model_versions(
        f"name = '{NAME}' and tags.`windsock.recalibration_of` = '{version}'"
    )
    assert [each.version for each in found] == [row["model_version"]]


def test_a_challenger_that_was_judged_before_is_promoted_after_it_for_the_network_is_the_same(room, table):
    version = room.crown(room.register(AS_OF))
    newest = fit_ensemble(recipe(epochs=4, seeds=(1, 2, 3)), table.slice(9_000, 8_000), CPU)
    challenger = room.register(LATER, newest)
    verdict = room.judge(challenger)
    assert (verdict.answer, verdict.champion_version) == ("promote", version), verdict.reasons
    room.ask(version)
    room.recalibrate()
    assert room.judge(challenger) == verdict, "asked again, the stored one"
    released = promote.promote(room.use_case, verdict, room.outside, actor="gate")
    assert (released.outcome, released.champion_version) == ("promoted", challenger.model_version)
    assert released.as_of == LATER


def test_a_training_that_takes_longer_than_a_partition_is_not_lost_to_a_recalibration(room, table):
    """Judged as of one week, promoted when the next one was decided on and the champion recalibrated."""
    version = room.crown(room.register(AS_OF))
    newest = fit_ensemble(recipe(epochs=4, seeds=(1, 2, 3)), table.slice(9_000, 8_000), CPU)
    challenger, next_week = room.register(LATER, newest), LATER + timedelta(days=7)
    verdict = room.judge(challenger)
    room.ask(version, next_week)
    room.recalibrate()
    assert promote.will_promote(room.use_case, verdict, room.outside, actor="gate")
    released = promote.promote(room.use_case, verdict, room.outside, actor="gate")
    assert (released.outcome, released.champion_version) == ("promoted", challenger.model_version)
    assert released.as_of == next_week, "what was decided on stays as it was scored"
    assert load_champions(room.use_case, room.outside)[-1].as_of == next_week


def test_of_another_network_that_is_champion_by_now_nothing_is_recalibrated(room, table):
    version = room.crown(room.register(AS_OF))
    room.ask(version)
    newest = fit_ensemble(recipe(epochs=4, seeds=(1, 2, 3)), table.slice(9_000, 8_000), CPU)
    crowned = room.crown(room.register(LATER, newest))
    assert room.recalibrate() is None
    assert room.rows() == [{"state": "superseded", "model_version": None}]
    assert current(room.use_case, room.outside).version == crowned
    assert "recalibrate" not in room.ledger()


def test_a_decision_that_comes_while_it_is_made_supersedes_it(room, monkeypatch):
    """Two runs of monitoring: one registers the version, and the other decides on the next partition meanwhile."""
    version = room.crown(room.register(AS_OF))
    room.ask(version)
    register = refit.register_once

    def register_late(*arguments):
        made = register(*arguments)
        room.ask(version, LATER + timedelta(days=7))
        return made

    with monkeypatch.context() as patched:
        patched.setattr(refit, "register_once", register_late)
        assert room.recalibrate() is None
    assert current(room.use_case, room.outside).version == version
    assert [row["state"] for row in room.rows()] == ["superseded", "pending"]
    assert room.recalibrate().as_of == LATER + timedelta(days=7)
    assert current(room.use_case, room.outside).network_version == version


def test_a_persons_rollback_meanwhile_supersedes_it(room, table):
    first = room.crown(room.register(AS_OF))
    second = room.crown(room.register(LATER, fit_ensemble(recipe(epochs=4), table.slice(9_000, 8_000), CPU)))
    room.ask(second, LATER + timedelta(days=7))
    promote.roll_back_champion(
        room.use_case, room.outside, actor="ann", reason="looks odd", as_of=LATER + timedelta(days=7)
    )
    assert room.recalibrate() is None
    assert room.rows() == [{"state": "superseded", "model_version": None}]
    assert current(room.use_case, room.outside).version == first


def test_switched_off_meanwhile_it_is_not_done(room):
    version = room.crown(room.register(AS_OF))
    room.ask(version)
    monitor = room.use_case.monitor.model_copy(update={"recalibration": None})
    off = room.use_case.model_copy(update={"monitor": monitor})
    assert recalibrate_champion(off, room.outside) is None
    assert room.rows() == [{"state": "superseded", "model_version": None}]


@pytest.mark.parametrize("outcome", ["held", "refused", "reverted", "full"])
def test_what_clients_were_spared_does_not_come_back_to_them_recalibrated(room, outcome):
    version = room.crown(room.register(AS_OF))
    room.outside.warehouse.execute(
        "insert into deployments (deployment_id, use_case, kind, version, revision, as_of, actor, reason, stage,"
        " outcome, finished_at) values ('d', %s, 'rollout', %s, 1, %s, 'gate', 'promoted', 'done', %s, now())",
        (NAME, version, AS_OF, outcome),
    )
    room.ask(version)
    assert (room.recalibrate() is None) == (outcome != "full")
    assert [row["state"] for row in room.rows()] == ["done" if outcome == "full" else "superseded"]


def test_what_was_asked_last_is_done_and_what_was_asked_before_is_superseded(room):
    version = room.crown(room.register(AS_OF))
    room.ask(version)
    room.ask(version, LATER + timedelta(days=7))
    release = room.recalibrate()
    assert [row["state"] for row in room.rows()] == ["superseded", "done"]
    assert release.as_of == LATER + timedelta(days=7)


def test_what_was_decided_on_meanwhile_stays_as_it_was_scored(room):
    version = room.crown(room.register(AS_OF))
    room.ask(version)
    next_week = LATER + timedelta(days=7)
    room.outside.warehouse.execute(
        "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence)"
        " values ('next', %s, %s, %s, 'ignore', '{}', '{}')",
        (NAME, next_week, version),
    )
    assert room.recalibrate().as_of == next_week
    assert (
        room.outside.registry.version(NAME, room.rows()[0]["model_version"]).tags["windsock.recalibrated_as_of"]
        == LATER.isoformat()
    ), "what it knew"


def test_a_rollback_takes_it_back_and_another_goes_to_who_was_champion_before(room, table):
    first = room.crown(room.register(AS_OF))
    second = room.crown(room.register(LATER, fit_ensemble(recipe(epochs=4), table.slice(9_000, 8_000), CPU)))
    for days in (3, 5, 7):
        room.ask(second, LATER + timedelta(days=days), by=days / 10)
        room.recalibrate()

    def roll_back(days):
        moment = LATER + timedelta(days=days)
        return promote.roll_back_champion(room.use_case, room.outside, actor="ann", reason="looks odd", as_of=moment)

    assert (roll_back(8).champion_version, roll_back(9).champion_version) == (second, first)
    networks = [champion.network_version for champion in load_champions(room.use_case, room.outside)]
    assert networks == [first, *[second] * 5, first], "however often it was recalibrated, two steps"


def test_the_gate_asks_the_champion_as_it_could_have_been_recalibrated_by_the_holdouts_beginning(room, monkeypatch):
    """An equal model that knows the new level gains by that alone, which the champion will have without it."""
    version = room.crown(room.register(AS_OF))
    challenger = room.register(LATER)
    measured = room.measure(version, split(room.use_case, LATER).holdout_start)
    evidence = json.loads(room.outside.lake.read(room.judge(challenger).evidence_uri))
    assert evidence["champion"] == {
        "version": version, "cutoff": split(room.use_case, AS_OF).cutoff.isoformat(),
        "intercept": measured.fitted.value,
    }  # fmt: skip
    assert measured.fitted.value > 0.1
    assert evidence["effect"]["value"] < -0.005, "the same networks, without the champion's intercept"
    not_done = {
        "off": {"recalibration": None},
        "too few labels": {"min_labelled": 10**6},
        "not worth it": {"recalibration": room.use_case.monitor.recalibration.model_copy(update={"min_gain": 1.0})},
    }
    for change in not_done.values():
        case = room.use_case.model_copy(update={"monitor": room.use_case.monitor.model_copy(update=change)})
        assert room.judge(room.register(LATER), case).effect == 0, "where monitoring would not, the same answers"
    monkeypatch.setattr(intercept_limits, "_MOST_SPREADS", 0.1)
    assert room.judge(room.register(LATER)).effect == 0, "too far off"


def test_labels_that_come_early_do_not_decide_for_those_that_have_not_come(room, outside, use_case, table):
    """What is true is known after three hours, what is false at the end of its lag: the newest day says only true."""
    version = room.crown(room.register(AS_OF))
    times = table["prediction_time"].to_numpy()
    delay = np.where(table["label"].to_numpy() > 0, np.timedelta64(3, "h"), np.timedelta64(26, "h"))
    early = table.set_column(
        table.column_names.index("label_time"), "label_time", pa.array(times + delay, pa.timestamp("us", "UTC"))
    )
    snapshot = planted.dataset(outside, use_case, early)
    told = measure_intercept(use_case, version, snapshot.version, LATER, outside)
    assert told == room.measure(version)
    impatient = use_case.model_copy(
        update={"time": use_case.time.model_copy(update={"label_delay_hours": 0, "lead_minutes": 0})}
    )
    hurried = measure_intercept(impatient, version, snapshot.version, LATER, outside)
    assert hurried.fitted.rows > told.fitted.rows
    assert hurried.fitted.value > told.fitted.value, "sabotage"


def test_only_rows_that_a_version_has_not_learnt_count(room):
    version = room.crown(room.register(AS_OF))
    cutoff = split(room.use_case, AS_OF).cutoff
    assert room.measure(version, cutoff).fitted.rows == 0
    days = room.measure(version, cutoff + timedelta(days=10)).fitted.days
    assert days in {9, 10}
