"""A candidate is judged on the champion's own rows, through the one inference path, and the evidence is kept."""

import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg2
import pyarrow as pa
import pytest

from adapters.registry import Registry
from models.ensemble import fit_ensemble
from pipeline.handoffs import Verdict
from pipeline.spec import LeakAlarm
from serving.predictor import Predictor
from tasks.build_features import dataset
from tasks.promote import promote
from tasks.promote.evaluate import fingerprint, frozen_rows, judge_candidate
from tasks.promote.verdict_rows import count_holdout_uses, load_past_effects, write_verdict
from tasks.train.split import split
from tests.models import synthetic
from tests.models.test_training import CPU, recipe
from tests.tasks import killed, planted

NAME = f"flights_{secrets.token_hex(4)}"  # the registry is shared by all tests of a session
AS_OF = datetime(2013, 2, 11, tzinfo=UTC)
GATE = {
    "slices": ("carrier",), "min_rows": 1000, "min_slice_rows": 200, "resamples": 400, "max_latency_ms": 5000.0,
    "leak_alarm": LeakAlarm(metric="auc", above=0.92),
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Synthetic rows, and a column that knows the label."""
    rows = synthetic.table(9000, seed=1, days=42)
    leak = rows.column("label").to_numpy() + np.random.default_rng(0).normal(0, 0.2, rows.num_rows)
    return rows.append_column("leak", pa.array(leak))


@pytest.fixture
def use_case(use_case):
    return use_case.model_copy(update={"name": NAME, "gate": use_case.gate.model_copy(update=GATE)})


@pytest.fixture(scope="module")
def models(mlflow_stack, table, tmp_path_factory) -> dict[str, str]:
    """Registered: what learns well, the same with other seeds, what learns from noise, what was told the label."""
    from pipeline.settings import REPOSITORY
    from pipeline.spec import use_cases

    use_case = use_cases(REPOSITORY / "params.yaml")["flights"].model_copy(update={"name": NAME})
    registry = Registry(mlflow_stack.home().url("mlflow"), tmp_path_factory.mktemp("registry"))
    cutoff = split(use_case, AS_OF).cutoff
    seen = table.filter(pa.compute.less_equal(table["label_time"], pa.scalar(cutoff, pa.timestamp("us", "UTC"))))
    shuffled = np.random.default_rng(0).permutation(seen.column("label").to_numpy())
    noise = seen.set_column(seen.column_names.index("label"), "label", pa.array(shuffled))
    leaky = replace(recipe(epochs=4, seeds=(1, 2)), numeric=(*synthetic.NUMERIC, "leak"))
    kinds = {
        "good": (recipe(epochs=4, seeds=(1, 2, 3)), seen),
        "twin": (recipe(epochs=4, seeds=(4, 5, 6)), seen),
        "noise": (recipe(epochs=2, seeds=(1, 2, 3)), noise),
        "leaky": (leaky, seen),
    }
    kinds["foreign"] = kinds["noise"]
    return {
        kind: planted.model(
            registry, use_case, tmp_path_factory.mktemp(kind), fit_ensemble(plan, rows, CPU), key=kind, cutoff=cutoff,
            digest="old" if kind == "foreign" else None,
        )
        for kind, (plan, rows) in kinds.items()
    }  # fmt: skip


@pytest.fixture
def candidates(models, outside, use_case, table):
    """Each of them as a candidate on this test's own dataset, nobody being champion yet."""
    planted.forget_champion(outside.registry, NAME)
    snapshot = planted.dataset(outside, use_case, table)
    return {
        kind: planted.candidate(outside.registry, use_case, version, snapshot, AS_OF)
        for kind, version in models.items()
    }


def evidence(outside, verdict):
    return json.loads(outside.lake.read(verdict.evidence_uri))


def follow(use_case, verdict, outside):
    return promote.promote(use_case, verdict, outside, actor="gate").outcome


def test_a_first_champion_then_a_worse_one_refused_then_all_asked_again(outside, use_case, candidates):
    first = judge_candidate(use_case, candidates["good"], outside)
    assert (first.answer, first.champion_version, first.needs_approval) == ("promote", None, False)
    assert follow(use_case, first, outside) == "promoted"

    verdict = judge_candidate(use_case, candidates["noise"], outside)
    assert (verdict.answer, verdict.champion_version) == ("refuse", first.candidate_version)
    assert follow(use_case, verdict, outside) == "refused"

    objects = outside.lake.list("evidence/")
    assert [uri.rsplit(".")[-1] for uri in objects].count("json") == 2
    assert judge_candidate(use_case, candidates["good"], outside) == first, "though it is the champion now"
    assert judge_candidate(use_case, candidates["noise"], outside).answer == "refuse"
    assert outside.lake.list("evidence/") == objects
    with pytest.raises(ValueError, match="against itself"):
        judge_candidate(use_case, replace(candidates["good"], snapshot_version="another"), outside)


def test_a_better_challenger_replaces_a_poor_champion(outside, use_case, candidates):
    poor = judge_candidate(use_case, candidates["noise"], outside)
    assert poor.answer == "refuse", "noise does not beat the base rate"
    forced = replace(poor, answer="promote")  # as if someone had let it pass
    assert follow(use_case, forced, outside) == "promoted"
    verdict = judge_candidate(use_case, candidates["good"], outside)
    assert (verdict.answer, verdict.champion_version) == ("promote", candidates["noise"].model_version)
    assert verdict.effect > verdict.effect_low > use_case.gate.min_effect


@pytest.mark.parametrize("champion", ["noise", "foreign"])
def test_a_champion_of_other_features_cannot_be_compared_so_a_person_must_approve(
    outside, use_case, candidates, champion
):
    """Two champions of the same weights: one learnt today's features, the other those of a definition since changed."""
    forced = replace(judge_candidate(use_case, candidates[champion], outside), answer="promote")
    assert follow(use_case, forced, outside) == "promoted"
    verdict = judge_candidate(use_case, candidates["good"], outside)
    assert (verdict.answer, verdict.champion_version) == ("promote", candidates[champion].model_version)
    found = evidence(outside, verdict)
    told = champion == "foreign"
    assert verdict.needs_approval is told
    assert ("learnt other features" in " ".join(verdict.reasons)) is told
    assert ("champion_unusable" in found) is told
    assert ("constant" in found["metrics"]) is told
    later = replace(candidates["twin"], as_of=AS_OF + timedelta(days=7))
    assert len(load_past_effects(use_case, later, outside)) == (not told), "against a constant it says nothing of gains"
    assert found["reasons"] == verdict.reasons
    assert follow(use_case, verdict, outside) == ("rejected" if told else "promoted")
    assert not judge_candidate(use_case, candidates["leaky"], outside).needs_approval, (
        "nobody is asked about what is held"
    )


_CHILD = """
from adapters.lake import Lake
from tasks.build_features import dataset
from tasks.promote import evaluate
from tests.tasks import planted
from tests.tasks.promote.test_evaluate import AS_OF, GATE
planted.define(NAME)
case = use_cases(settings().params)["flights"]
case = case.model_copy(update={"name": NAME, "gate": case.gate.model_copy(update=GATE)})
put = Lake.put
def put_and_die(self, prefix, data, suffix):
    stored = put(self, prefix, data, suffix)
    return die() if suffix == ".json" else stored
if POINT == "while judging": evaluate.decide = die
if POINT == "between plot and evidence":
    Lake.put = lambda self, prefix, data, suffix: die() if suffix == ".json" else put(self, prefix, data, suffix)
if POINT == "after the evidence": Lake.put = put_and_die
snapshot = dataset.latest_snapshot(case, outside)
evaluate.judge_candidate(case, planted.candidate(outside.registry, case, VERSION, snapshot, AS_OF), outside)
"""


@pytest.mark.parametrize(
    ("point", "left"), [("while judging", 0), ("between plot and evidence", 1), ("after the evidence", 2)]
)
def test_a_judgement_killed_at_any_point_and_asked_again_is_the_same(outside, use_case, candidates, point, left):
    def judged():
        verdict = judge_candidate(use_case, candidates["good"], outside)
        objects = outside.lake.list("evidence/")
        assert len(objects) == 2, "a plot and a document"
        found = evidence(outside, verdict)
        del found["latency_ms"]  # measured anew each time
        return replace(verdict, evidence_uri=""), found, objects

    version = candidates["good"].model_version
    killed.run(outside.settings, f"NAME, VERSION, POINT = {NAME!r}, {version!r}, {point!r}\n" + _CHILD, killed=True)
    assert len(outside.lake.list("evidence/")) == left
    *interrupted, objects = judged()
    for uri in objects:
        outside.lake.client.delete_object(Bucket=outside.lake.bucket, Key=uri.split("/", 3)[3])
    assert list(judged()[:2]) == interrupted


def test_the_evidence_says_what_was_measured_on_which_rows(outside, use_case, candidates):
    verdict = judge_candidate(use_case, candidates["good"], outside)
    found, moments = evidence(outside, verdict), split(use_case, AS_OF)
    rows = dataset.load_rows(
        candidates["good"].snapshot_version, use_case, outside,
        start=moments.holdout_start, end=moments.holdout_end, known_by=AS_OF,
    )  # fmt: skip
    assert (found["rows"], found["rows_sha256"]) == (rows.num_rows, fingerprint(rows))
    predictor = Predictor.load(outside.registry.download_bundle(NAME, verdict.candidate_version))
    label = rows.column("label").to_numpy()
    gap = abs(predictor.predict(rows).mean() - label.mean())
    assert found["calibration_gap"] == pytest.approx(gap)
    assert found["answer"] == verdict.answer
    assert {row["value"] for row in found["slices"]} >= {"AA", "EV", "(missing)"}
    assert 0 < found["latency_ms"] < 5000
    assert found["effect"]["seed_standard_error"] > 0
    picture = outside.lake.read(found["plot_uri"])
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000


def test_a_leaked_label_is_refused_with_a_critical_alert_and_its_twin_is_not(outside, use_case, candidates):
    verdict = judge_candidate(use_case, candidates["leaky"], outside)
    assert verdict.answer == "refuse"
    assert "too good to be true" in " ".join(verdict.reasons)
    [alert] = outside.warehouse.query("select tier, fingerprint from alerts")
    assert alert == {"tier": "critical", "fingerprint": f"{NAME}/gate/leak-alarm"}
    assert judge_candidate(use_case, candidates["good"], outside).answer == "promote"
    assert len(outside.warehouse.query("select * from alerts")) == 1


@pytest.mark.parametrize(("early_days", "answer"), [(0, "promote"), (3, "refuse")])
def test_a_holdout_that_reaches_into_training_is_refused(outside, use_case, candidates, early_days, answer):
    asked = candidates["good"]
    early = replace(asked, holdout_start=asked.holdout_start - timedelta(days=early_days))
    verdict = judge_candidate(use_case, early, outside)
    assert verdict.answer == answer
    assert len(outside.warehouse.query("select * from alerts where tier = 'critical'")) == (answer == "refuse")


def test_a_holdout_without_rows_asks_for_more_data(outside, use_case, candidates):
    later = timedelta(days=400)
    asked = candidates["good"]
    empty = replace(asked, holdout_start=asked.holdout_start + later, holdout_end=asked.holdout_end + later)
    assert judge_candidate(use_case, empty, outside).answer == "need-more-data"


def test_high_risk_asks_for_approval_of_winners_only(outside, use_case, candidates):
    high = use_case.model_copy(update={"risk": "high"})
    assert judge_candidate(high, candidates["good"], outside).needs_approval
    assert not judge_candidate(high, candidates["noise"], outside).needs_approval


def test_every_verdict_is_a_row_once_of_a_retry_too(outside, use_case, candidates):
    first = judge_candidate(use_case, candidates["good"], outside)
    assert follow(use_case, first, outside) == "promoted"
    second = judge_candidate(use_case, candidates["noise"], outside)
    outside.warehouse.execute("alter table verdicts disable trigger verdicts_are_append_only")
    outside.warehouse.execute("delete from verdicts where verdict_id = %s", (second.verdict_id,))  # killed before it
    outside.warehouse.execute("alter table verdicts enable trigger verdicts_are_append_only")
    for _ in range(2):
        assert judge_candidate(use_case, candidates["noise"], outside) == second
    rows = outside.warehouse.query(
        "select verdict_id, answer, effect, standard_error from verdicts order by as_of, answer"
    )
    assert [(row["verdict_id"], row["answer"]) for row in rows] == [
        (first.verdict_id, "promote"),
        (second.verdict_id, "refuse"),
    ]
    assert (rows[1]["effect"], rows[1]["standard_error"]) == (second.effect, second.effect_error)
    assert second.effect_error > 0
    with pytest.raises(psycopg2.errors.RestrictViolation):
        outside.warehouse.execute("update verdicts set answer = 'promote'")


def test_days_that_were_asked_before_are_asked_more_strictly_and_other_days_or_another_champion_are_not(
    outside, use_case, candidates
):
    def asked(case, as_of, champion="1"):
        candidate = replace(candidates["twin"], as_of=as_of)
        return count_holdout_uses(case, candidate, champion, "this one", outside)

    def keep(verdict_id, as_of, champion="1"):
        write_verdict(use_case, make_verdict(use_case, "7", champion, verdict_id=verdict_id, as_of=as_of), outside)

    half = timedelta(days=use_case.train.holdout_days) / 2
    assert asked(use_case, AS_OF) == 1
    keep("a", AS_OF)
    keep("b", AS_OF + half - timedelta(hours=1))
    keep("c", AS_OF - half)
    keep("d", AS_OF, champion="0")
    assert asked(use_case, AS_OF) == 3
    assert asked(use_case, AS_OF, champion="0") == 2
    assert asked(use_case, AS_OF + timedelta(days=70)) == 1


def test_what_earlier_candidates_showed_is_drawn_upon_and_nothing_of_later_ones(outside, use_case, candidates):
    for place in range(8):
        as_of = AS_OF - timedelta(days=7 * (4 - place))
        given = make_verdict(use_case, f"1{place}", "1", verdict_id=f"v{place}", as_of=as_of, effect=0.001 * place)
        write_verdict(use_case, given, outside)
    first = make_verdict(use_case, "7", None, verdict_id="first", as_of=AS_OF - timedelta(days=70), effect=0.5)
    write_verdict(use_case, first, outside)

    again = make_verdict(use_case, "8", "1", verdict_id="again", as_of=AS_OF - timedelta(days=7), effect=0.7)
    write_verdict(use_case, again, outside)  # other seeds, the same days: the first counts

    def effects(case, as_of):
        return sorted(
            effect.value for effect in load_past_effects(case, replace(candidates["twin"], as_of=as_of), outside)
        )

    assert effects(use_case, AS_OF) == [0.0, 0.001, 0.002, 0.003], "none against a constant"
    assert len(effects(use_case, AS_OF + timedelta(days=70))) == 8
    longer = make_verdict(use_case, "13", "1", verdict_id="longer", as_of=AS_OF - timedelta(days=3), effect=0.005)
    write_verdict(use_case, longer, outside)  # held a week before, judged again on more days: the latest counts
    assert effects(use_case, AS_OF) == [0.0, 0.001, 0.002, 0.005, 0.7], "and of the days it left, the other"
    other = use_case.model_copy(update={"gate": use_case.gate.model_copy(update={"metric": "auc"})})
    assert effects(other, AS_OF + timedelta(days=70)) == []


def make_verdict(use_case, candidate, champion, *, verdict_id, as_of, effect=0.001):
    return Verdict(
        verdict_id=verdict_id, use_case=use_case.name, candidate_version=candidate, champion_version=champion,
        answer="hold", reasons=[], effect=effect, effect_low=None, effect_high=None, evidence_uri="s3://lake/e.json",
        as_of=as_of, needs_approval=False, effect_error=0.001,
    )  # fmt: skip


def test_another_threshold_is_another_verdict(outside, use_case, candidates):
    strict = use_case.model_copy(update={"gate": use_case.gate.model_copy(update={"max_calibration_gap": 1e-9})})
    lenient, refused = (judge_candidate(case, candidates["good"], outside) for case in (use_case, strict))
    assert (lenient.answer, refused.answer) == ("promote", "refuse")
    assert lenient.verdict_id != refused.verdict_id


def test_a_bundle_that_is_not_the_one_named_is_refused(outside, use_case, candidates):
    with pytest.raises(ValueError, match="digest"):
        judge_candidate(use_case, replace(candidates["good"], bundle_sha256="0" * 64), outside)


def test_a_slice_that_is_no_feature_is_named(use_case, table):
    wrong = use_case.model_copy(update={"gate": use_case.gate.model_copy(update={"slices": ("terminal",)})})
    with pytest.raises(ValueError, match="terminal"):
        frozen_rows(wrong, table)
