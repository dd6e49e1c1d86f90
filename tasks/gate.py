"""May this candidate replace the champion? Pure: scores on the same frozen rows in, an answer with its evidence out.

It may if it is better by more than `min_effect`, and we are `confidence` sure of that: the lower bound of the effect,
not its estimate, must pass `min_effect` (superiority by a margin). Two kinds of luck are in that bound: which days the
holdout happened to have (tasks/bootstrap.py), and which seeds the ensembles happened to draw (jackknife over members:
Efron 1982). Their one-sided widths are added in quadrature (Zou and Donner 2008, Statistics in Medicine 27:1693).
Without the second, a challenger that is the champion with other seeds passed 5 to 27 % of the time, with it 1 to 4 %.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.spec import Gate
from tasks.bootstrap import Effect, Floats, compare, holm, measure

Kind = Literal["binary", "regression"]

METRICS: Mapping[Kind, tuple[str, ...]] = {
    "binary": ("log_loss", "auc", "pr_auc", "brier", "calibration_gap"),
    "regression": ("mae", "rmse", "bias"),
}
_SLICE_TAIL_RESAMPLES = 20  # resamples that must fall beyond the strictest slice bound, or no slice could ever fail


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The frozen holdout: prediction times (datetime64, UTC) [n], labels [n] and the slice columns as text [n]."""

    prediction_time: NDArray[np.datetime64]
    label: Floats
    slices: Mapping[str, NDArray[np.str_]]
    fingerprint: str

    @property
    def day(self) -> NDArray[np.datetime64]:
        """The block a row belongs to."""
        return self.prediction_time.astype("datetime64[D]")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One model's scores [n] of the rows, and those of its ensemble's members [members, n], where it has some."""

    version: str
    cutoff: datetime
    scores: Floats
    members: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """promote | hold | need-more-data; `codes` name the reasons for machines, `replicates` are for the plot."""

    answer: str
    codes: list[str]
    reasons: list[str]
    effect: float | None
    low: float | None
    high: float | None
    evidence: dict[str, Any]
    replicates: Floats


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the gate is told besides the scores. `latency_ms` is that of one row alone."""

    gate: Gate
    kind: Kind
    holdout_start: datetime
    label_delay: timedelta
    latency_ms: float
    seed: int


Reason = tuple[str, str]


def decide(setting: Setting, rows: Rows, candidate: Scored, champion: Scored | None) -> Judgement:
    """Judge a candidate against the champion or, where there is none, against the best constant prediction.

    Raises:
        ValueError: the candidate is the champion: a comparison with itself says nothing.
    """
    if champion is not None and champion.version == candidate.version:
        raise ValueError(f"version {candidate.version} is the champion already; judging it against itself says nothing")
    evidence = _facts(setting, rows, candidate, champion)
    unusable = [*_overlaps(setting, rows, candidate, champion), *_bad_scores(setting.kind, candidate, champion)]
    if unusable:
        return _judgement("hold", unusable, evidence)
    too_little = _too_little(setting, rows)
    if too_little:
        return _judgement("need-more-data", too_little, evidence)
    return _measured(setting, rows, candidate, champion or constant(setting, rows), evidence)


def constant(setting: Setting, rows: Rows) -> Scored:
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
    without = np.array([measure(metric, label, np.delete(members, index, 0).mean(0)) for index in range(n)])
    return math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))


def _seed_luck(setting: Setting, rows: Rows, candidate: Scored, champion: Scored) -> tuple[float, float]:
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


