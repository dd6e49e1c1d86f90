"""The later events of one stream by key and by the two hours: what changes of a few keys costs little, however many lie
there. Plain Python: of a hundred small payloads, each call into Arrow or numpy would cost more than its work.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

import pyarrow as pa

from features.series import Series, to_microseconds
from features.series_codec import pack_events
from features.stream_change import StreamChange, to_tuples

_CHUNK = timedelta(hours=2) // timedelta(microseconds=1)

_Row = tuple[Any, ...]
_Key = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class RecentPart:
    """Rows of a stream whose moment is `split` or later (naive UTC) lie apart, in the order of all of its series."""

    moment: str
    split: datetime
    order: tuple[str, ...]


@dataclass
class _Chunk:
    """Events of one key, in order: what orders each, and its row; and their bytes, unless these are stale."""

    events: list[tuple[_Row, _Row]] = field(default_factory=list)
    payload: bytes | None = None


class RecentEvents:
    """What lies apart of a stream, for all of its series. A chunk is of two hours from the first split on.

    The payloads are what `series_codec.pack_series` makes of the same events.
    """

    def __init__(self, part: RecentPart, series: Sequence[Series], rows: pa.Table) -> None:
        self._places = {name: place for place, name in enumerate(rows.column_names)}
        self._moment = self._places[part.moment]
        self._since = to_microseconds(part.split)
        self._order = [self._places[name] for name in part.order]
        self._series = {each.name: (each, self._reader(each.key)) for each in series}
        self._held = {name: defaultdict[_Key, dict[int, _Chunk]](dict) for name in self._series}
        for row in to_tuples(rows):
            for chunk, event in self._find_chunks(row):
                chunk.events.append(event)
        for keys in self._held.values():
            for chunks in keys.values():
                for chunk in chunks.values():
                    chunk.events.sort(key=_ordering)

    def list_keys(self, series: Series) -> list[_Key]:
        """The keys that have events."""
        return list(self._held[series.name])

    def apply(self, change: StreamChange) -> list[tuple[Series, set[_Key]]]:
        """Events that come, then events that go: of two changes in one, the later may take what the earlier brought.

        The keys that are touched, by series.
        """
        coming, going = [*to_tuples(change.coming)], [*to_tuples(change.going)]
        for row in coming:
            for chunk, event in self._find_chunks(row):
                insort(chunk.events, event, key=_ordering)
        for row in going:
            for chunk, event in self._find_chunks(row):
                place = bisect_left(chunk.events, event[0], key=_ordering)
                while chunk.events[place][1] != row:
                    place += 1
                del chunk.events[place]
        rows = coming + going
        return [
            (series, {key for row in rows if None not in (key := read_key(row))})
            for series, read_key in self._series.values()
        ]

    def pack(self, series: Series, key: _Key) -> list[bytes]:
        """The payloads of a key's events, the later ones last."""
        chunks = self._held[series.name].get(key, {})
        text = series.key_text(key)
        for number in [number for number, chunk in chunks.items() if not chunk.events]:
            del chunks[number]
        if not chunks:
            self._held[series.name].pop(key, None)
        return [self._pack_chunk(series, text, chunks[number]) for number in sorted(chunks)]

    def is_whole_until(self, split: datetime) -> bool:
        """Whether no chunk lies on both sides of a moment (naive UTC)."""
        return not (to_microseconds(split) - self._since) % _CHUNK

    def pack_until(self, split: datetime) -> Iterator[tuple[str, list[bytes]]]:
        """The text of each key, and its payloads before a moment (naive UTC)."""
        until = (to_microseconds(split) - self._since) // _CHUNK
        for name, (series, _) in self._series.items():
            for key in list(self._held[name]):
                text, chunks = series.key_text(key), self._held[name][key]
                numbers = (number for number in sorted(chunks) if number < until and chunks[number].events)
                yield text, [self._pack_chunk(series, text, chunks[number]) for number in numbers]

    def forget_until(self, split: datetime) -> None:
        """Events before a moment (naive UTC) lie apart no more; no chunk lies on both sides of it."""
        until = (to_microseconds(split) - self._since) // _CHUNK
        for name, held in self._held.items():
            left = (
                (key, {number: chunk for number, chunk in chunks.items() if number >= until})
                for key, chunks in held.items()
            )
            self._held[name] = defaultdict(dict, ((key, chunks) for key, chunks in left if chunks))

    def _find_chunks(self, row: _Row) -> Iterator[tuple[_Chunk, tuple[_Row, _Row]]]:
        """Where a row belongs in each series, as an event; what was packed there is stale."""
        event = (_to_order([row[place] for place in self._order]), row)
        number = (row[self._moment] - self._since) // _CHUNK
        for name, (series, read_key) in self._series.items():
            key = read_key(row)
            if None in key or (series.lookup and row[self._places["known_until"]] == row[self._places["known_at"]]):
                continue
            chunk = self._held[name][key].setdefault(number, _Chunk())
            chunk.payload = None
            yield chunk, event

    def _pack_chunk(self, series: Series, text: str, chunk: _Chunk) -> bytes:
        if chunk.payload is None:
            columns = list(zip(*(row for _, row in chunk.events), strict=True))
            stored: dict[str, Sequence[Any]] = {"moment": columns[self._moment]}
            stored |= {name: columns[self._places[name]] for name in (*series.sums, *series.columns)}
            for number, fields in enumerate(series.orders):
                places = [self._places[name] for name in fields]
                records = [_to_order([row[place] for place in places]) for _, row in chunk.events]
                stored[f"rank{number}"] = _rank(records)
            chunk.payload = pack_events(text, [(stored[name], kind) for name, kind in series.stored.items()])
        return chunk.payload

    def _reader(self, names: Sequence[str]) -> Callable[[_Row], _Key]:
        places = [self._places[name] for name in names]
        if len(places) > 1:
            return itemgetter(*places)
        return lambda row: tuple(row[place] for place in places)


def _ordering(event: tuple[_Row, _Row]) -> _Row:
    return event[0]


def _to_order(values: Sequence[Any]) -> _Row:
    """What is in the order in which SQL has such values: what is no number behind those that are, nothing last."""
    return tuple((2, 0) if value is None else (1, 0) if value != value else (0, value) for value in values)  # noqa: PLR0124


def _rank(records: Sequence[_Row]) -> list[int]:
    """One more than the records that are less than each."""
    in_order = sorted(records)
    first = dict[_Row, int]()
    for place, record in enumerate(in_order):
        first.setdefault(record, place + 1)
    return [first[record] for record in records]
