"""May this candidate replace the champion? Pure: scores on the same frozen rows in, an answer with its evidence out.

It may where nothing stands against it and the switch is expected to pay: the effect to be expected, given what was
measured and what earlier candidates showed (tasks/promote/expected_effect.py), is above `min_effect`, which is what a
switch must be worth; and the chance that it is worse by more than that is at most `max_loss_chance`. Who is merely not
sure holds; what stands against a candidate, or an effect that is expected to be below zero, refuses it
(docs/decisions/0038).

Two kinds of luck are in the error of an effect: which days the holdout happened to have (tasks/promote/bootstrap.py),
and which seeds the ensembles happened to draw (jackknife over members: Efron 1982). One-sided widths are added in
quadrature (Zou and Donner 2008, Statistics in Medicine 27:1693).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.fields import METRICS
from pipeline.handoffs import VerdictAnswer
from tasks.common.naming import name_some
from tasks.promote.bootstrap import Effect, Floats, compute_for_gate
from tasks.promote.expected_effect import ExpectedEffect, MeasuredEffect, expect_effect
from tasks.promote.gate_checks import (
    HoldoutRows,
    Reason,
    Scored,
    Setting,
    allowed_chance,
    bad_scores,
    check_candidate,
    doubtful,
    not_surely_better,
    overlaps,
    too_little,
)
from tasks.promote.interval_coverage import measure_coverage
from tasks.promote.slice_effects import check_slices, compare_rows, doubt_slices, find_untested, slice_table

PROTECTED_UNTESTED = "protected-slice-untested"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The gate's answer; `codes` name the reasons for machines, `replicates` are for the plot."""

    answer: VerdictAnswer
    codes: list[str]
    reasons: list[str]
    effect: float | None
    low: float | None
    high: float | None
    evidence: dict[str, Any]
    replicates: Floats


def decide(setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored | None) -> Judgement:
    """Judge a candidate against the champion or, where there is none, against the best constant prediction.

    Raises:
        ValueError: the candidate is the champion: a comparison with itself says nothing.
    """
    if champion is not None and champion.version == candidate.version:
        raise ValueError(f"version {candidate.version} is the champion already; judging it against itself says nothing")
    evidence = _facts(setting, rows, candidate, champion)
    if unusable := [*overlaps(setting, rows, candidate, champion), *bad_scores(setting.kind, candidate, champion)]:
        return _judgement(VerdictAnswer.REFUSE, unusable, evidence)
    if missing := [*too_little(setting, rows)]:
        return _judgement(VerdictAnswer.NEED_MORE_DATA, missing, evidence)
    return _weigh_effect(setting, rows, candidate, champion, evidence)


def constant(setting: Setting, rows: HoldoutRows) -> Scored:
    """The opponent of a first champion: the constant that fits these very rows best, so the hardest one to beat."""
    best = np.median(rows.label) if setting.gate.metric == "mae" else rows.label.mean()
    return Scored(
        version="constant", cutoff=datetime.min.replace(tzinfo=UTC), scores=np.full(len(rows.label), float(best))
    )


def seed_error(metric: str, label: Floats, members: Floats | None) -> float:
    """Standard error of an ensemble's metric from having drawn these seeds: delete-one jackknife, 0 if unknown."""
    if members is None or len(members) < 2:
        return 0.0
    n = len(members)
    without = np.array([compute_for_gate(metric, np.delete(members, index, 0).mean(0), label) for index in range(n)])
    return math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))


def _seed_luck(setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored) -> tuple[float, float]:
    """Standard error of the effect from both ensembles' seeds, and the one-sided width it asks for.

    Few members, few degrees of freedom: Student's t, with Welch's (1947, Biometrika 34:28).
    """
    from scipy.stats import t

    variances = [
        (seed_error(setting.gate.metric, rows.label, model.members) ** 2, len(model.members) - 1)
        for model in (candidate, champion)
        if model.members is not None and len(model.members) > 1
    ]
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0, 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    return math.sqrt(total), float(t.ppf(setting.gate.confidence, freedom)) * math.sqrt(total)


def _weigh_effect(
    setting: Setting, rows: HoldoutRows, candidate: Scored, incumbent: Scored | None, evidence: dict[str, Any]
) -> Judgement:
    """Compare with the champion, or with the best constant in its place."""
    gate, champion = setting.gate, incumbent or constant(setting, rows)
    everything = np.ones(len(rows.label), bool)
    known = 0.0 if setting.block == "entity" else None
    effect = compare_rows(setting, rows, candidate, champion, mask=everything, correlation=known)
    spread, luck = _seed_luck(setting, rows, candidate, champion)
    low = effect.value - math.hypot(effect.value - effect.low, luck)
    high = effect.value + math.hypot(effect.high - effect.value, luck)
    error = math.hypot(effect.standard_error, spread)
    expected = expect_effect(
        MeasuredEffect(effect.value, error), setting.past, loss=abs(gate.min_effect), freedom=effect.blocks - 1
    )
    slices = slice_table(setting, rows, candidate, champion, effect)
    evidence |= {
        "effect": {
            "metric": gate.metric,
            "value": effect.value,
            "low": low,
            "high": high,
            "standard_error": error,
            "block_standard_error": effect.standard_error,
            "block_correlation": effect.correlation,
            "seed_standard_error": spread,
            "low_without_seed_luck": effect.low,
            "histogram": _histogram(effect.replicates),
        },
        "expected": {
            **asdict(expected),
            "allowed_chance": allowed_chance(setting),
            "holdout_uses": setting.holdout_uses,
        },
        "metrics": {
            model.version: {m: compute_for_gate(m, model.scores, rows.label) for m in METRICS[setting.kind]}
            for model in (candidate, champion)
        },
        "slices": slices,
        "protected_untested": find_untested(gate, slices),
        "calibration_gap": abs(float(candidate.scores.mean() - rows.label.mean())),
        "champion_calibration_gap": abs(float(champion.scores.mean() - rows.label.mean())),
        "leak_alarm": {
            "metric": gate.leak_alarm.metric,
            "value": compute_for_gate(gate.leak_alarm.metric, candidate.scores, rows.label),
        },
        **_describe_intervals(setting, rows, candidate, champion),
    }
    if np.array_equal(candidate.scores, champion.scores):
        reasons: list[Reason] = [("identical", "both models answer the same on every row")]
        answer = VerdictAnswer.REFUSE
    else:
        answer, reasons = _answer(setting, evidence, effect, low, expected, is_first=incumbent is None)
    judgement = _judgement(answer, reasons, evidence)
    return replace(judgement, effect=effect.value, low=low, high=high, replicates=effect.replicates)


