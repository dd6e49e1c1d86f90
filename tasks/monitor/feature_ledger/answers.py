"""The features that answers in time used, beside those of batch, one by one and to the bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2.extensions import cursor

from features import FeatureSet
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from serving.reasons import DegradedReason
from tasks.monitor.restated import EventKey, list_event_keys
from tasks.monitor.served_features import LOGGED_ANSWER

_MICROSECOND = timedelta(microseconds=1)
EVENT = "event"  # stands for the event itself, where batch has none
Value = float | str | bool | None
EventValues = Mapping[EventKey, Mapping[str, Value]]

_ANSWERS = f"""
select a.entity_key, a.event_time, a.prediction_time, a.model_version, o.reasons, o.feature_as_of, o.feature_snapshot,
    o.feature_changes, o.request, o.features
from answers_in_time a left join {LOGGED_ANSWER}
where a.use_case = %s and a.in_time and a.prediction_time >= %s and a.prediction_time < %s
order by a.prediction_time, a.entity_key collate "C", a.event_time"""  # noqa: S608  # our own condition


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """An answer in time, what it was asked, and what it used.

    `snapshot`, `changes` and `known_until` say what the store held: a dataset, the stream's steps, and that all that
    became known before a moment was in it; None: it was silent, or that was not logged. `features` is None where the
    answer did not reach `online_answers`.
    """

    key: EventKey
    prediction_time: datetime
    model_version: str
    reasons: tuple[str, ...]
    known_until: datetime | None
    snapshot: str | None
    changes: int | None
    request: Mapping[str, Any]
    features: Mapping[str, Value] | None

    @property
    def is_store_silent(self) -> bool:
        """Whether it was given without the store."""
        return DegradedReason.STORE_SILENT.value in self.reasons

    @property
    def behind(self) -> datetime | None:
        """The last moment of which all was known, where that is before its prediction time: for that it was made."""
        if self.known_until is None or self.known_until > self.prediction_time:
            return None
        return self.known_until - _MICROSECOND


@dataclass(frozen=True, kw_only=True)
class FeatureDifference:
    """One feature of one answer that batch has otherwise; None: nothing."""

    answer: ServedAnswer
    feature: str
    served: Value
    batch: Value


def read_answers(at: cursor, use_case: UseCase, partition: Interval) -> list[ServedAnswer]:
    """The answers in time whose prediction time lies in a partition."""
    at.execute(_ANSWERS, (use_case.name, partition.start, partition.end))
    return [
        ServedAnswer(
            key=(row[0], row[1].astimezone(UTC)),
            prediction_time=row[2].astimezone(UTC),
            model_version=row[3],
            reasons=tuple(row[4] or ()),
            known_until=None if row[5] is None else row[5].astimezone(UTC),
            snapshot=row[6],
            changes=row[7],
            request=row[8] or {},
            features=row[9],
        )
        for row in at.fetchall()
    ]


def compare_features(
    definition: FeatureSet, answers: Sequence[ServedAnswer], points: pa.Table
) -> tuple[int, list[FeatureDifference]]:
    """How many features were compared, and those that differ; of an event that batch does not have, the event.

    Nothing equals nothing; numbers are 32-bit floats, and equal or not: the logged ones are exact.
    """
    places = {key: place for place, key in enumerate(list_event_keys(points))}
    known = [answer for answer in answers if answer.key in places]
    batch = points.take(pa.array([places[answer.key] for answer in known], pa.int64()))
    found = [
        FeatureDifference(answer=answer, feature=EVENT, served=True, batch=None)
        for answer in answers
        if answer.key not in places
    ]
    names = [*definition.numeric, *definition.categorical]
    for name in names:
        kind = points.schema.field(name).type
        served = pa.array([_read(answer, name) for answer in known], kind)
        found += [
            FeatureDifference(
                answer=known[place], feature=name, served=to_value(served[place]), batch=to_value(batch[name][place])
            )
            for place in find_unequal(served, batch[name].combine_chunks())
        ]
    return len(answers) * len(names), found


def _read(answer: ServedAnswer, name: str) -> Value:
    return None if answer.features is None else answer.features.get(name)


def find_unequal(left: pa.Array, right: pa.Array) -> list[int]:
    """Where two columns of one type differ. What is no number is nothing: so it was logged."""
    values, others = (column.to_numpy(zero_copy_only=False) for column in (left, right))
    if pa.types.is_floating(left.type):
        values, others = (np.where(np.isfinite(each), each, np.nan) for each in (values, others))
        return np.flatnonzero((values != others) & ~(np.isnan(values) & np.isnan(others))).tolist()
    return np.flatnonzero(values != others).tolist()


def to_value(scalar: pa.Scalar) -> Value:
    """As a ledger keeps it; what is no number is nothing."""
    value: Value = scalar.as_py()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_values(points: pa.Table, keys: frozenset[EventKey], names: Sequence[str]) -> dict[EventKey, dict[str, Value]]:
    """The features of some events; those that are no points are left out."""
    places = {key: place for place, key in enumerate(list_event_keys(points)) if key in keys}
    chosen = points.take(pa.array(places.values(), pa.int64()))
    columns = {name: [to_value(scalar) for scalar in chosen[name]] for name in names}
    return {
        key: {EVENT: True, **{name: values[row] for name, values in columns.items()}} for row, key in enumerate(places)
    }
