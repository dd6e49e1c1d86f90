"""What the replay's report shows, read from the warehouse and the models: pure numbers, no pictures."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from adapters.connect import Outside
from infra.replay.state import ReplayError
from models import metrics
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from serving.predictor import Predictor
from tasks.build_features import dataset


@dataclass(frozen=True, kw_only=True)
class ReplayedWeek:
    """One replayed partition: how the frozen first champion and the live one did on the same labelled rows."""

    start: datetime
    end: datetime
    rows: int
    labelled: int
    live_version: str
    frozen: dict[str, float]
    live: dict[str, float]
    decision: str
    reasons: list[str]
    retrain_outcome: str | None
    recalibrated: bool = False


def _live_scores(
    use_case: UseCase, outside: Outside, week: Interval, model_version: str
) -> dict[tuple[str, datetime], float]:
    rows = outside.warehouse.query(
        "select entity_key, event_time, score from predictions "
        "where use_case = %s and prediction_time >= %s and prediction_time < %s and model_version = %s",
        (use_case.name, week.start, week.end, model_version),
    )
    return {(row["entity_key"], row["event_time"]): row["score"] for row in rows}


def score_metrics(names: tuple[str, ...], labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """These metrics of scores [n] of labels [n]."""
    return {name: float(metrics.compute_metric(name, scores, labels)) for name in names}


def _decisions(use_case: UseCase, outside: Outside) -> dict[datetime, dict[str, Any]]:
    rows = outside.warehouse.query(
        "select d.*, r.outcome, c.model_version is not null as recalibrated from decisions d"
        " left join retrains r using (decision_id) left join recalibrations c using (decision_id)"
        " where d.use_case = %s",
        (use_case.name,),
    )
    return {row["as_of"]: row for row in rows}


def compare_weeks(use_case: UseCase, names: tuple[str, ...], outside: Outside) -> list[ReplayedWeek]:
    """Every decided partition, oldest first, with these metrics on the labels known by the latest snapshot's end."""
    snapshot = dataset.latest_snapshot(use_case, outside)
    if snapshot is None:
        return []
    frozen = Predictor.load(outside.registry.download_bundle(use_case.name, find_first_champion(use_case, outside)))
    found = []
    for as_of, decision in sorted(_decisions(use_case, outside).items()):
        week = Interval(as_of - timedelta(days=use_case.grid.days), as_of)
        table = dataset.load_rows(
            snapshot.version, use_case, outside, start=week.start, end=week.end, known_by=snapshot.end
        )
        scores = _live_scores(use_case, outside, week, decision["model_version"])
        keys = list(zip(table["entity_key"].to_pylist(), table["event_time"].to_pylist(), strict=True))
        missing = [key for key in keys if key not in scores]
        if missing:
            raise ReplayError(f"{len(missing)} labelled rows of {week} have no prediction, such as {missing[0]}")
        labels = table["label"].to_numpy()
        found.append(
            ReplayedWeek(
                start=week.start,
                end=week.end,
                rows=len(scores),
                labelled=len(keys),
                live_version=decision["model_version"],
                frozen=score_metrics(names, labels, frozen.predict(table)),
                live=score_metrics(names, labels, np.array([scores[key] for key in keys])),
                decision=decision["decision"],
                reasons=list(decision["reasons"]),
                retrain_outcome=decision["outcome"],
                recalibrated=decision["recalibrated"],
            )
        )
    return found


def find_first_champion(use_case: UseCase, outside: Outside) -> str:
    """The model version of the first promotion."""
    rows = outside.warehouse.query(
        "select model_version from ledger where use_case = %s and action = 'promote' order by entry limit 1",
        (use_case.name,),
    )
    if not rows:
        raise ValueError(f"{use_case.name} has no champion yet: there is nothing to report")
    return str(rows[0]["model_version"])


def list_ledger_entries(use_case: UseCase, outside: Outside) -> list[dict[str, Any]]:
    """Every promotion and refusal, in order."""
    return outside.warehouse.query("select * from ledger where use_case = %s order by entry", (use_case.name,))


def list_alerts(use_case: UseCase, outside: Outside) -> list[dict[str, Any]]:
    """Every alert, in order."""
    return outside.warehouse.query("select * from alerts where use_case = %s order by alert_id", (use_case.name,))


def list_drift_ratios(use_case: UseCase, outside: Outside) -> tuple[list[datetime], dict[str, list[float]]]:
    """Week starts and, per feature, PSI over its calibrated threshold (NaN where it could not be measured)."""
    rows = outside.warehouse.query(
        "select as_of, feature, value, threshold from drift where use_case = %s and measure = 'psi' order by as_of",
        (use_case.name,),
    )
    moments = sorted({row["as_of"] for row in rows})
    place = {moment: index for index, moment in enumerate(moments)}
    ratios: dict[str, list[float]] = {}
    for row in rows:
        series = ratios.setdefault(row["feature"], [float("nan")] * len(moments))
        series[place[row["as_of"]]] = float("nan") if row["value"] is None else row["value"] / row["threshold"]
    return [moment - timedelta(days=use_case.grid.days) for moment in moments], ratios
