"""The events that are to be answered by themselves, each with its request, from when it is known until its answer."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg2.extras
import pyarrow as pa
from psycopg2.extensions import cursor

from features import FeatureSet
from features.followed import FollowedSeries
from features.offline_requests import to_request
from features.stream_change import StreamChange
from pipeline.spec import UseCase

EventKey = tuple[str, datetime]

_PAGE_ROWS = 500
_CLEAR = "delete from known_events where use_case = %s and prediction_time >= %s"
_REMOVE = """
delete from known_events k using (values %s) as gone (use_case, entity_key, event_time)
where (k.use_case, k.entity_key, k.event_time) = (gone.use_case, gone.entity_key, gone.event_time)"""
_PUT = """
insert into known_events (use_case, entity_key, event_time, prediction_time, request)
select * from (values %s) as known (use_case, entity_key, event_time, prediction_time, request)
where not exists (select from answers_in_time a where (a.use_case, a.entity_key, a.event_time)
    = (known.use_case, known.entity_key, known.event_time))
on conflict (use_case, entity_key, event_time) do update
set prediction_time = excluded.prediction_time, request = excluded.request, problem = null"""


@dataclass(frozen=True, kw_only=True)
class EventChanges:
    """Prediction time and request of each event that came, or changed; the keys of those that went.

    `all_since`: from this prediction time on no other is known.
    """

    known: Mapping[EventKey, tuple[datetime, dict[str, Any]]]
    gone: Iterable[EventKey]
    all_since: datetime | None = None


class EventList:
    """What one session tells of events: all there are at first, and then what changed."""

    def __init__(self, definition: FeatureSet, series: FollowedSeries, told_until: datetime | None) -> None:
        """`series` follow their events. Those that were due before `told_until`, a session before has told of.

        What became known since is due since: nothing is asked about before it is known.
        """
        self._definition, self._series, self._told_until = definition, series, told_until
        self._is_listed = False

    def find_changed(self, since: datetime, changed: StreamChange | None) -> EventChanges:
        """The events from a prediction time on among those that changed; the first time, all that may be new."""
        if not self._is_listed:
            self._is_listed = True
            first = max(since, self._told_until or since)
            return EventChanges(known=self._read(self._series.list_events(first), first), gone=(), all_since=first)
        if changed is None:
            return EventChanges(known={}, gone=())
        known = self._read(changed.coming, since)
        gone = self._read(changed.going, since).keys() - known.keys()
        return EventChanges(known=known, gone=sorted(gone))

    def _read(self, events: pa.Table, since: datetime) -> dict[EventKey, tuple[datetime, dict[str, Any]]]:
        rows = (
            row | {name: row[name].replace(tzinfo=UTC) for name in ("event_time", "prediction_time")}
            for row in events.to_pylist()
        )
        return {
            (row["entity_key"], row["event_time"]): (row["prediction_time"], to_request(self._definition, row))
            for row in rows
            if row["prediction_time"] >= since
        }


def write_events(at: cursor, use_case: UseCase, events: EventChanges) -> None:
    """Keep what changed, in the caller's transaction; an event that was answered is not asked about again."""
    if events.all_since is not None:
        at.execute(_CLEAR, (use_case.name, events.all_since))
    remove_events(at, use_case, events.gone)
    put = [(use_case.name, *key, moment, json.dumps(request)) for key, (moment, request) in events.known.items()]
    template = "(%s, %s, %s::timestamptz, %s::timestamptz, %s::jsonb)"
    psycopg2.extras.execute_values(at, _PUT, put, template=template, page_size=_PAGE_ROWS)


def remove_events(at: cursor, use_case: UseCase, keys: Iterable[EventKey]) -> None:
    """Events that were answered, or that are no more, are asked about no more; in the caller's transaction."""
    gone = [(use_case.name, *key) for key in keys]
    psycopg2.extras.execute_values(at, _REMOVE, gone, template="(%s, %s, %s::timestamptz)", page_size=_PAGE_ROWS)
