"""A winner is fitted anew on all that was known and serves; what it is judged by later is the version it was before."""

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from adapters.registry import Registry
from models.ensemble import Recipe, fit_ensemble
from pipeline.handoffs import Candidate
from pipeline.settings import REPOSITORY
from pipeline.spec import LeakAlarm, use_cases
from serving.predictor import Predictor
from tasks.common.ledger import find_judged_version
from tasks.promote import opponent, promote
from tasks.promote.evaluate import judge_candidate
from tasks.promote.gate_checks import Scored
from tasks.promote.winner import list_disagreements, measure_agreement, refit_winner
from tasks.train import refit as refitting
from tasks.train import winner as training
from tasks.train.split import split
from tests.models import synthetic
from tests.models.test_training import CPU, recipe
from tests.tasks import killed, planted

NAME = f"flights_{secrets.token_hex(4)}"  # the registry is shared by all tests of a session
AS_OF = datetime(2013, 2, 11, tzinfo=UTC)
LATER = AS_OF + timedelta(days=3)
GATE = {
    "slices": ("carrier",), "min_rows": 1000, "min_slice_rows": 200, "resamples": 400, "max_latency_ms": 5000.0,
    "leak_alarm": LeakAlarm(metric="auc", above=0.92),
}  # fmt: skip
KINDS: dict[str, tuple[Recipe, datetime]] = {
    "weak": (recipe(epochs=1, learning_rate=2e-3, seeds=(1, 2, 3)), AS_OF),
    "good": (recipe(epochs=4, seeds=(1, 2, 3)), AS_OF),
    "challenger": (recipe(epochs=4, seeds=(1, 2, 3)), LATER),
}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return synthetic.table(10_000, seed=1, days=45)


def known_rows(table: pa.Table, moment: datetime, *, until: datetime) -> pa.Table:
    """Rows predicted before a moment, by labels known at another."""
    kind = pa.timestamp("us", "UTC")
    known = pc.less_equal(table["label_time"], pa.scalar(moment, kind))
    return table.filter(pc.and_(known, pc.less(table["prediction_time"], pa.scalar(until, kind))))


@pytest.fixture
def use_case(use_case):
    return use_case.model_copy(update={"name": NAME, "gate": use_case.gate.model_copy(update=GATE)})


@pytest.fixture(scope="module")
def ensembles(mlflow_stack, table):
    """What learnt little and what learnt well as of one data time, and what learnt well as of three days later."""
    case = use_cases(REPOSITORY / "params.yaml")["flights"]
    found = {}
    for kind, (plan, as_of) in KINDS.items():
        moments = split(case, as_of)
        found[kind] = fit_ensemble(plan, known_rows(table, moments.cutoff, until=moments.fit_until), CPU)
    return found


@pytest.fixture
def register(ensembles, outside, use_case, table, tmp_path) -> Callable[[str], Candidate]:
    """Makes one of them a candidate of this test's own, nobody being champion yet."""
    planted.forget_champion(outside.registry, NAME)
    snapshot = planted.dataset(outside, use_case, table)

    def register(kind: str) -> Candidate:
        (plan, as_of), key = KINDS[kind], f"{kind}-{secrets.token_hex(4)}"
        version = planted.model(
            outside.registry, use_case, tmp_path / key, ensembles[kind], key=key,
            cutoff=split(use_case, as_of).cutoff, recipe=plan,
        )  # fmt: skip
        return planted.candidate(outside.registry, use_case, version, snapshot, as_of)

    return register


def crown(use_case, candidate, outside, refitted=None):
    verdict = judge_candidate(use_case, candidate, outside)
    assert verdict.answer == "promote", verdict.reasons
    return promote.promote(use_case, verdict, outside, actor="gate", refitted=refitted)


def load(outside, version):
    return Predictor.load(outside.registry.download_bundle(NAME, version))


def list_refits(outside, candidate):
    query = f"name = '{NAME}' and tags.`windsock.judged_twin` = '{candidate.model_version}'"
    found = mlflow.MlflowClient(outside.settings.tracking_uri).search_model_versions(query)
    return [version.version for version in found]


def open_alerts(outside):
    return outside.warehouse.query("select tier, fingerprint, body from alerts where resolved_at is null")


