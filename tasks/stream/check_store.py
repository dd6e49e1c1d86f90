"""Is the online store what a rebuild from scratch gives? Made at once, and compared series by series; changes nothing.

    python -m tasks.stream.check_store <use case>

Series that still lie as they did before the store's last move are compared event by event, all others byte by byte.
"""

import argparse
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

from psycopg2.extensions import cursor

from adapters.connect import Outside
from features import FeatureSet
from features.key_events import KeyEvents, decode_series
from features.series import Series, list_series, point_kinds, to_microseconds
from features.unsettled import name_series
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.followed_rows import FollowedSource, read_followed
from tasks.build_features.followed_series import apply_rows, build_followed_series, kept_interval
from tasks.build_features.learnt_features import iterate_definitions_in_use
from tasks.common.command import parse_command, report_mistakes
from tasks.stream.session import LOOK_BACKS_HELD

Parts = tuple[bytes | None, bytes | None]  # settled, recent
_Event = tuple[Any, ...]

_NAMED = 5
_NOTHING: Parts = (None, None)
_STATES = "select definition, snapshot_version from online_state where use_case = %s and split is not null order by 1"
_SERIES = "select key, payload, recent from online_series where use_case = %s and definition = %s"


@dataclass(frozen=True, kw_only=True)
class CheckedStore:
    """The series of all definitions in use: as a rebuild gives them to the byte, or as far as predictions look back."""

    same_bytes: int
    same_events: int
    different: tuple[str, ...]  # texts of keys

    def describe(self) -> str:
        """As text."""
        total = self.same_bytes + self.same_events + len(self.different)
        told = f"{total:,} series: {self.same_bytes:,} to the byte as a rebuild gives them"
        if self.same_events:
            told += (
                f", {self.same_events:,} the same events, cut elsewhere or with some that no prediction looks back on"
            )
        if self.different:
            told += f", {len(self.different):,} DIFFERENT, such as {', '.join(self.different[:_NAMED])}"
        return told


@dataclass(frozen=True, kw_only=True)
class _Rebuild:
    """Makes the series of one definition anew, from a dataset and the rows that were followed since."""

    use_case: UseCase
    definition: FeatureSet
    snapshot: Snapshot
    outside: Outside
    followed: FollowedSource

    def make(self, since: datetime) -> dict[str, Parts]:
        """The parts of every series, for predictions from a moment on."""
        built = build_followed_series(
            self.use_case, self.definition, self.snapshot, self.outside, self.followed.identities, since=since
        )
        with closing(built) as series:
            apply_rows(series, self.use_case, self.definition, self.followed.rows, self.followed.identities)
            packed = series.pack_all()
        return {text: (packed.settled.get(text), packed.recent.get(text)) for text in {*packed.settled, *packed.recent}}


def check_store(use_case: UseCase, outside: Outside) -> CheckedStore:
    """Compare the store of a followed use case with a rebuild, both of one moment.

    Raises:
        ValueError: nothing is followed there, or a definition in use is not where the others are.
    """
    with outside.warehouse.transaction(snapshot=True) as at:
        at.execute(_STATES, (use_case.name,))
        versions = dict(at.fetchall())
        snapshots = [dataset.find_snapshot(version, use_case, outside) for version in set(versions.values())]
        snapshot = max(snapshots, key=lambda each: each.end, default=None)
        followed = None if snapshot is None else read_followed(at, use_case, snapshot.end)
        if snapshot is None or followed is None:
            raise ValueError(f"{use_case.name}: the online store is not followed yet")
        digests = [digest for digest, version in versions.items() if version == snapshot.version]
        stored = {digest: _read_parts(at, use_case, digest) for digest in digests}
    since, found, lost = kept_interval(use_case, snapshot).start, list[CheckedStore](), list[str]()
    for definition in iterate_definitions_in_use(use_case, outside, lost=lost):
        if (parts := stored.get(definition.digest())) is not None:
            rebuild = _Rebuild(
                use_case=use_case, definition=definition, snapshot=snapshot, outside=outside, followed=followed
            )
            before = since - LOOK_BACKS_HELD * definition.look_back
            series = list_series(definition, point_kinds(definition))
            found.append(compare_parts(series, parts, rebuild.make(since), partial(rebuild.make, before), since))
        else:
            lost.append(definition.digest())
    if lost or not found:
        raise ValueError(f"{use_case.name}: definitions in use that cannot be compared: {lost or 'there is none'}")
    return CheckedStore(
        same_bytes=sum(each.same_bytes for each in found),
        same_events=sum(each.same_events for each in found),
        different=tuple(text for each in found for text in each.different),
    )