def _answer(
    setting: Setting,
    evidence: dict[str, Any],
    effect: Effect,
    low: float,
    expected: ExpectedEffect,
    *,
    is_first: bool,
) -> tuple[VerdictAnswer, list[Reason]]:
    gate = setting.gate
    measured = f"{effect.value:+.5f} {gate.metric} (surely more than {low:+.5f})"
    objections = [*check_slices(gate, evidence["slices"]), *check_candidate(setting, evidence)]
    if is_first:
        objections = [*not_surely_better(setting, effect, low), *objections]
        said = f"better than the best constant by {measured}, needed {gate.min_effect}"
        if objections:
            return VerdictAnswer.REFUSE, objections
        return VerdictAnswer.PROMOTE, [("better", said), *_ask_a_person(evidence)]
    if expected.mean <= min(0.0, gate.min_effect):
        sentence = f"expected to be worse: {expected.mean:+.5f} {gate.metric}; measured {measured}"
        objections.insert(0, ("not-better", sentence))
    doubts = [*doubtful(setting, expected), *doubt_slices(setting, evidence["slices"])]
    if objections:
        return VerdictAnswer.REFUSE, objections
    if doubts:
        return VerdictAnswer.HOLD, doubts
    said = (
        f"expected to be better by {expected.mean:+.5f} {gate.metric}, a switch is worth {gate.min_effect}; the chance"
        f" of a loss above that is {expected.chance_of_loss:.1%} (allowed {allowed_chance(setting):.1%}); measured"
        f" {measured}"
    )
    return VerdictAnswer.PROMOTE, [("better", said), *_ask_a_person(evidence)]


def _ask_a_person(evidence: dict[str, Any]) -> Iterator[Reason]:
    if untested := evidence["protected_untested"]:
        few = "protected slices have too few rows, days or outcomes"
        yield PROTECTED_UNTESTED, f"a person has to approve it: {few}: {name_some(untested)}"


def _describe_intervals(setting: Setting, rows: HoldoutRows, *models: Scored) -> dict[str, Any]:
    """What the intervals of both cover of the same rows, and how wide they are; nothing where neither has any.

    It decides nothing: a candidate's answers are judged, and what its intervals cover is watched.
    """
    if not any(model.bounds for model in models):
        return {}
    confidence = setting.gate.confidence
    return {
        "intervals": {
            model.version: model.bounds
            and {
                "declared": model.declared_coverage,
                **asdict(measure_coverage(*model.bounds, rows.label, rows.day, confidence=confidence)),
            }
            for model in models
        }
    }


def _facts(setting: Setting, rows: HoldoutRows, candidate: Scored, champion: Scored | None) -> dict[str, Any]:
    days = np.unique(rows.day)
    return {
        "candidate": {"version": candidate.version, "cutoff": candidate.cutoff.isoformat()},
        "champion": champion
        and {"version": champion.version, "cutoff": champion.cutoff.isoformat(), "intercept": champion.intercept},
        "rows": len(rows.label),
        "days": len(days),
        "block": setting.block,
        "first_day": str(days[0]) if len(days) else None,
        "last_day": str(days[-1]) if len(days) else None,
        "rows_sha256": rows.fingerprint,
        "holdout_start": setting.holdout_start.isoformat(),
        "latency_ms": setting.latency_ms,
        "seed": setting.seed,
        "thresholds": setting.gate.model_dump(mode="json"),
    }


def _judgement(answer: VerdictAnswer, reasons: list[Reason], evidence: dict[str, Any]) -> Judgement:
    codes, texts = [code for code, _ in reasons], [text for _, text in reasons]
    return Judgement(
        answer=answer,
        codes=codes,
        reasons=texts,
        effect=None,
        low=None,
        high=None,
        evidence=finite({"answer": answer, "codes": codes, "reasons": texts, **evidence}),
        replicates=np.zeros(0),
    )


def _histogram(replicates: Floats) -> dict[str, list[float]]:
    """Forty bins of the resampled effects, so that the plot can be drawn again from the evidence alone."""
    counts, edges = np.histogram(replicates[np.isfinite(replicates)], bins=40)
    return {"counts": counts.astype(float).tolist(), "edges": edges.tolist()}


def finite(value: Any) -> Any:
    """The same JSON value, with None where a number is NaN or infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list) else value
