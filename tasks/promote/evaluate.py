"""Judge a candidate: both models answer the same frozen holdout rows, the gate decides, the evidence is kept."""

import hashlib
import io
import json
import logging
import statistics
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adapters.connect import Outside
from models.recalibration import Recalibration
from pipeline.handoffs import Candidate, Verdict, VerdictAnswer
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.learnt_features import UncomputableFeatures
from tasks.promote.bootstrap import Floats
from tasks.promote.gate import PROTECTED_UNTESTED, Judgement, decide
from tasks.promote.gate_checks import HoldoutRows, Scored, Setting
from tasks.promote.gate_plot import draw_judgement
from tasks.promote.intercept_limits import explain_recalibration
from tasks.promote.opponent import Opponent, explain_opponent, find_opponent, load_as_learnt, name_comparison
from tasks.promote.verdict_rows import count_holdout_uses, load_past_effects, write_verdict
from tasks.train.recalibration import measure_intercept

logger = logging.getLogger(__name__)

_LATENCY_CALLS = 30
_SUSPICIOUS = {"leak-alarm", "scores-not-finite", "scores-not-probabilities", "holdout-overlaps-training"}


def judge_candidate(use_case: UseCase, candidate: Candidate, outside: Outside) -> Verdict:
    """The gate's verdict on a candidate. Judging the same pair on the same data again gives the stored verdict.

    A champion that learnt another definition answers the same events by that one. Where it cannot be computed any more,
    or lacks some of the events, the candidate is judged as if there were none, and a person must approve.

    Raises:
        ValueError: the candidate is the champion, and was not made so by a verdict; or its bundle is not the one named.
    """
    opponent = find_opponent(use_case, candidate, outside)
    champion = opponent.champion if opponent else None
    verdict_id = name_comparison(use_case, candidate, champion)
    if stored := _stored(use_case, verdict_id, outside):
        write_verdict(use_case, stored, outside)
        return stored
    table = load_holdout(use_case, candidate, outside)
    ours, predictor = score_rows(use_case, candidate.model_version, table, outside, sha256=candidate.bundle_sha256)
    latency = latency_ms(predictor, table)
    theirs = None if opponent is None else _opponent_scores(use_case, opponent, candidate, table, outside)
    foreign = opponent is not None and theirs is None
    setting = Setting(
        gate=use_case.gate,
        kind=use_case.target.kind,
        block=use_case.gate_block,
        holdout_start=candidate.holdout_start,
        latency_ms=latency,
        seed=int(verdict_id[-8:], 16) ^ use_case.seed,
        past=load_past_effects(use_case, candidate, outside),
        holdout_uses=count_holdout_uses(use_case, candidate, champion, verdict_id, outside),
    )
    judgement = decide(setting, frozen_rows(use_case, table), ours, theirs)
    judgement = explain_opponent(judgement, opponent, foreign=foreign)
    verdict = _verdict(use_case, candidate, opponent, judgement, verdict_id, foreign=foreign)
    _alert_suspicious(use_case, verdict, judgement, outside)
    verdict = _store(use_case, verdict, candidate, judgement, outside)
    write_verdict(use_case, verdict, outside)
    return verdict


def load_holdout(use_case: UseCase, candidate: Candidate, outside: Outside) -> pa.Table:
    """The labelled rows that a candidate is judged by."""
    return dataset.load_rows(
        candidate.snapshot_version,
        use_case,
        outside,
        start=candidate.holdout_start,
        end=candidate.holdout_end,
        known_by=candidate.as_of,
    )


def frozen_rows(use_case: UseCase, table: pa.Table) -> HoldoutRows:
    """A labelled table as the gate wants it; missing slice values are a slice of their own."""
    if absent := [name for name in use_case.gate.slices if name not in table.column_names]:
        raise ValueError(f"gate.slices of {use_case.name} names {absent}, which are not columns of its features")
    return HoldoutRows(
        prediction_time=table.column("prediction_time").to_numpy().astype("datetime64[us]"),
        label=table.column("label").to_numpy().astype(np.float64),
        slices={
            name: np.asarray(pc.fill_null(table[name].cast(pa.string()), "(missing)").to_pylist(), dtype=np.str_)
            for name in use_case.gate.slices
        },
        fingerprint=fingerprint(table),
        entity=np.asarray(table.column("entity_key").to_pylist(), dtype=np.str_),
    )


def fingerprint(table: pa.Table) -> str:
    """SHA-256 over which rows there are, in order, and their labels."""
    digest = hashlib.sha256("\n".join(table.column("entity_key").to_pylist()).encode())
    for name in ("event_time", "prediction_time"):
        digest.update(table.column(name).to_numpy().astype("datetime64[us]").tobytes())
    digest.update(table.column("label").to_numpy().astype(np.float64).tobytes())
    return digest.hexdigest()


def _opponent_scores(
    use_case: UseCase, opponent: Opponent, candidate: Candidate, table: pa.Table, outside: Outside
) -> Scored | None:
    """Its answers about the rows; None where what it learnt cannot be had for them.

    As they would be if it had been recalibrated last by what the candidate could know, too: at the candidate's cut-off,
    and where monitoring would have done it.
    """
    same_events = load_as_learnt(use_case, opponent.answering, candidate, table, outside)
    if same_events is None:
        return None
    scored, _ = score_rows(use_case, opponent.answering, same_events, outside)
    if use_case.monitor.recalibration is None:
        return scored
    try:
        measured = measure_intercept(
            use_case, opponent.answering, candidate.snapshot_version, candidate.cutoff, outside
        )
    except UncomputableFeatures as error:  # of the days before, of which clean data may be gone
        logger.warning("the champion is compared as it was trained, not recalibrated: %s", error)
        return scored
    is_worth_it = explain_recalibration(measured, use_case.monitor) is not None
    return recalibrate_scores(scored, measured.fitted.value) if is_worth_it else scored