def test_a_winner_learns_all_that_was_known_serves_and_names_its_twin(outside, use_case, register, table):
    candidate = register("good")
    refitted = refit_winner(use_case, candidate, outside)
    assert refitted.reasons == []
    assert crown(use_case, candidate, outside, refitted).champion_version == refitted.model_version
    assert refitted.model_version != candidate.model_version
    assert find_judged_version(use_case, refitted.model_version, outside) == candidate.model_version
    assert outside.registry.aliases(NAME)["champion"] == refitted.model_version
    tags = outside.registry.version(NAME, refitted.model_version).tags
    assert tags["windsock.judged_twin"] == candidate.model_version

    end = AS_OF - use_case.time.label_lag
    rows = known_rows(table, AS_OF, until=end)
    judged, serves = load(outside, candidate.model_version), load(outside, refitted.model_version)
    assert serves.card["recipe"] == judged.card["recipe"]
    data = serves.card["data"]
    assert (data["end"], data["cutoff"], data["rows"]) == (end.isoformat(), AS_OF.isoformat(), rows.num_rows)
    expected = fit_ensemble(KINDS["good"][0], rows, CPU)
    again = Predictor(replace(serves._bundle, encoder=expected.encoder, members=expected.members))
    assert np.array_equal(serves.predict(table), again.predict(table))
    assert outside.registry.profile(NAME, refitted.model_version)["rows"] == rows.num_rows
    costs = outside.warehouse.query("select model_version, step from costs")
    assert costs == [{"model_version": refitted.model_version, "step": "refit"}]
    assert open_alerts(outside) == []
    assert judge_candidate(use_case, candidate, outside).champion_version is None, "the verdict that made it champion"
    with pytest.raises(ValueError, match="against itself"):
        judge_candidate(use_case, replace(candidate, snapshot_version="another"), outside)


def test_a_challenger_is_judged_days_after_a_promotion_against_the_champions_twin(outside, use_case, register):
    weak, challenger = register("weak"), register("challenger")
    refitted = refit_winner(use_case, weak, outside)
    crown(use_case, weak, outside, refitted)
    verdict = judge_candidate(use_case, challenger, outside)
    champion, twin = refitted.model_version, weak.model_version
    assert (verdict.answer, verdict.champion_version) == ("promote", champion), verdict.reasons
    assert f"champion {champion} was compared by its judged twin, version {twin}" in verdict.reasons
    evidence = json.loads(outside.lake.read(verdict.evidence_uri))
    assert evidence["champion"]["version"] == twin
    assert evidence["metrics"].keys() == {twin, challenger.model_version}
    next_one = refit_winner(use_case, challenger, outside)
    released = promote.promote(use_case, verdict, outside, actor="gate", refitted=next_one)
    assert (released.champion_version, released.previous_version) == (next_one.model_version, champion)
    assert judge_candidate(use_case, challenger, outside) == verdict, "asked again, the stored one"


def test_sabotage_the_refitted_champion_itself_in_its_twins_place_is_refused_as_overlapping(
    outside, use_case, register, monkeypatch
):
    weak = register("weak")
    crown(use_case, weak, outside, refit_winner(use_case, weak, outside))
    monkeypatch.setattr(opponent, "find_judged_version", lambda _case, version, _outside: version)
    verdict = judge_candidate(use_case, register("challenger"), outside)
    assert verdict.answer == "refuse"
    assert "but the champion (version" in verdict.reasons[0]
    assert f"has learnt from labels known by {AS_OF:%Y-%m-%d}" in verdict.reasons[0]


def shuffle_labels(plan, rows, use_case):
    """Sabotage: what is fitted learns from noise."""
    label = np.random.default_rng(0).permutation(rows.column("label").to_numpy())
    noise = rows.set_column(rows.column_names.index("label"), "label", pa.array(label))
    return refitting.fit_with_profile(plan, noise, use_case)


def test_sabotage_a_refit_on_shuffled_labels_is_not_promoted_and_told_and_the_next_good_one_ends_that(
    outside, use_case, register, monkeypatch
):
    good = register("good")
    with monkeypatch.context() as patched:
        patched.setattr(training, "fit_with_profile", shuffle_labels)
        refitted = refit_winner(use_case, good, outside)
    assert "worse by" in refitted.reasons[0]
    [alert] = open_alerts(outside)
    assert (alert["tier"], alert["fingerprint"]) == ("warning", f"{NAME}/gate/refit-disagrees")
    assert f"version {good.model_version} is promoted as it was judged: worse by" in alert["body"]
    assert crown(use_case, good, outside, refitted).champion_version == good.model_version
    assert find_judged_version(use_case, good.model_version, outside) == good.model_version
    [row] = outside.warehouse.query("select evidence from ledger")
    assert row["evidence"]["refitted"]["reasons"] == refitted.reasons

    assert refit_winner(use_case, register("good"), outside).reasons == []
    assert open_alerts(outside) == []


def fit_nan(plan, rows, device):
    """Sabotage: a weight that is none, after a last step with a finite loss."""
    ensemble = fit_ensemble(plan, rows, device)
    with torch.no_grad():
        next(ensemble.members[0].parameters()).fill_(float("nan"))
    return ensemble


def fit_too_fast(plan, rows, device):
    """Sabotage: steps that lead nowhere."""
    return fit_ensemble(replace(plan, learning_rate=1e30), rows, device)