def _measured(setting: Setting, rows: Rows, candidate: Scored, champion: Scored, evidence: dict[str, Any]) -> Judgement:
    gate = setting.gate
    effect = _compare(setting, rows, candidate, champion, mask=np.ones(len(rows.label), bool), resamples=gate.resamples)
    spread, luck = _seed_luck(setting, rows, candidate, champion)
    low = effect.value - math.hypot(effect.value - effect.low, luck)
    high = effect.value + math.hypot(effect.high - effect.value, luck)
    slices = slice_table(setting, rows, candidate, champion)
    evidence |= {
        "effect": {
            "metric": gate.metric,
            "value": effect.value,
            "low": low,
            "high": high,
            "day_standard_error": effect.standard_error,
            "seed_standard_error": spread,
            "low_without_seed_luck": effect.low,
            "histogram": _histogram(effect.replicates),
        },
        "metrics": {
            model.version: {m: measure(m, rows.label, model.scores) for m in METRICS[setting.kind]}
            for model in (candidate, champion)
        },
        "slices": slices,
        "calibration_gap": abs(float(candidate.scores.mean() - rows.label.mean())),
        "leak_alarm": {
            "metric": gate.leak_alarm.metric,
            "value": measure(gate.leak_alarm.metric, rows.label, candidate.scores),
        },
    }
    objections = [*_not_better(setting, effect, low), *_objections(setting, evidence)]
    if np.array_equal(candidate.scores, champion.scores):
        objections.append(("identical", "both models answer the same on every row"))
    sure = f"better by {effect.value:+.5f} {gate.metric}, surely more than {low:+.5f} (needed {gate.min_effect})"
    answer = "hold" if objections else "promote"
    found = _judgement(answer, objections or [("better", sure)], evidence)
    return Judgement(
        **{**vars(found), "effect": effect.value, "low": low, "high": high, "replicates": effect.replicates}
    )


def slice_table(setting: Setting, rows: Rows, candidate: Scored, champion: Scored) -> list[dict[str, Any]]:
    """Every slice with its effect; it fails where the candidate is surely more than `max_slice_loss` worse.

    Family-wise over all slices (Holm), so that asking about twenty slices does not refuse every candidate.
    """
    gate = setting.gate
    masks = [(name, str(value), column == value) for name, column in rows.slices.items() for value in np.unique(column)]
    eligible = [m for _, _, m in masks if m.sum() >= gate.min_slice_rows and _enough(rows, m, gate)]
    resamples = max(gate.resamples, math.ceil(_SLICE_TAIL_RESAMPLES * len(eligible) / (1 - gate.confidence)))
    table: list[dict[str, Any]] = []
    for name, value, mask in masks:
        row: dict[str, Any] = {"column": name, "value": value, "rows": int(mask.sum()), "tested": False}
        if any(mask is m for m in eligible):
            effect = _compare(setting, rows, candidate, champion, mask=mask, resamples=resamples)
            p = effect.p_worse_than(gate.max_slice_loss)
            row |= {"tested": True, "effect": effect.value, "low": effect.low, "high": effect.high, "p": p}
        table.append(row)
    tested = [row for row in table if row["tested"]]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row |= {"p_adjusted": p, "failed": p <= 1 - gate.confidence}
    return table


def _compare(
    setting: Setting, rows: Rows, candidate: Scored, champion: Scored, *, mask: NDArray[np.bool_], resamples: int
) -> Effect:
    return compare(
        setting.gate.metric,
        label=rows.label[mask],
        candidate=candidate.scores[mask],
        champion=champion.scores[mask],
        day=rows.day[mask],
        confidence=setting.gate.confidence,
        resamples=resamples,
        seed=setting.seed,
    )


def _enough(rows: Rows, mask: NDArray[np.bool_], gate: Gate) -> bool:
    """Whether a slice can be tested: days enough, and a metric that is defined there."""
    label = rows.label[mask]
    both_classes = gate.metric not in {"auc", "pr_auc"} or 0 < label.mean() < 1
    return len(np.unique(rows.day[mask])) >= gate.min_days and both_classes


def _overlaps(setting: Setting, rows: Rows, candidate: Scored, champion: Scored | None) -> Iterator[Reason]:
    start = setting.holdout_start
    for role, model in (("candidate", candidate), ("champion", champion)):
        if model is not None and start < model.cutoff + setting.label_delay:
            text = (
                f"the holdout starts {start:%Y-%m-%d %H:%M}, but the {role} (version {model.version}) has learnt from"
                f" labels up to {model.cutoff:%Y-%m-%d %H:%M}, which mature within {setting.label_delay}"
            )
            yield "holdout-overlaps-training", text
    first = np.datetime64(start.replace(tzinfo=None), "us")
    if len(rows.label) and rows.prediction_time.min() < first:
        yield "rows-outside-holdout", f"a row was predicted at {rows.prediction_time.min()}, before {first}"


