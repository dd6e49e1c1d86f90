"""How well the online answers did: metrics on labels that had their time, and how far they are from the batch scores.

Measured by partition and model version as of the latest features, again whenever answers, labels or batch scores of a
partition have changed since: a restatement is a new row. An answer must equal the batch score where both were
made from the same data: history as fresh, with nothing late or corrected since. For the others (stale) the difference
is only recorded.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adapters.connect import Outside
from models.metrics import compute_metrics
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.monitor.interval_quality import measure_intervals

_PARTITIONS = 8  # the latest: practically every label has come by then
# An event that was asked about twice counts by its last answer. A label counts a label lag after its prediction.
_SERVED = """
with served as (
    select distinct on (entity_key, event_time, model_version) *
    from online_answers
    where use_case = %s and slot in ('stable', 'candidate') and prediction_time >= %s and prediction_time < %s
    order by entity_key, event_time, model_version, answered_at desc, request_id, position)
select s.model_version, s.score, s.lower, s.upper, s.prediction_time,
    s.degraded or coalesce(s.feature_age_seconds, 1) > 0
        or (known.index #>> %s) is distinct from (scored.index #>> %s) as stale, s.degraded, o.label,
    p.score as batch_score,
    ('x' || left(md5(concat_ws('|', s.entity_key, extract(epoch from s.event_time), s.score, s.degraded,
        coalesce(o.label::text, '-'), coalesce(p.score::text, '-'))), 15))::bit(60)::bigint as fingerprint
from served s
left join outcomes o on (o.use_case, o.entity_key, o.event_time) = (s.use_case, s.entity_key, s.event_time)
    and o.label_time <= %s and s.prediction_time < %s
left join predictions p on (p.use_case, p.entity_key, p.event_time, p.model_version)
    = (s.use_case, s.entity_key, s.event_time, s.model_version)
left join snapshots known on (known.use_case, known.version) = (s.use_case, s.feature_snapshot)
left join snapshots scored on (scored.use_case, scored.version) = (p.use_case, p.snapshot_version)
order by s.model_version, s.prediction_time, s.entity_key collate "C", s.event_time
"""
_KNOWN = """
select seen from online_quality where use_case = %s and partition_start = %s and model_version = %s
order by measured_as_of desc limit 1
"""
_KEY = ("use_case", "partition_start", "model_version", "measured_as_of")


@dataclass(frozen=True, kw_only=True)
class OnlineQuality:
    """One row of the table `online_quality`; `seen` is a fingerprint of what it was made from."""

    use_case: str
    partition_start: datetime
    model_version: str
    measured_as_of: datetime
    answers: int
    degraded: int
    labelled: int
    metrics: str
    compared: int
    beyond: int
    max_difference: float | None
    max_stale_difference: float | None
    seen: str


def measure_online_quality(use_case: UseCase, outside: Outside) -> list[OnlineQuality]:
    """Write what is new, and raise the alert on skew, or end it. Measuring again writes nothing."""
    snapshot = dataset.latest_snapshot(use_case, outside)
    if use_case.endpoint is None or snapshot is None:
        return []
    end = snapshot.end.astimezone(UTC)
    first = max(snapshot.start.astimezone(UTC), end - _PARTITIONS * timedelta(days=use_case.grid.days))
    rows = [
        row
        for part in use_case.grid.covering(Interval(first, end))
        for row in measure_partition_quality(use_case, part, end, outside)
    ]
    fresh = [row for row in rows if _is_new(row, outside)]
    if fresh:
        table = pa.table({name: [getattr(row, name) for row in fresh] for name in vars(fresh[0])})
        with outside.warehouse.transaction() as at:
            outside.warehouse.upsert(at, "online_quality", table, _KEY)
            _update_alert(at, use_case, rows, outside)
        outside.alerts.flush()
    return fresh


def measure_partition_quality(
    use_case: UseCase, partition: Interval, as_of: datetime, outside: Outside
) -> list[OnlineQuality]:
    """Each version that answered events of a partition: by the labels known at a data time of what was predicted a
    label lag before it, and beside batch scores of all."""
    with outside.warehouse.transaction(snapshot=True) as at:
        inputs = [use_case.grid.key(partition), "inputs"]  # what the partition's features were made from
        params = (use_case.name, partition.start, partition.end, inputs, inputs, as_of, as_of - use_case.time.label_lag)
        rows = outside.warehouse.copy_out(_SERVED, params, at=at)
    return [
        _quality(use_case, partition, as_of, rows.filter(pc.equal(rows["model_version"], version)), outside)
        for version in pc.unique(rows["model_version"]).to_pylist()
    ]


def _quality(
    use_case: UseCase, partition: Interval, as_of: datetime, rows: pa.Table, outside: Outside
) -> OnlineQuality:
    assert use_case.endpoint is not None
    labelled = rows.filter(rows["label"].is_valid())
    score, label = (labelled[name].to_numpy() for name in ("score", "label"))
    metrics = compute_metrics(use_case.target.kind, score, label) if len(label) else {}
    metrics |= measure_intervals(use_case, labelled, labelled["model_version"].to_pylist(), outside)
    scored = rows.filter(rows["batch_score"].is_valid())
    difference = np.abs(scored["score"].to_numpy() - scored["batch_score"].to_numpy())
    stale = scored["stale"].to_numpy().astype(bool)
    equal = difference[~stale]
    return OnlineQuality(
        use_case=use_case.name,
        partition_start=partition.start,
        model_version=rows["model_version"][0].as_py(),
        measured_as_of=as_of,
        answers=rows.num_rows,
        degraded=int(pc.sum(rows["degraded"]).as_py() or 0),
        labelled=labelled.num_rows,
        metrics=json.dumps(metrics, allow_nan=False),
        compared=len(equal),
        beyond=int((equal > use_case.endpoint.rollout.tolerance).sum()),
        max_difference=float(equal.max()) if len(equal) else None,
        max_stale_difference=float(difference[stale].max()) if stale.any() else None,
        seen=str(sum(rows["fingerprint"].to_pylist())),
    )


def _is_new(row: OnlineQuality, outside: Outside) -> bool:
    known = outside.warehouse.query(_KNOWN, (row.use_case, row.partition_start, row.model_version))
    return not known or known[0]["seen"] != row.seen


def _update_alert(at: Any, use_case: UseCase, rows: list[OnlineQuality], outside: Outside) -> None:
    """Skew in the latest partition that was compared is an alert; once there is none it is over."""
    compared = [row for row in rows if row.compared]
    latest = max((row.partition_start for row in compared), default=None)
    skewed = [row for row in compared if row.partition_start == latest and row.beyond]
    fingerprint = f"{use_case.name}.online.skew"
    lines = [
        f"version {row.model_version}: {row.beyond} of {row.compared} answers on fresh features are off, by up to"
        f" {row.max_difference:.2e}"
        for row in skewed
    ]
    if skewed:
        outside.alerts.record(
            at,
            tier="warning",
            use_case=use_case.name,
            fingerprint=fingerprint,
            title=f"{use_case.name}: online answers differ from the batch, partition {latest:%Y-%m-%d}",
            body="\n".join([*lines, "docs/runbooks/degraded-answers.md"]),
        )
    elif compared:
        outside.alerts.resolve(fingerprint, at)
