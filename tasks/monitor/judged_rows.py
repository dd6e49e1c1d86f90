"""A window's rows made into a judgement: which of its missing labels may still come, what the model is held against.

By data time alone: what earlier windows came to, what the gate saw, and how others scored the same events.
"""

import json
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adapters.connect import Outside
from adapters.errors import Corrupt
from models.metrics import METRICS, compute_metrics
from pipeline.fields import BLOCK_DAYS, ENTITY_GROUPS, FEWEST_BLOCKS
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.ledger import find_judged_version
from tasks.monitor.drift import Basis
from tasks.monitor.performance_bounds import MetricBounds, WatchedRows, bound_metrics
from tasks.monitor.performance_limits import Performance, Shown, judge_performance, look_confidence
from tasks.promote.interval_coverage import measure_coverage

logger = logging.getLogger(__name__)

_REMEMBERED_WINDOWS = 10  # so far back in time, in lengths of a window
# Of windows whose labels have not changed for the length of one: what share never gets a label, as a rule, and what
# share got one after the window was first measured, at most. One that lost its labels is no rule.
_AT_REST = """
select percentile_cont(0.5) within group (order by 1 - latest::float8 / predicted) as never,
    max((latest - first)::float8 / predicted) as late
from (
    select (array_agg(labelled order by measured_as_of))[1] as first,
        (array_agg(labelled order by measured_as_of desc))[1] as latest,
        (array_agg(predicted order by measured_as_of desc))[1] as predicted
    from performance where use_case = %s and measured_as_of < %s and window_end >= %s
    group by model_version, window_start, window_end having max(measured_as_of) <= %s
) as windows where predicted >= %s and latest >= %s * predicted
"""
_INDEX = "select index from snapshots where use_case = %s order by build_order desc limit 1"
_OUTCOMES = """
select count(*) as labelled, count(*) filter (where label_time > event_time + %s) as late from outcomes
where use_case = %s and event_time >= %s and event_time < %s and label_time <= %s
"""
_SHOWN = """
select evidence_uri from verdicts where use_case = %s and candidate_version = %s and answer = 'promote'
order by judged_at desc limit 1
"""
_OTHERS = """
select entity_key, event_time, network_version as model_version, score as other_score from network_predictions
where use_case = %s and network_version <> %s and prediction_time >= %s and prediction_time < %s
"""


def judge_rows(
    use_case: UseCase,
    version: str,
    rows: pa.Table,
    window: Interval,
    outside: Outside,
    *,
    metrics: Mapping[str, float],
    as_of: datetime,
    basis: Basis = Basis.RESTATED,
) -> Performance:
    """The judgement about a version by its rows [n] in a window, and the metrics of those that have score and label.

    The columns are entity_key, prediction_time, score, label, lower and upper, of which the last four may be null.
    """
    scored = rows.filter(rows["score"].is_valid())
    labelled = scored.filter(scored["label"].is_valid())
    outstanding = count_outstanding(use_case, rows.num_rows, rows["label"].null_count, as_of, outside)
    watched = _watch(use_case, scored, window, outstanding)
    confidence = look_confidence(use_case.gate.confidence)
    names = [name for name in dict.fromkeys((*use_case.monitor.limits, use_case.gate.metric)) if name in metrics]
    bounds = bound_metrics(watched, [name for name in names if name in METRICS], confidence=confidence)
    if "interval_coverage" in names:
        bounds["interval_coverage"] = _bound_coverage(labelled, watched, confidence)
    return judge_performance(
        predicted=rows.num_rows,
        labelled=labelled.num_rows,
        metrics=metrics,
        monitor=use_case.monitor,
        basis=basis,
        bounds=bounds,
        shown=load_shown(use_case, version, outside),
    )


def count_outstanding(use_case: UseCase, predicted: int, missing: int, as_of: datetime, outside: Outside) -> int:
    """How many of the missing labels may still come: the label lag of all has passed.

    As many as came late before, and all beyond the share that was left without one before: in earlier windows, else in
    the dataset; where there is neither, all.
    """
    length, monitor = timedelta(days=use_case.monitor.performance_days), use_case.monitor
    past = Interval((as_of - _REMEMBERED_WINDOWS * length).astimezone(UTC), (as_of - length).astimezone(UTC))
    params = (use_case.name, as_of, past.start, past.end, monitor.min_labelled, monitor.min_coverage)
    [found] = outside.warehouse.query(_AT_REST, params)
    never, late = found["never"], found["late"]
    if never is None:
        never, late = _find_shares_of_dataset(use_case, past, as_of, outside)
    expected: float = max(late * predicted, missing - never * predicted)
    return min(missing, max(0, math.ceil(expected - 1e-9)))  # a share of rows is not exact


