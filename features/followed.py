"""The series of a definition, kept current as rows of its sources come and go.

What changes of its streams names the keys whose series are extracted again; the rest stays. So the series are at every
moment those that a rebuild from the same rows gives, to the byte: a property test holds them to it, and with them the
declared grains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from features.engine import FeatureSet, moment_sql
from features.followed_streams import FollowedStreams, same_sql
from features.offline_requests import requests_sql
from features.recent_rows import RecentRows
from features.series import Series, extract_sql, list_series, point_kinds
from features.series_codec import key_texts, pack_series
from features.stream_change import RecentPart, SourceChange, StreamChange, is_later

_ASKED = "asked"


@dataclass(frozen=True)
class ChangedSeries:
    """Payloads by the texts of their keys; None: no event is left there.

    `events` are those that can be asked about, where they are followed: entity_key, event_time and prediction_time
    (naive UTC), and what a request tells of each. Those that go are known no more, or others come for them.
    """

    settled: dict[str, bytes | None] = field(default_factory=dict)
    recent: dict[str, bytes | None] = field(default_factory=dict)
    events: StreamChange | None = None


class FollowedSeries:
    """The series of one definition from `since` on; events from `split` on lie apart, so that what is new is small.

    `tables` are clean Parquet files, as `extract_series` takes them; `identities` are the columns that tell a source's
    rows apart. With `asks`, the events that can be asked about are followed too. For one thread.
    """

    def __init__(
        self,
        definition: FeatureSet,
        tables: Mapping[str, Sequence[Path]],
        identities: Mapping[str, Sequence[str]],
        *,
        since: datetime,
        split: datetime,
        lead: timedelta,
        asks: bool = False,
    ) -> None:
        self._definition, self._since = definition, since
        self._split = split.astimezone(UTC).replace(tzinfo=None)
        self._series = list_series(definition, point_kinds(definition))
        self._recent = {series.stream: self._find_recent(series.stream) for series in self._series}
        if asks:
            self._recent[_ASKED] = None
        self._streams = FollowedStreams(definition, tables, identities, since=since, lead=lead, streams=self._recent)

    def close(self) -> None:
        """Free the memory."""
        self._streams.connection.close()

    def pack_all(self) -> ChangedSeries:
        """Every series there is."""
        packed = ChangedSeries()
        for series in self._series:
            self._pack(packed, series)
        return packed

    def list_events(self, since: datetime) -> pa.Table:
        """The events that can be asked about whose prediction time is not before a moment."""
        return self._to_requests(f"stream_{_ASKED} where prediction_time >= {moment_sql(since)}")

    def apply(self, changes: Mapping[str, SourceChange]) -> ChangedSeries:
        """Change the rows of sources, each identity at most once, and compute again what that touches.

        Raises:
            ValueError: rows lack a column, or hold values of another type; then nothing was changed.
        """
        with self._streams.changed(changes) as changed:
            asked = changed.get(_ASKED)
            packed = ChangedSeries(
                events=asked and StreamChange(self._request(asked.coming), self._request(asked.going))
            )
            for stream, change in changed.items():
                self._pack_changed(packed, stream, change.rows)
        return packed

    def _pack_changed(self, packed: ChangedSeries, stream: str, differs: pa.Table) -> None:
        if (part := self._recent[stream]) is None:
            for series in self._list_series(stream):
                self._pack(packed, series, differs)
            return
        later = is_later(differs[part.moment], part.split)
        if (settled := differs.filter(pc.invert(later))).num_rows:
            for series in self._list_series(stream):
                self._pack(packed, series, settled, sides=(False,))
        if (recent := differs.filter(later)).num_rows:
            self._pack_recent(packed, stream, recent)

    def _pack_recent(self, packed: ChangedSeries, stream: str, differs: pa.Table) -> None:
        of_stream = self._list_series(stream)
        rows = RecentRows(self._streams.read_recent(stream), of_stream[0].order)
        for series in of_stream:
            keys = _find_keys(series, differs)
            found = dict(pack_series(series, rows.select(series, keys)))
            if len(found) < keys.num_rows:
                packed.recent.update(dict.fromkeys(key_texts(series, keys)))
            packed.recent.update(found)

    def _list_series(self, stream: str) -> list[Series]:
        return [series for series in self._series if series.stream == stream]

    def _request(self, asked: pa.Table) -> pa.Table:
        with self._streams.registered(rows_given=asked):
            return self._to_requests("rows_given")

    def _to_requests(self, asked: str) -> pa.Table:
        query = f"with asked as (from {asked}) {requests_sql(self._definition)}"
        return self._streams.connection.sql(query).to_arrow_table()

    def _find_recent(self, stream: str) -> RecentPart | None:
        """Where all series of a stream have the same later part, in one order, it lies apart: so it is found fast."""
        of_stream = self._list_series(stream)
        is_one = len({series.order for series in of_stream}) == 1 and all(series.is_parted for series in of_stream)
        return RecentPart(moment=of_stream[0].moment, split=self._split) if is_one else None

    def _pack(
        self,
        packed: ChangedSeries,
        series: Series,
        differs: pa.Table | None = None,
        *,
        sides: Sequence[bool] = (False, True),
    ) -> None:
        """Each key's series, in its parts; where rows differ, those of their keys only."""
        for recent in sides:
            if (side := self._side_sql(series, recent=recent)) is None:
                continue
            into = packed.recent if recent else packed.settled
            events = f"{'recent' if recent and self._recent[series.stream] else 'stream'}_{series.stream} s"
            if differs is None:
                into |= self._extract(series, f"{events} where {side}")
            elif (keys := _find_keys(series, self._filter_side(series, differs, recent=recent))).num_rows:
                events += f" semi join keys_given k on {same_sql(series.key, 'k', 's')} where {side}"
                with self._streams.registered(keys_given=keys):
                    into |= dict.fromkeys(key_texts(series, keys)) | self._extract(series, events)

    def _extract(self, series: Series, events: str) -> dict[str, bytes]:
        query = extract_sql(series, f"(select s.* from {events})", self._since)
        return dict(pack_series(series, self._streams.connection.sql(query).to_arrow_table()))

    def _side_sql(self, series: Series, *, recent: bool) -> str | None:
        """SQL condition: the events of one part; None where a series has no such part."""
        if not series.is_parted:
            return None if recent else "true"
        return f"{series.moment} {'>=' if recent else '<'} {moment_sql(self._split.replace(tzinfo=UTC))}"

    def _filter_side(self, series: Series, rows: pa.Table, *, recent: bool) -> pa.Table:
        """Those of one part."""
        if not series.is_parted:
            return rows
        later = is_later(rows[series.moment], self._split)
        return rows.filter(later if recent else pc.invert(later))


def _find_keys(series: Series, rows: pa.Table) -> pa.Table:
    """The keys of rows; without columns, where a series has no key."""
    if not series.key:
        return pa.table({"all": [True][: rows.num_rows]})
    return rows.select(series.key).drop_null().group_by(list(series.key)).aggregate([])
