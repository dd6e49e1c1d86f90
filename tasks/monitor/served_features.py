"""The features of what was served: those that the champion's answers in time were made of, as they were logged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from psycopg2 import sql

from adapters.connect import Outside
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.monitor import drift
from tasks.monitor.drift import SCORE, Basis, FeatureDrift, choose_measures

# An answer in time `a`, and the row `o` of the log that has the features it was made of.
LOGGED_ANSWER = """
online_answers o on (o.use_case, o.request_id, o.position, o.model_version, o.entity_key, o.event_time)
    = (a.use_case, a.request_id, a.position, a.model_version, a.entity_key, a.event_time)"""
_FEATURES = f"""
select {{columns}} from answers_in_time a join {LOGGED_ANSWER}
left join recalibrations r on (r.use_case, r.model_version) = (a.use_case, a.model_version)
where a.use_case = %s and coalesce(r.network_version, a.model_version) = %s and a.in_time and a.answered_at <= %s
    and a.prediction_time >= %s and a.prediction_time < %s
order by a.prediction_time, a.entity_key collate "C", a.event_time
"""  # noqa: S608  # our own condition


@dataclass(frozen=True, kw_only=True)
class MeasuredDrift:
    """How far a partition moved. `judged` are the rows of `basis`; `answers` in time by the champion, of `points`."""

    basis: Basis
    drifts: list[FeatureDrift]
    judged: pa.Table
    answers: int
    points: int

    def describe(self) -> dict[str, Any]:
        """As a decision's evidence keeps it."""
        coverage = self.answers / self.points if self.points else 0.0
        return {"basis": self.basis, "answers": self.answers, "points": self.points, "coverage": coverage}


def load_served_features(
    use_case: UseCase,
    profile: Mapping[str, Any],
    outside: Outside,
    *,
    network_version: str,
    partition: Interval,
    as_of: datetime,
) -> pa.Table:
    """The profiled features, the score among them, of a network's answers in time that were given by a data time."""
    query = sql.SQL(_FEATURES).format(columns=sql.SQL(", ").join(_columns(profile)))
    params = (use_case.name, network_version, as_of, partition.start, partition.end)
    with outside.warehouse.transaction(snapshot=True) as at:
        return outside.warehouse.copy_out(query, params, at=at)


def measure_served_drift(
    use_case: UseCase, profile: Mapping[str, Any], served: pa.Table, points: pa.Table
) -> MeasuredDrift:
    """The drift of what was served where that is enough of the partition's points, else that of the points."""
    monitor = use_case.monitor
    restated = drift.measure_drift(profile, points, monitor)
    needed = max(monitor.min_rows, monitor.min_coverage * points.num_rows)
    is_enough = use_case.answers_events and served.num_rows >= needed
    return MeasuredDrift(
        basis=Basis.SERVED if is_enough else Basis.RESTATED,
        drifts=choose_measures(drift.measure_drift(profile, served, monitor), restated) if is_enough else restated,
        judged=served if is_enough else points,
        answers=served.num_rows,
        points=points.num_rows,
    )


def _columns(profile: Mapping[str, Any]) -> Iterator[sql.Composable]:
    raw = "a.score * exp(-r.intercept) / (1 - a.score + a.score * exp(-r.intercept))"  # as the network answered
    yield sql.SQL(f"case when r.intercept is null then a.score else {raw} end as {{}}").format(sql.Identifier(SCORE))
    for name, reference in profile["features"].items():
        if name != SCORE:
            kind = sql.SQL("text" if reference["kind"] == "text" else "float8")
            yield sql.SQL("(o.features ->> {})::{} as {}").format(sql.Literal(name), kind, sql.Identifier(name))
