"""What was answered in time, judged; beside it the same events by the same versions on the features made since.

A late answer is none. Judged are the answers since the champion began to answer, by whichever version, for what counts
is what was answered; before it began, those of the versions that answered in its place. By data time alone: an answer
is known from `answered_at` on, a label from its own time on. Where too few of the events were answered in time, by the
dials `min_labelled` and `min_coverage`, they say nothing, and the batch scores are judged instead.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extras import execute_values

from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from features import FeatureSet
from models.metrics import compute_metrics
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.learnt_features import UncomputableFeatures, is_made_by, load_learnt_definition
from tasks.common.ledger import Champion
from tasks.monitor.drift import Basis
from tasks.monitor.interval_quality import measure_intervals, restate_bounds
from tasks.monitor.judged_rows import judge_rows
from tasks.monitor.performance import LABEL_FINGERPRINT, find_changed_windows, trailing_window
from tasks.monitor.performance_limits import Performance, PerformanceStatus, look_longer
from tasks.monitor.restated import list_event_keys, rescore_events

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

logger = logging.getLogger(__name__)

_BEGUN = """
select min(prediction_time) as begun from answers_in_time left join recalibrations using (use_case, model_version)
where use_case = %s and coalesce(network_version, model_version) = %s and in_time and answered_at <= %s
    and prediction_time >= %s and prediction_time < %s
"""
# The events are those that batch has: a known event that was taken back is none.
_EVENTS = f"""
select p.entity_key, p.event_time, o.label, {LABEL_FINGERPRINT} as fingerprint, a.in_time, a.score, a.lower, a.upper,
    a.model_version, p.prediction_time, again.score as restated
from network_predictions p
left join outcomes o on (o.use_case, o.entity_key, o.event_time) = (p.use_case, p.entity_key, p.event_time)
    and o.label_time <= %s
left join answers_in_time a on (a.use_case, a.entity_key, a.event_time) = (p.use_case, p.entity_key, p.event_time)
    and a.answered_at <= %s
left join predictions again on (again.use_case, again.entity_key, again.event_time, again.model_version)
    = (a.use_case, a.entity_key, a.event_time, a.model_version)
where p.use_case = %s and p.network_version = %s and p.prediction_time >= %s and p.prediction_time < %s
order by p.prediction_time, p.entity_key collate "C", p.event_time
"""  # noqa: S608  # our own expression
_INSERT = """
insert into served_performance (use_case, model_version, window_start, window_end, measured_as_of, labelled, answered,
    late, coverage, versions, metrics, restated, restated_metrics, status, is_judged, labels) values %s"""


@dataclass(frozen=True, kw_only=True)
class ServedPerformance:
    """One row of the table `served_performance`; `performance` is of the answers in time, `restated_*` the same again.

    Where `restated` is less than `answered`, the others could not be scored again, and the two are not of the same
    events.
    """

    model_version: str
    window: Interval
    as_of: datetime
    labelled: int
    answered: int
    late: int
    versions: Mapping[str, int]
    performance: Performance
    restated: int
    restated_metrics: Mapping[str, float]
    is_judged: bool
    labels: str | None

    @property
    def coverage(self) -> float:
        """Of the events with a known label, how many were answered in time."""
        return self.answered / self.labelled if self.labelled else 0.0


def measure_served(
    use_case: UseCase, champion: Champion, as_of: datetime, snapshot_version: str, outside: Outside
) -> list[ServedPerformance]:
    """What was answered in the champion's time first, then the earlier windows whose labels have changed.

    None where events are not answered by themselves: of what clients ask, nobody can say what share it is.
    """
    if not use_case.answers_events:
        return []
    window = _find_window(use_case, champion, as_of, outside)
    measured = [
        (champion.network_version, window),
        *find_changed_windows("served_performance", use_case, as_of, outside),
    ]
    first, *others = [
        measure_served_window(use_case, version, each, outside, as_of=as_of, snapshot_version=snapshot_version)
        for version, each in measured
    ]

    def measure_longer(limited: UseCase) -> Performance:
        longer = _find_window(use_case, champion, as_of, outside, lengths=2)
        events = _load_events(use_case, champion.network_version, longer, as_of, outside)
        return _judge_answers(limited, champion.network_version, events, longer, outside, as_of=as_of)

    return [replace(first, performance=look_longer(use_case, first.performance, measure_longer)), *others]


def measure_served_window(
    use_case: UseCase,
    champion_version: str,
    window: Interval,
    outside: Outside,
    *,
    as_of: datetime,
    snapshot_version: str,
) -> ServedPerformance:
    """The answers to the events of a window that one champion scored in batch, as they are known at a data time."""
    events = _load_events(use_case, champion_version, window, as_of, outside)
    labelled = events.filter(events["label"].is_valid())
    judged = labelled.filter(labelled["in_time"])
    again = _restate(use_case, judged, window, snapshot_version, outside)
    monitor, versions = use_case.monitor, judged["model_version"].to_pylist()
    bounded_again = restate_bounds(use_case, judged, again, versions, outside)
    place = bounded_again.column_names.index("score")
    restated = judge_rows(
        use_case,
        champion_version,
        bounded_again.set_column(place, "score", pa.array(again, pa.float64())),
        window,
        outside,
        metrics=_compute(use_case, again, judged) | measure_intervals(use_case, bounded_again, versions, outside),
        as_of=as_of,
    )
    return ServedPerformance(
        model_version=champion_version,
        window=window,
        as_of=as_of,
        labelled=labelled.num_rows,
        answered=judged.num_rows,
        late=int(pc.sum(pc.invert(labelled["in_time"])).as_py() or 0),
        versions=Counter(versions),
        performance=_compare(
            _judge_answers(use_case, champion_version, events, window, outside, as_of=as_of), restated
        ),
        restated=restated.labelled,
        restated_metrics=restated.metrics,
        is_judged=judged.num_rows >= max(monitor.min_labelled, monitor.min_coverage * labelled.num_rows),
        labels=str(sum(labelled["fingerprint"].to_pylist())) if labelled.num_rows else None,
    )


def _load_events(use_case: UseCase, version: str, window: Interval, as_of: datetime, outside: Outside) -> pa.Table:
    with outside.warehouse.transaction(snapshot=True) as at:
        params = (as_of, as_of, use_case.name, version, window.start, window.end)
        return outside.warehouse.copy_out(_EVENTS, params, at=at)


def _judge_answers(
    use_case: UseCase, champion_version: str, events: pa.Table, window: Interval, outside: Outside, *, as_of: datetime
) -> Performance:
    served = events.filter(events["in_time"])  # null, where nothing was answered, is left out too
    judged = served.filter(served["label"].is_valid())
    metrics = _compute(use_case, judged["score"].to_pylist(), judged)
    metrics |= measure_intervals(use_case, judged, judged["model_version"].to_pylist(), outside)
    return judge_rows(
        use_case, champion_version, served, window, outside, metrics=metrics, as_of=as_of, basis=Basis.SERVED
    )


def write_served(at: "cursor", use_case: UseCase, measured: Sequence[ServedPerformance]) -> None:
    """Insert rows, in the transaction of the decision that is made by the first of them."""
    execute_values(
        at,
        _INSERT,
        [
            (use_case.name, each.model_version, each.window.start, each.window.end, each.as_of, each.labelled,
             each.answered, each.late, each.coverage, json.dumps(each.versions), _as_json(each.performance.metrics),
             each.restated, _as_json(each.restated_metrics), each.performance.status, each.is_judged, each.labels)
            for each in measured
        ],
    )  # fmt: skip


def describe_served(served: ServedPerformance) -> dict[str, Any]:
    """As a decision's evidence keeps it: what was served, and restated beside it."""
    return {
        "window_start": served.window.start.isoformat(),
        "is_judged": served.is_judged,
        "labelled": served.labelled,
        "answered": served.answered,
        "late": served.late,
        "coverage": served.coverage,
        "versions": dict(served.versions),
        "metrics": dict(served.performance.metrics),
        "restated": {"events": served.restated, "metrics": dict(served.restated_metrics)},
    }


