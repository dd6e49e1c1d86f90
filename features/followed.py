"""The series of a definition, kept current as rows of its sources come and go.

What changes of its streams names the keys whose series are extracted again; the rest stays. So the series are at every
moment those that a rebuild from the same rows gives, to the byte: a property test holds them to it, and with them the
declared grains.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from features.engine import FeatureSet, Span, moment_sql
from features.followed_streams import FollowedStreams
from features.offline_requests import requests_sql
from features.raw_rows import registered
from features.recent_events import RecentEvents, RecentPart
from features.row_sql import same_sql
from features.series import Series, extract_sql, list_series, point_kinds
from features.series_codec import join_payloads, key_texts, pack_series, read_key_values, read_keys
from features.stream_change import SourceChange, SourceKey, StreamChange, is_later
from features.unsettled import UnsettledSeries, name_series

_ASKED = "asked"


@dataclass(frozen=True)
class ChangedSeries:
    """Payloads by the texts of their keys; None: no event is left there.

    `uncut` are texts of keys whose settled part is as it was stored, cut at an earlier moment.

    `events` are those that can be asked about, where they are followed: entity_key, event_time and prediction_time
    (naive UTC), and what a request tells of each. Those that go are known no more, or others come for them.
    """

    settled: dict[str, bytes | None] = field(default_factory=dict)
    recent: dict[str, bytes | None] = field(default_factory=dict)
    uncut: set[str] = field(default_factory=set)
    events: StreamChange | None = None


class FollowedSeries:
    """The series of one definition from `since` on; events from `split` on lie apart, so that what is new is small.

    `tables` are clean Parquet files, as `extract_series` takes them. With `asks`, the events that can be asked about
    are followed too. For one thread.

    `move` goes on to later files in place. Series that are stored by then are cut at another moment, or hold what no
    point looks back on any more: those are *unsettled* until their settled part changes, or `settle` takes them, some
    at a time. Meanwhile what lay apart before the move is carried along in their later part.
    """

    def __init__(
        self,
        definition: FeatureSet,
        tables: Mapping[str, Sequence[Path]],
        keys: Mapping[str, SourceKey],
        *,
        since: datetime,
        split: datetime,
        lead: timedelta,
        asks: bool = False,
    ) -> None:
        self._definition, self._since = definition, since
        self._split = split.astimezone(UTC).replace(tzinfo=None)
        self._series = list_series(definition, point_kinds(definition))
        self._unsettled = UnsettledSeries(self._series)
        self._is_whole = False  # whether what lay apart was carried at the last move
        parts = {series.stream: self._find_recent(series.stream) for series in self._series}
        if asks:
            parts[_ASKED] = None
        self._streams = FollowedStreams(definition, tables, keys, since=since, lead=lead, parts=parts)
        self._recent = self._read_recent()
        self._schemas = {series.stream: self._streams.read_schema(series.stream) for series in self._series}

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
        with self._read_anew_on_error(), self._streams.changed(changes) as changed:
            packed = self._begin_packing(changed)
            for stream, change in changed.items():
                self._pack_changed(packed, stream, change)
            self._settle(packed, self._unsettled.find(packed.settled) | self._unsettled.find_uncarried(packed.recent))
            packed.uncut.update(self._unsettled.find(packed.recent))
        self._unsettled.note_stored(packed.settled, packed.recent)
        return packed

    def move(
        self,
        files: Mapping[str, Sequence[Path]],
        spans: Mapping[str, Span],
        kept: Mapping[str, pa.Table],
        *,
        since: datetime,
        split: datetime,
    ) -> ChangedSeries:
        """Go on to later files: the rows that became known in a span are those of files, and what that touches is new.

        `kept` are the identities of rows that became known after the files end, and stay. Nothing is forgotten: rows
        before the spans stay. After an error this is to be left.

        Raises:
            ValueError: the files lack a column, or hold values of another type.
        """
        self._since, self._split = since, split.astimezone(UTC).replace(tzinfo=None)
        self._carry()
        with self._streams.moved(files, spans, kept) as changed:
            packed = self._begin_packing(changed)
            self._streams.shift_split(self._split)
            self._move_recent(changed)
            for stream, change in changed.items():
                for series in self._list_series(stream):
                    self._pack(packed, series, _find_keys(series, change.rows))
        self._unsettled.note_stored(packed.settled, packed.recent)
        carried = {series.name for series in self._series if self._is_whole and series.stream in self._recent}
        self._unsettled.mark_moved({*packed.settled, *packed.recent}, carried)
        return packed

    @property
    def is_settled(self) -> bool:
        """Whether no series is unsettled."""
        return not self._unsettled

    def mark_stored(self, stored: Iterable[tuple[str, bool, bool]]) -> None:
        """These are all the series that are stored: texts of keys, whether each has a later part, and is cut elsewhere.

        Those that are cut elsewhere may hold what was forgotten since, even such as last for ever.
        """
        self._unsettled.mark_stored(stored)

    def settle(self, most: int, *, is_busy: bool = False) -> ChangedSeries:
        """Some of the series that are unsettled, anew: keys of one, as many as are asked for, or fewer.

        Where it `is_busy`, those whose every change costs more than it does until then, or else a few.
        """
        packed = ChangedSeries()
        self._settle(packed, self._unsettled.list_first(most, is_busy=is_busy))
        self._unsettled.note_stored(packed.settled, packed.recent)
        return packed

    def _settle(self, packed: ChangedSeries, texts: Iterable[str]) -> None:
        by_series = defaultdict[str, list[str]](list)
        for text in texts:
            by_series[name_series(text)].append(text)
            self._unsettled.settle(text)
        for series in self._series:
            if chosen := by_series[series.name]:
                self._pack(packed, series, read_keys(series, chosen, self._schemas[series.stream]))

    def _begin_packing(self, changed: Mapping[str, StreamChange]) -> ChangedSeries:
        asked = changed.get(_ASKED)
        return ChangedSeries(events=asked and StreamChange(self._request(asked.coming), self._request(asked.going)))

    def _pack_changed(self, packed: ChangedSeries, stream: str, change: StreamChange) -> None:
        if (part := self._streams.parts[stream]) is None:
            for series in self._list_series(stream):
                for recent in (False, True):
                    rows = self._filter_side(series, change.rows, recent=recent)
                    self._pack(packed, series, _find_keys(series, rows), sides=(recent,))
            return
        settled, later = change.divide(part.moment, part.split)
        if settled.rows.num_rows:
            for series in self._list_series(stream):
                self._pack(packed, series, _find_keys(series, settled.rows), sides=(False,))
        if later.rows.num_rows:
            events = self._recent[stream]
            for series, keys in events.apply(later):
                for key in keys:
                    text = series.key_text(key)
                    payloads = [*self._unsettled.get_carried(text), *events.pack(series, key)]
                    packed.recent[text] = join_payloads(text, payloads)

    def _move_recent(self, changed: Mapping[str, StreamChange]) -> None:
        """What lies apart begins at the new split."""
        if not self._is_whole:
            self._recent = self._read_recent()
            return
        for stream, events in self._recent.items():
            events.forget_until(self._split)
            if (part := self._streams.parts[stream]) is not None and stream in changed:
                _, later = changed[stream].divide(part.moment, part.split)
                events.apply(later)

    def _carry(self) -> None:
        """Keep what lies apart before the new split, for the series that are not cut there yet."""
        self._is_whole = all(events.is_whole_until(self._split) for events in self._recent.values())
        for events in self._recent.values() if self._is_whole else ():
            for text, payloads in events.pack_until(self._split):
                self._unsettled.carry(text, payloads)

    def _read_recent(self) -> dict[str, RecentEvents]:
        """What lies apart of each stream of which something does."""
        return {
            stream: RecentEvents(part, self._list_series(stream), self._streams.read_recent(stream))
            for stream, part in self._streams.parts.items()
            if part is not None
        }

    @contextmanager
    def _read_anew_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._recent = self._read_recent()
            raise

    def _list_series(self, stream: str) -> list[Series]:
        return [series for series in self._series if series.stream == stream]

    def _request(self, asked: pa.Table) -> pa.Table:
        with registered(self._streams.connection, rows_given=asked):
            return self._to_requests("rows_given")

    def _to_requests(self, asked: str) -> pa.Table:
        query = f"with asked as (from {asked}) {requests_sql(self._definition)}"
        return self._streams.connection.sql(query).to_arrow_table()

    def _find_recent(self, stream: str) -> RecentPart | None:
        """Where all series of a stream have the same later part, in one order, it lies apart: so it is found fast."""
        of_stream = self._list_series(stream)
        is_one = len({series.order for series in of_stream}) == 1 and all(series.is_parted for series in of_stream)
        first = of_stream[0]
        return RecentPart(moment=first.moment, split=self._split, order=first.order) if is_one else None

    def _pack(
        self,
        packed: ChangedSeries,
        series: Series,
        keys: pa.Table | None = None,
        *,
        sides: Sequence[bool] = (False, True),
    ) -> None:
        """The series of some keys, or of every key, in parts."""
        if keys is not None and not keys.num_rows:
            return
        for recent in sides:
            into = packed.recent if recent else packed.settled
            if recent and (events := self._recent.get(series.stream)):
                wanted = events.list_keys(series) if keys is None else read_key_values(series, keys)
                texts = ((series.key_text(key), key) for key in wanted)
                into |= {text: join_payloads(text, events.pack(series, key)) for text, key in texts}
            elif (side := self._side_sql(series, recent=recent)) is not None:
                into |= {} if keys is None else dict.fromkeys(key_texts(series, keys))
                into |= self._extract(series, keys, side)

    def _extract(self, series: Series, keys: pa.Table | None, side: str) -> dict[str, bytes]:
        events, given = f"stream_{series.stream} s", dict[str, pa.Table]()
        if keys is not None:
            given["keys_given"] = keys
            events += f" semi join keys_given k on {same_sql(series.key, 'k', 's')}"
        with registered(self._streams.connection, **given):
            query = extract_sql(series, f"(select s.* from {events} where {side})", self._since)
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
