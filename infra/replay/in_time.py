"""How a week was answered in time, beside what batch works out afterwards, and what the last partition alone would say.

All on the same events: those of the week that have a label and an answer in time. `restated` is the version that
answered, on the features that batch has made since; `last_partition` is the same version on an online store that knows
what was ingested by the week's begin, and nothing after it; a partition that was mended since, as it was mended.
"""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adapters.connect import Outside
from features import FeatureSet
from features.offline_requests import load_past_requests
from infra.replay.measures import score_metrics
from infra.replay.state import ReplayError
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.settings import Settings
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.as_online import compute_as_online
from tasks.build_features.followed_series import kept_interval
from tasks.build_features.learnt_features import load_learnt_points
from tasks.build_features.manifest import clean_files
from tasks.monitor.restated import EventKey, list_event_keys, rescore_events

_ANSWERS = """
select entity_key, event_time, model_version, score, in_time, degraded,
    greatest(0, extract(epoch from prediction_time - known_until))::float / 60 as age_minutes,
    extract(epoch from answered_at - prediction_time)::float / 60 as delay_minutes
from answers_in_time where use_case = %s and prediction_time >= %s and prediction_time < %s"""

_IS_ANSWERED = """
select from answers_in_time where use_case = %s and prediction_time >= %s and prediction_time < %s limit 1"""
_PROCESSES = 2  # each takes some 700 MB


@dataclass(frozen=True, kw_only=True)
class AnsweredWeek:
    """One week of answers. `events` are all whose prediction time lies in it; ages and delays are of data time.

    An age is how far before its prediction time the history of an answer ends: 0 where it knew all there was to know.
    """

    start: datetime
    events: int
    answered: int
    in_time: int
    knew_all: int
    degraded: int
    age_minutes_p50: float
    age_minutes_p99: float
    delay_minutes_p99: float
    compared: int
    metrics: Mapping[str, Mapping[str, float]]  # in_time | restated | last_partition -> metric -> value; may be empty

    @property
    def share_in_time(self) -> float:
        """Of all known events."""
        return self.in_time / self.events if self.events else float("nan")


def measure_weeks(
    use_case: UseCase, outside: Outside, snapshot: Snapshot, weeks: Sequence[Interval], names: tuple[str, ...]
) -> list[AnsweredWeek]:
    """How each of some weeks was answered, those left out of which no event was; a few at a time, each in a process.

    Raises:
        ReplayError: a process ended before it had measured its week, as where memory is short.
    """
    asked = [week for week in weeks if outside.warehouse.query(_IS_ANSWERED, (use_case.name, week.start, week.end))]
    if not asked:
        return []
    processes = min(_PROCESSES, len(os.sched_getaffinity(0)), len(asked))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = [pool.submit(_measure_alone, use_case, outside.settings, snapshot, week, names) for week in asked]
        try:
            return [week for each in started if (week := each.result()) is not None]
        except BrokenProcessPool as error:
            raise ReplayError(f"the weeks of the report could not be measured: {error}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _measure_alone(
    use_case: UseCase, settings: Settings, snapshot: Snapshot, week: Interval, names: tuple[str, ...]
) -> AnsweredWeek | None:
    return measure_week(use_case, Outside(settings), snapshot, week, names)