def _bad_scores(kind: Kind, candidate: Scored, champion: Scored | None) -> Iterator[Reason]:
    for role, model in (("candidate", candidate), ("champion", champion)):
        if model is None:
            continue
        bad = int(np.count_nonzero(~np.isfinite(model.scores)))
        if bad:
            yield "scores-not-finite", f"{bad} scores of the {role} (version {model.version}) are NaN or infinite"
        elif kind == "binary" and len(model.scores) and (model.scores.min() < 0 or model.scores.max() > 1):
            yield "scores-not-probabilities", f"scores of the {role} (version {model.version}) leave [0, 1]"


def _too_little(setting: Setting, rows: Rows) -> list[Reason]:
    gate, n, days = setting.gate, len(rows.label), len(np.unique(rows.day))
    found: list[Reason] = []
    if n < gate.min_rows:
        found.append(("too-few-rows", f"{n} labelled rows, {gate.min_rows} are needed"))
    if days < gate.min_days:
        found.append(("too-few-days", f"rows of {days} days, {gate.min_days} are needed"))
    if setting.kind == "binary" and n and len(np.unique(rows.label)) < 2:
        found.append(("one-class", f"all {n} labels are {rows.label[0]:g}"))
    return found


def _not_better(setting: Setting, effect: Effect, low: float) -> Iterator[Reason]:
    gate = setting.gate
    if effect.value <= gate.min_effect:
        yield "not-better", f"effect {effect.value:+.5f} {gate.metric}, more than {gate.min_effect} is needed"
    elif not low > gate.min_effect:
        text = (
            f"effect {effect.value:+.5f} {gate.metric}, but it may be as little as {low:+.5f}"
            f" ({gate.confidence:.0%} sure); more than {gate.min_effect} is needed"
        )
        yield "not-surely-better", text


def _objections(setting: Setting, evidence: Mapping[str, Any]) -> Iterator[Reason]:
    gate = setting.gate
    for row in evidence["slices"]:
        if row.get("failed"):
            text = (
                f"{row['column']} = {row['value']}: worse by {-row['effect']:.5f} {gate.metric} on {row['rows']} rows,"
                f" surely more than {gate.max_slice_loss} (adjusted p {row['p_adjusted']:.4f})"
            )
            yield "slice-worse", text
    if evidence["calibration_gap"] > gate.max_calibration_gap:
        yield "miscalibrated", f"calibration gap {evidence['calibration_gap']:.4f} is above {gate.max_calibration_gap}"
    if not setting.latency_ms <= gate.max_latency_ms:
        yield "too-slow", f"one row takes {setting.latency_ms:.1f} ms, {gate.max_latency_ms:g} ms are allowed"
    alarm, value = gate.leak_alarm, evidence["leak_alarm"]["value"]
    too_high, too_low = alarm.above is not None and value > alarm.above, alarm.below is not None and value < alarm.below
    if too_high or too_low:
        limit = f"above {alarm.above}" if too_high else f"below {alarm.below}"
        yield "leak-alarm", f"{alarm.metric} {value:.4f} is {limit}: too good to be true, look for a leaked label"


def _facts(setting: Setting, rows: Rows, candidate: Scored, champion: Scored | None) -> dict[str, Any]:
    days = np.unique(rows.day)
    return {
        "candidate": {"version": candidate.version, "cutoff": candidate.cutoff.isoformat()},
        "champion": champion and {"version": champion.version, "cutoff": champion.cutoff.isoformat()},
        "rows": len(rows.label),
        "days": len(days),
        "first_day": str(days[0]) if len(days) else None,
        "last_day": str(days[-1]) if len(days) else None,
        "rows_sha256": rows.fingerprint,
        "holdout_start": setting.holdout_start.isoformat(),
        "latency_ms": setting.latency_ms,
        "seed": setting.seed,
        "thresholds": setting.gate.model_dump(mode="json"),
    }


def _judgement(answer: str, reasons: list[Reason], evidence: dict[str, Any]) -> Judgement:
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