def _find_shares_of_dataset(
    use_case: UseCase, past: Interval, as_of: datetime, outside: Outside
) -> tuple[float, float]:
    """Of the points predicted in a past of whole partitions: the share without a label, and that with a late one."""
    newest = outside.warehouse.query(_INDEX, (use_case.name,))
    parts = {
        use_case.grid.partition(key): entry.get("rows", 0)
        for key, entry in (newest[0]["index"] if newest else {}).items()
    }
    settled = past.end - use_case.time.label_lag
    chosen = {part: rows for part, rows in parts.items() if past.start <= part.start and part.end <= settled}
    points = sum(chosen.values())
    if points < use_case.monitor.min_labelled:
        return 0.0, 1.0
    start, end = (moment + use_case.time.lead for moment in (min(chosen).start, max(chosen).end))
    params = (use_case.time.label_delay, use_case.name, start, end, as_of)
    [told] = outside.warehouse.query(_OUTCOMES, params)
    return max(0.0, 1 - told["labelled"] / points), told["late"] / points


def load_shown(use_case: UseCase, version: str, outside: Outside) -> Shown | None:
    """What a version, or its judged twin, showed on its holdout when the gate let it through.

    None where no verdict of it was kept, or its evidence cannot be had any more.
    """
    judged = find_judged_version(use_case, version, outside)
    verdicts = outside.warehouse.query(_SHOWN, (use_case.name, judged))
    if not verdicts:
        return None
    try:
        evidence = json.loads(outside.lake.read(verdicts[0]["evidence_uri"]))
    except (FileNotFoundError, Corrupt) as error:
        logger.warning("what version %s showed at the gate cannot be read: %s", judged, error)
        return None
    metrics = {name: value for name, value in evidence["metrics"][judged].items() if value is not None}
    return Shown(metric=use_case.gate.metric, rows=evidence["rows"], metrics=metrics)


def measure_references(
    use_case: UseCase, version: str, rows: pa.Table, window: Interval, outside: Outside
) -> dict[str, dict[str, Any]]:
    """What others come to on a version's labelled rows: the constant that fits them best, and who scored them, too.

    Of other versions only the rows that both scored count, of which there must be `min_labelled`.
    """
    labelled = rows.filter(rows["label"].is_valid()).select(["entity_key", "event_time", "score", "label"])
    if not labelled.num_rows:
        return {}
    kind, label = use_case.target.kind, labelled["label"].to_numpy()
    best = np.median(label) if use_case.gate.metric == "mae" else label.mean()
    found: dict[str, dict[str, Any]] = {
        "constant": {"rows": len(label), "metrics": compute_metrics(kind, np.full(len(label), best), label)}
    }
    with outside.warehouse.transaction(snapshot=True) as at:
        others = outside.warehouse.copy_out(_OTHERS, (use_case.name, version, window.start, window.end), at=at)
    both = labelled.join(others, ["entity_key", "event_time"], join_type="inner")
    both = both.sort_by([(name, "ascending") for name in ("event_time", "entity_key")])  # so that sums are the same
    for other in sorted(pc.unique(both["model_version"]).to_pylist()):
        same = both.filter(pc.equal(both["model_version"], other))
        if same.num_rows >= use_case.monitor.min_labelled:
            theirs, ours, truth = (same[name].to_numpy() for name in ("other_score", "score", "label"))
            found[other] = {
                "rows": same.num_rows,
                "metrics": compute_metrics(kind, theirs, truth),
                "champion": compute_metrics(kind, ours, truth),
            }
    return found


def _watch(use_case: UseCase, scored: pa.Table, window: Interval, outstanding: int) -> WatchedRows:
    """Blocks are the gate's, counted from the window's start; shorter where it would have fewer than the fewest."""
    kind = use_case.gate_block
    if kind == "entity":
        _, code = np.unique(np.asarray(scored["entity_key"].to_pylist(), dtype=np.str_), return_inverse=True)
        block = code % ENTITY_GROUPS
    else:
        days = max(1, min(BLOCK_DAYS[kind], (window.end - window.start).days // FEWEST_BLOCKS))
        start = np.datetime64(window.start.astimezone(UTC).replace(tzinfo=None), "us")
        since = scored["prediction_time"].to_numpy().astype("datetime64[us]") - start
        block = since // np.timedelta64(days, "D")
    return WatchedRows(
        score=scored["score"].to_numpy(),
        label=scored["label"].to_numpy(),
        block=block,
        is_serial=kind != "entity",
        is_binary=use_case.target.kind == "binary",
        outstanding=outstanding,
    )


def _bound_coverage(labelled: pa.Table, watched: WatchedRows, confidence: float) -> MetricBounds:
    """As other metrics: an outstanding label lies in its interval, or does not."""
    has_bounds = labelled["lower"].is_valid()
    lower, upper, label = (labelled.filter(has_bounds)[name].to_numpy() for name in ("lower", "upper", "label"))
    block = watched.block[watched.labelled][has_bounds.to_numpy()]
    seen, more = measure_coverage(lower, upper, label, block, confidence=confidence), watched.outstanding
    inside = seen.covered * seen.rows
    least, most = inside / (seen.rows + more), (inside + more) / (seen.rows + more)
    return MetricBounds(
        value=seen.covered,
        least=least,
        most=most,
        low=max(0.0, least - (seen.covered - seen.low)),
        high=min(1.0, most + (seen.high - seen.covered)),
        outstanding=more,
        rows=seen.rows,
        blocks=seen.days,
    )