def measure_week(
    use_case: UseCase, outside: Outside, snapshot: Snapshot, week: Interval, names: tuple[str, ...]
) -> AnsweredWeek | None:
    """How a week was answered; None: no event of it was."""
    answers = {
        (row["entity_key"], row["event_time"].astimezone(UTC)): row
        for row in outside.warehouse.query(_ANSWERS, (use_case.name, week.start, week.end))
    }
    if not answers:
        return None
    events = dataset.load_points(snapshot.version, use_case, outside, start=week.start, end=week.end).num_rows
    rows = dataset.load_rows(snapshot.version, use_case, outside, start=week.start, end=week.end, known_by=snapshot.end)
    labels = dict(zip(list_event_keys(rows), rows["label"].to_pylist(), strict=True))
    compared = [key for key in labels if key in answers and answers[key]["in_time"]]
    truth = np.array([labels[key] for key in compared])
    again = _Rescoring(use_case, outside, snapshot, week)
    scores = {
        "in_time": [answers[key]["score"] for key in compared],
        **again.score({key: answers[key]["model_version"] for key in compared}),
    }
    ages = np.array([row["age_minutes"] if row["age_minutes"] is not None else np.inf for row in answers.values()])
    return AnsweredWeek(
        start=week.start,
        events=events,
        answered=len(answers),
        in_time=sum(row["in_time"] for row in answers.values()),
        knew_all=int(np.sum(ages == 0)),
        degraded=sum(row["degraded"] for row in answers.values()),
        age_minutes_p50=float(np.quantile(ages, 0.5, method="higher")),
        age_minutes_p99=float(np.quantile(ages, 0.99, method="higher")),
        delay_minutes_p99=float(np.quantile([row["delay_minutes"] for row in answers.values()], 0.99, method="higher")),
        compared=len(compared),
        metrics=compare_scores(use_case.target.kind, names, scores, truth),
    )


def compare_scores(
    kind: str, names: tuple[str, ...], scores: Mapping[str, list[float]], truth: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    """The metrics of some scores of the same events [n]; none where too few came out differently for any to tell."""
    if len(np.unique(truth)) < (2 if kind == "binary" else 1):
        return {}
    return {which: score_metrics(names, truth, np.array(values)) for which, values in scores.items()}


class _Rescoring:
    """The events of a week as they can be scored at the end of a replay, by whichever version."""

    def __init__(self, use_case: UseCase, outside: Outside, snapshot: Snapshot, week: Interval) -> None:
        self._use_case, self._outside, self._snapshot, self._week = use_case, outside, snapshot, week

    def score(self, versions: Mapping[EventKey, str]) -> dict[str, list[float]]:
        """Scores of events by the version named for each: on the features of batch, and on the last partition's."""
        builds = {"restated": self._build_afterwards, "last_partition": self._build_before}
        scores = {
            which: rescore_events(self._use_case, versions, build, self._outside) for which, build in builds.items()
        }
        return {which: [found[key] for key in versions] for which, found in scores.items()}

    def _build_afterwards(self, definition: FeatureSet) -> pa.Table:
        where = {"start": self._week.start, "end": self._week.end}
        return load_learnt_points(definition, self._snapshot.version, self._use_case, self._outside, **where)

    def _build_before(self, definition: FeatureSet) -> pa.Table:
        """By the server's own code, on the store that a refresh makes of what was ingested by the week's begin."""
        lead = self._use_case.time.lead
        reach = kept_interval(self._use_case, self._snapshot)
        kept = Interval(self._week.start - (reach.end - reach.start), self._week.start)
        tables = clean_files(self._snapshot, self._week, self._outside, definition)
        asked = load_past_requests(definition, tables, self._week, lead).drop_columns(["entity_key", "event_time"])
        before = clean_files(self._snapshot, kept, self._outside, definition)
        return compute_as_online(definition, before, kept, lead, asked)


def pool_answers(weeks: list[AnsweredWeek]) -> dict[str, dict[str, float]]:
    """The means of the weekly metrics, weighted by the events that were compared."""
    told = [week for week in weeks if week.metrics]
    weights = [week.compared for week in told]
    return {
        which: {
            name: float(np.average([week.metrics[which][name] for week in told], weights=weights))
            for name in told[0].metrics[which]
        }
        for which in (told[0].metrics if told else ())
    }


def describe_week(week: AnsweredWeek) -> dict[str, Any]:
    """As the report's data keeps it."""
    return {**asdict(week), "start": week.start.isoformat(), "share_in_time": week.share_in_time}
