"""Who was held is judged again on the days since: on more rows, for a smaller chance, and not for ever."""

import json
import secrets
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from adapters.errors import Missing
from adapters.registry import Registry
from models.ensemble import Ensemble, fit_ensemble
from pipeline.spec import LeakAlarm
from tasks.promote import promote
from tasks.promote.evaluate import judge_candidate
from tasks.promote.standing import StandingChallenger, choose_standing, find_standing, load_challenger
from tasks.train.split import split
from tests.models import synthetic
from tests.models.test_training import CPU, recipe
from tests.tasks import planted

NAME = f"flights_{secrets.token_hex(4)}"  # the registry is shared by all tests of a session
AS_OF = datetime(2013, 2, 11, tzinfo=UTC)
WEEK = timedelta(days=7)
GATE = {
    "slices": ("carrier",), "min_rows": 500, "min_slice_rows": 200, "resamples": 400, "max_latency_ms": 5000.0,
    "leak_alarm": LeakAlarm(metric="auc", above=0.95), "max_loss_chance": 1e-9,
}  # fmt: skip
HELD = {"action": "hold", "model_version": "4", "as_of": AS_OF, "champion": "2", "looks": 1, "has_failed": False}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return synthetic.table(12_000, seed=1, days=62)


@pytest.fixture
def use_case(use_case):
    """A gate that holds whatever is not sure beyond all doubt, until its dial is turned."""
    monitor = use_case.monitor.model_copy(update={"recalibration": None})
    gate = use_case.gate.model_copy(update=GATE)
    return use_case.model_copy(update={"name": NAME, "gate": gate, "monitor": monitor})


@pytest.fixture(scope="module")
def ensembles(mlflow_stack) -> dict[str, Ensemble]:
    rows = synthetic.table(6_000, seed=9, days=20)
    plans = {"weak": recipe(epochs=2, learning_rate=2e-3, seeds=(1, 2, 3)), "good": recipe(epochs=3, seeds=(1, 2, 3))}
    return {name: fit_ensemble(plan, rows, CPU) for name, plan in plans.items()}


@pytest.fixture
def room(outside, use_case, table, ensembles, tmp_path):
    """A champion that learnt little, and a dataset."""
    planted.forget_champion(outside.registry, NAME)
    return Room(outside, use_case, planted.dataset(outside, use_case, table), ensembles, tmp_path)


class Room:
    """Registers candidates, has them judged, and follows the verdict."""

    def __init__(self, outside, use_case, snapshot, ensembles, folder):
        self.outside, self.use_case, self.snapshot = outside, use_case, snapshot
        self.ensembles, self.folder = ensembles, folder
        self.champion = self.follow(self.register("weak", AS_OF)).champion_version

    def register(self, kind, as_of):
        key = secrets.token_hex(4)
        version = planted.model(
            self.outside.registry, self.use_case, self.folder / key, self.ensembles[kind], key=key,
            cutoff=split(self.use_case, as_of).cutoff, as_of=as_of,
        )  # fmt: skip
        return planted.candidate(self.outside.registry, self.use_case, version, self.snapshot, as_of)

    def judge(self, candidate, **gate):
        case = self.use_case.model_copy(update={"gate": self.use_case.gate.model_copy(update=gate)})
        return judge_candidate(case, candidate, self.outside)

    def follow(self, candidate, **gate):
        return promote.promote(self.use_case, self.judge(candidate, **gate), self.outside, actor="gate")

    def find(self, as_of=AS_OF + 2 * WEEK):
        return find_standing(self.use_case, self.champion, as_of, self.outside)

    def again(self, version, as_of):
        return load_challenger(self.use_case, version, self.snapshot.version, as_of, "again", "d", self.outside)


@pytest.mark.parametrize(
    ("changed", "stands"),
    [
        ({}, True),
        ({"looks": 3}, True),
        ({"looks": 4}, False),
        ({"champion": "1"}, False),
        ({"champion": None}, False),
        ({"has_failed": True}, False),
        ({"as_of": AS_OF + WEEK}, False),
        ({"as_of": AS_OF - 4 * WEEK}, False),
        *(({"action": other}, False) for other in ("promote", "refuse", "rollback", "superseded", "reject")),
    ],
)
def test_who_was_held_last_stands_against_that_champion_and_for_a_few_looks(changed, stands):
    expected = StandingChallenger(version="4", held_at=AS_OF, looks=changed.get("looks", 1))
    assert choose_standing(HELD | changed, "2", AS_OF - 3 * WEEK, AS_OF + WEEK) == (expected if stands else None)