def _read_parts(at: cursor, use_case: UseCase, digest: str) -> dict[str, Parts]:
    at.execute(_SERIES, (use_case.name, digest))
    every = {row[0]: (_to_bytes(row[1]), _to_bytes(row[2])) for row in at.fetchall()}
    return {text: parts for text, parts in every.items() if parts != _NOTHING}


def compare_parts(
    series: Iterable[Series],
    stored: Mapping[str, Parts],
    rebuilt: Mapping[str, Parts],
    rebuild_before: Callable[[], Mapping[str, Parts]],
    since: datetime,
) -> CheckedStore:
    """The parts of series, by the texts of their keys, beside those made for predictions from a moment on.

    A stream that began before that moment holds more: what it would hold if it had begun as early as it may, at most.
    """
    by_name = {each.name: each for each in series}
    others = [text for text in sorted({*stored, *rebuilt}) if stored.get(text, _NOTHING) != rebuilt.get(text, _NOTHING)]
    before = rebuild_before() if others else {}
    different = list[str]()
    for text in others:
        reader = _EventReader(by_name[name_series(text)], text, since)
        if not reader.is_between(*(parts.get(text, _NOTHING) for parts in (stored, rebuilt, before))):
            different.append(text)
    return CheckedStore(
        same_bytes=len({*stored, *rebuilt}) - len(others),
        same_events=len(others) - len(different),
        different=tuple(different),
    )


class _EventReader:
    """What lookups read of one key, from the first moment on that a prediction looks back on."""

    def __init__(self, series: Series, text: str, since: datetime) -> None:
        self._series, self._text = series, text
        self._first = None if series.reach is None else to_microseconds(since - series.reach)
        self._ranks = {f"rank{number}" for number in range(len(series.orders))} - {*series.columns}

    def is_between(self, stored: Parts, least: Parts, most: Parts) -> bool:
        """Whether the events of the first are all of the second, in their order, and at most some of the third besides.

        The order of the records of these is the same in each ranking.
        """
        try:
            events, first, last = (self._decode(parts) for parts in (stored, least, most))
        except ValueError:  # damaged
            return False
        listed, fewest = self._list_events(events), self._list_events(first)
        places = _find_places(fewest, listed)
        if places is None or (len(listed) > len(fewest) and _find_places(listed, self._list_events(last)) is None):
            return False
        return self._rank(events, places) == self._rank(first, range(len(fewest)))

    def _decode(self, parts: Parts) -> KeyEvents:
        return decode_series(self._series, self._text, parts).events

    def _low(self, events: KeyEvents) -> int:
        return 0 if self._first is None else bisect_left(events.at, self._first)

    def _list_events(self, events: KeyEvents) -> list[_Event]:
        low = self._low(events)
        sums = [[total - before for before, total in pairwise(totals[low:])] for totals in events.totals]
        columns = [map(repr, values[low:]) for name, values in events.columns.items() if name not in self._ranks]
        return [*zip(events.at[low:], *sums, *columns, strict=True)]

    def _rank(self, events: KeyEvents, places: Sequence[int]) -> list[list[int]]:
        """The order of the records of some events, in each ranking."""
        low = self._low(events)
        ranks = [[events.columns[name][low + place] for place in places] for name in sorted(self._ranks)]
        orders = [{rank: place for place, rank in enumerate(sorted(set(each)))} for each in ranks]
        return [[order[rank] for rank in each] for each, order in zip(ranks, orders, strict=True)]


def _find_places(wanted: Sequence[_Event], there: Sequence[_Event]) -> list[int] | None:
    """Where some events are among others, in their order; None: not all of them are."""
    places, place = list[int](), 0
    for event in wanted:
        while place < len(there) and there[place] != event:
            place += 1
        if place == len(there):
            return None
        places.append(place)
        place += 1
    return places


def _to_bytes(payload: memoryview | None) -> bytes | None:
    return None if payload is None else bytes(payload)


@report_mistakes
def main(arguments: list[str]) -> int:
    """0: all is as a rebuild gives it; 1: it is not; 2: nothing is followed, or there is no such use case."""
    parser = argparse.ArgumentParser(prog="python -m tasks.stream.check_store", description=__doc__.split("\n")[0])
    parser.add_argument("use_case")
    _, use_case, outside = parse_command(parser, arguments)
    checked = check_store(use_case, outside)
    print(f"{use_case.name}: {checked.describe()}")
    return 1 if checked.different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