def score_rows(
    use_case: UseCase, version: str, table: pa.Table, outside: Outside, *, sha256: str | None = None
) -> tuple[Scored, Any]:
    """The scores of the ensemble and of each member alone, all by `serving.predictor`; and the ensemble's predictor."""
    from models.bundle import load_bundle
    from serving.predictor import Predictor

    bundle = load_bundle(outside.registry.download_bundle(use_case.name, version), sha256=sha256)
    whole = Predictor(bundle)
    alone = [Predictor(replace(bundle, members=(member,))) for member in bundle.members]
    scores = _scores(whole, table)
    scored = Scored(
        version=version,
        cutoff=datetime.fromisoformat(bundle.card["data"]["cutoff"]).astimezone(UTC),
        scores=scores,
        members=np.array([_scores(member, table) for member in alone]),
        bounds=bundle.interval.bounds(scores) if bundle.interval else None,
        declared_coverage=bundle.interval.coverage if bundle.interval else None,
    )
    return scored, whole


def recalibrate_scores(scored: Scored, intercept: float) -> Scored:
    """The same model's answers with a number added to their logits."""
    recalibration = Recalibration(intercept=intercept)
    members = None if scored.members is None else recalibration.apply(scored.members)
    return replace(scored, scores=recalibration.apply(scored.scores), members=members, intercept=intercept)


def _scores(predictor: Any, table: pa.Table) -> Floats:
    """Scores [n]; NaN for all where the predictor refuses to answer with NaN, so that the gate says so."""
    if table.num_rows == 0:
        return np.zeros(0)
    try:
        return np.asarray(predictor.predict(table), dtype=np.float64)
    except ArithmeticError:
        return np.full(table.num_rows, np.nan)


def latency_ms(predictor: Any, table: pa.Table) -> float:
    """How long one row alone takes, the median of some: milliseconds."""
    if table.num_rows == 0:
        return 0.0
    seconds = []
    for call in range(_LATENCY_CALLS):
        begun = time.perf_counter()
        _scores(predictor, table.slice(call % table.num_rows, 1))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1000


def _verdict(
    use_case: UseCase,
    candidate: Candidate,
    opponent: Opponent | None,
    judgement: Judgement,
    verdict_id: str,
    *,
    foreign: bool,
) -> Verdict:
    """`effect_error` is that of an effect that says what a candidate gains: against the champion, and in earnest."""
    effect = judgement.evidence.get("effect", {})
    says_nothing = foreign or bool(_SUSPICIOUS & set(judgement.codes))
    is_risky = use_case.risk == "high" or foreign or PROTECTED_UNTESTED in judgement.codes
    return Verdict(
        verdict_id=verdict_id,
        use_case=use_case.name,
        candidate_version=candidate.model_version,
        champion_version=opponent.champion if opponent else None,
        answer=judgement.answer,
        reasons=judgement.reasons,
        effect=effect.get("value"),
        effect_low=effect.get("low"),
        effect_high=effect.get("high"),
        effect_error=None if says_nothing else effect.get("standard_error"),
        evidence_uri="",
        as_of=candidate.as_of,
        needs_approval=judgement.answer == VerdictAnswer.PROMOTE and is_risky,
        decision_id=candidate.decision_id,
    )


def _alert_suspicious(use_case: UseCase, verdict: Verdict, judgement: Judgement, outside: Outside) -> None:
    """Raise a critical alert about a candidate that is suspicious and not merely no better."""
    if _SUSPICIOUS & set(judgement.codes):
        outside.alerts.raise_alert(
            "critical",
            use_case.name,
            f"{use_case.name}/gate/{'+'.join(sorted(_SUSPICIOUS & set(judgement.codes)))}",
            f"{use_case.title}: candidate {verdict.candidate_version} was refused",
            "; ".join(verdict.reasons),
        )


def _prefix(use_case: UseCase, verdict_id: str) -> str:
    return f"evidence/{use_case.name}/{verdict_id}"


def _store(
    use_case: UseCase, verdict: Verdict, candidate: Candidate, judgement: Judgement, outside: Outside
) -> Verdict:
    prefix, image = _prefix(use_case, verdict.verdict_id), io.BytesIO()
    draw_judgement(judgement, use_case.title, image)
    plot = outside.lake.put(prefix, image.getvalue(), ".png")
    document = {
        "verdict": {**asdict(verdict), "as_of": verdict.as_of.isoformat()},
        "snapshot_version": candidate.snapshot_version,
        "plot_uri": plot.uri,
        **judgement.evidence,
    }
    outside.lake.put(prefix, json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode(), ".json")
    stored = _stored(use_case, verdict.verdict_id, outside)
    assert stored is not None, "the evidence was just written"
    return stored


def _stored(use_case: UseCase, verdict_id: str, outside: Outside) -> Verdict | None:
    """The verdict as first written; of two written at once (they differ in latency alone) everyone takes the same."""
    written = [uri for uri in outside.lake.list(_prefix(use_case, verdict_id) + "/") if uri.endswith(".json")]
    if not written:
        return None
    document = json.loads(outside.lake.read(written[0]))["verdict"]
    return Verdict(**{**document, "as_of": datetime.fromisoformat(document["as_of"]), "evidence_uri": written[0]})