@pytest.mark.parametrize("fault", [fit_nan, fit_too_fast])
def test_sabotage_a_refit_that_comes_to_nan_registers_nothing_and_the_winner_is_promoted_as_it_was_judged(
    outside, use_case, register, monkeypatch, fault
):
    good = register("good")
    monkeypatch.setattr(refitting, "fit_ensemble", fault)
    refitted = refit_winner(use_case, good, outside)
    assert (refitted.model_version, refitted.promoted_version) == (None, good.model_version)
    assert [alert["tier"] for alert in open_alerts(outside)] == ["warning"]
    assert list_refits(outside, good) == []
    assert crown(use_case, good, outside, refitted).champion_version == good.model_version


def test_a_retried_refit_says_the_same_and_trains_nothing(outside, use_case, register, monkeypatch):
    good = register("good")
    first = refit_winner(use_case, good, outside)
    monkeypatch.setattr(Registry, "log_run", None)
    assert refit_winner(use_case, good, outside) == first


_KILLED = """
from adapters.registry import Registry
from tasks.build_features import dataset
from tasks.promote import winner
from tests.tasks import planted
from tests.tasks.promote.test_winner import AS_OF, GATE
planted.define(NAME)
case = use_cases(settings().params)["flights"]
case = case.model_copy(update={"name": NAME, "gate": case.gate.model_copy(update=GATE)})
register = Registry.register
def register_and_die(*arguments):
    register(*arguments)
    die()
Registry.register = register_and_die if POINT == "after registering" else die
snapshot = dataset.latest_snapshot(case, outside)
winner.refit_winner(case, planted.candidate(outside.registry, case, VERSION, snapshot, AS_OF), outside)
"""


@pytest.mark.parametrize("point", ["before registering", "after registering"])
def test_a_refit_killed_with_9_and_tried_again_is_registered_once_with_its_costs(outside, use_case, register, point):
    good = register("good")
    told = f"NAME, VERSION, POINT = {NAME!r}, {good.model_version!r}, {point!r}\n"
    killed.run(outside.settings, told + _KILLED, killed=True)
    assert outside.warehouse.query("select * from costs") == []
    refitted = refit_winner(use_case, good, outside)
    assert list_refits(outside, good) == [refitted.model_version]
    [cost] = outside.warehouse.query("select model_version, step, seconds from costs")
    assert (cost["model_version"], cost["step"]) == (refitted.model_version, "refit")
    assert cost["seconds"] == outside.registry.metrics(NAME, refitted.model_version)["refit_seconds"]


DRAW = np.random.default_rng(0)
CHANCE = DRAW.uniform(0.05, 0.95, 4000)
LABEL = (DRAW.random(4000) < CHANCE).astype(float)
LUCK = 0.03  # of one seed


def scored(middle: np.ndarray, seed: int, *, seeds: int = 3) -> Scored:
    """Three networks that answer about the same, each with the luck of its seed."""
    luck = np.random.default_rng(seed).normal(0, LUCK, (seeds, len(middle)))
    members = np.clip(middle + luck, 0.001, 0.999)
    return Scored(version=str(seed), cutoff=AS_OF, scores=members.mean(0), members=members)


def against(use_case, judged, refitted, **gate):
    gate = use_case.gate.model_copy(update=gate)
    return list(list_disagreements(gate, measure_agreement(gate, LABEL, judged, refitted)))


def test_other_seeds_agree_and_are_as_far_apart_as_is_reckoned(use_case):
    judged, other = scored(CHANCE, 1), scored(CHANCE, 2)
    measured = measure_agreement(use_case.gate, LABEL, judged, other)
    assert measured["apart"] == pytest.approx(measured["apart_by_seeds"], rel=0.05)
    assert against(use_case, judged, other) == []


def test_a_refit_that_is_worse_is_turned_down_and_one_that_is_as_much_better_is_not(use_case):
    flat = np.full_like(CHANCE, 0.5)
    assert "worse by" in against(use_case, scored(CHANCE, 1), scored(flat, 2))[0]
    assert against(use_case, scored(flat, 1), scored(CHANCE, 2)) == [], "far apart, and better for it"


def test_answers_of_another_scale_are_turned_down_though_the_metric_does_not_see_it(use_case):
    found = {}
    for seeds in (3, 1):
        judged = scored(CHANCE, 1, seeds=seeds)
        halved = replace(judged, scores=judged.scores / 2, members=judged.members / 2)
        found[seeds] = against(use_case, judged, halved, metric="auc")
    assert "5 times what other seeds do" in found[3][0]
    assert found[1] == [], "of one seed there is no spread to hold it to"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_turned_down(use_case, broken):
    other = scored(CHANCE, 2)
    other.scores[0] = broken
    assert against(use_case, scored(CHANCE, 1), other) == ["an answer of it is not finite"]