def _find_window(
    use_case: UseCase, champion: Champion, as_of: datetime, outside: Outside, lengths: int = 1
) -> Interval:
    """The trailing window, from the champion's first answer on; where it gave none, from its time in force on."""
    whole, in_force = trailing_window(use_case, as_of, lengths), champion.as_of.astimezone(UTC)
    params = (use_case.name, champion.version, as_of, in_force, whole.end)
    [row] = outside.warehouse.query(_BEGUN, params)
    since = max(row["begun"].astimezone(UTC) if row["begun"] else in_force, whole.start)
    return Interval(since, whole.end) if since < whole.end else whole  # of whose events no label has matured


def _compare(given: Performance, restated: Performance) -> Performance:
    """What was served; where only that is outside the limits, a person is told that the model may be innocent."""
    if (given.status, restated.status) != (PerformanceStatus.DEGRADED, PerformanceStatus.OK) or restated.doubts:
        return given
    sentence = "restated, the same events are within the limits: what was answered on has to do with it"
    return replace(given, reasons=(*given.reasons, sentence))


def _restate(
    use_case: UseCase, judged: pa.Table, window: Interval, snapshot_version: str, outside: Outside
) -> list[float | None]:
    """Scores of the same events by the same versions: the stored ones, or made anew; None where neither can be had."""
    keys, versions = list_event_keys(judged), judged["model_version"].to_pylist()
    stored = dict(zip(keys, judged["restated"].to_pylist(), strict=True))
    lacking = {key: version for key, version in zip(keys, versions, strict=True) if stored[key] is None}

    def load_features(_: FeatureSet) -> pa.Table:
        return dataset.load_points(snapshot_version, use_case, outside, start=window.start, end=window.end)

    able = {each for each in set(lacking.values()) if _reads_dataset(use_case, each, snapshot_version, outside)}
    anew = {key: version for key, version in lacking.items() if version in able}
    scores = stored | rescore_events(use_case, anew, load_features, outside)
    return [scores[key] for key in keys]


def _reads_dataset(use_case: UseCase, version: str, snapshot_version: str, outside: Outside) -> bool:
    """Whether a version learnt what the dataset holds: with another definition, weeks would be worked out anew."""
    try:
        definition = load_learnt_definition(use_case, version, outside)
    except (UncomputableFeatures, Missing, Corrupt) as error:
        logger.warning("what version %s answered is not restated: %s", version, error)
        return False
    return is_made_by(definition, snapshot_version, use_case, outside)


def _compute(use_case: UseCase, scores: Sequence[float | None], labelled: pa.Table) -> dict[str, float]:
    """The metrics of the rows [n] that have a score; none without any."""
    pairs = zip(scores, labelled["label"].to_pylist(), strict=True)
    rows = [(score, label) for score, label in pairs if score is not None]
    return compute_metrics(use_case.target.kind, *np.array(rows).T) if rows else {}


def _as_json(metrics: Mapping[str, float]) -> str:
    return json.dumps(dict(metrics), allow_nan=False)