def test_a_held_challenger_is_judged_again_on_its_holdout_and_the_days_since(room, table):
    assert room.find() is None
    held = room.register("good", AS_OF + WEEK)
    first = room.judge(held)
    assert first.answer == "hold", first.reasons
    assert room.follow(held).outcome == "held"
    assert room.find() == StandingChallenger(version=held.model_version, held_at=AS_OF + WEEK, looks=1)

    later = room.again(held.model_version, AS_OF + 3 * WEEK)
    assert (later.holdout_start, later.cutoff) == (held.holdout_start, held.cutoff)
    assert later.holdout_end == held.holdout_end + 2 * WEEK
    verdict = room.judge(later, max_loss_chance=0.2)
    assert (verdict.answer, verdict.champion_version) == ("promote", room.champion), verdict.reasons
    evidence, before = (json.loads(room.outside.lake.read(each.evidence_uri)) for each in (verdict, first))
    assert evidence["days"] == before["days"] + 14
    assert evidence["effect"]["standard_error"] < before["effect"]["standard_error"]
    assert evidence["expected"]["holdout_uses"] == 2
    assert evidence["expected"]["allowed_chance"] == pytest.approx(0.2 / 4), "the chance is shared among the looks"
    assert evidence["expected"]["from_effects"] == 0, "what it showed before is no evidence of others"
    released = promote.promote(room.use_case, verdict, room.outside, actor="gate")
    assert (released.champion_version, released.as_of) == (held.model_version, AS_OF + 3 * WEEK)
    assert room.find() is None


def test_held_again_and_again_it_stands_no_longer(room):
    held = room.register("good", AS_OF + WEEK)
    room.follow(held)
    for looks, weeks in ((1, 2), (2, 3), (3, 4)):
        assert room.find(AS_OF + weeks * WEEK).looks == looks
        assert room.follow(room.again(held.model_version, AS_OF + weeks * WEEK)).outcome == "held"
    assert room.find() is None


def test_another_one_that_is_judged_takes_its_place(room):
    room.follow(room.register("good", AS_OF + WEEK))
    other = room.register("good", AS_OF + 2 * WEEK)
    assert room.follow(other).outcome == "held"
    assert room.find(AS_OF + 3 * WEEK).version == other.model_version
    assert room.find(AS_OF + 2 * WEEK) is None, "of the same days nothing more is seen"


def test_it_stands_against_what_was_champion_and_against_no_other(room):
    room.follow(room.register("good", AS_OF + WEEK))
    assert find_standing(room.use_case, "another", AS_OF + 2 * WEEK, room.outside) is None


def test_a_version_of_a_later_data_time_is_no_challenger_of_this_one(room):
    held = room.register("good", AS_OF + 2 * WEEK)
    with pytest.raises(ValueError, match="was trained for"):
        room.again(held.model_version, AS_OF)


def test_a_look_that_failed_is_not_repeated_for_ever(room):
    """Else nothing would be trained any more: it takes the place of each training."""
    held = room.register("good", AS_OF + WEEK)
    room.follow(held)
    assert room.find() is not None
    with room.outside.warehouse.transaction() as at:
        at.execute(
            "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence)"
            " values ('d', %s, %s, '1', 'retrain', '{}', '{}')",
            (NAME, AS_OF + 2 * WEEK),
        )
        at.execute(
            "insert into retrains (decision_id, use_case, state, challenger) values ('d', %s, 'failed', %s)",
            (NAME, held.model_version),
        )
    assert room.find() is None


def test_who_learnt_other_features_or_cannot_be_had_does_not_stand(room, monkeypatch):
    held = room.register("good", AS_OF + WEEK)
    room.follow(held)
    with monkeypatch.context() as patched:
        patched.setattr("tasks.promote.standing._is_of_today", lambda *_: False)
        assert room.find() is None
        with pytest.raises(ValueError, match="learnt other features than are defined now"):
            room.again(held.model_version, AS_OF + 2 * WEEK)

    def lose(*_):
        raise Missing("nothing is stored")

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "download_bundle", lose)
        assert room.find() is None
    assert room.find().version == held.model_version
