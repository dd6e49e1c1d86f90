"""The rows that a store had otherwise than batch has them, as the stream went on: a step costs what it told."""

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from tasks.build_features.followed_rows import FollowedRow
from tasks.build_features.followed_versions import RowVersion
from tasks.monitor.feature_ledger.known_rows import DatasetObjects, KnownRows, Place, RowDifference

_Placed = tuple[datetime, Place, int]  # when a difference begins, and which of its place it is
_LAST = ("\U0010ffff", "")


class StoreSteps:
    """A store at a dataset, and at one step of the stream after another."""

    def __init__(self, known: KnownRows, then: DatasetObjects) -> None:
        self._end = then.snapshot.end
        followed = [version for version in known.versions if version.is_followed]
        self._versions = sorted(followed, key=lambda version: (version.step.changes, version.version))
        self._told = dict[Place, RowVersion]()
        self._next = 0
        places = {(version.table, version.identity) for version in followed}
        self._served, self._batch, self._same = (defaultdict[Place, list[FollowedRow]](list) for _ in range(3))
        for table in known.batch.objects:
            old, new = then.objects.get(table, {}), known.batch.objects[table]
            for key in sorted({*old, *new}):
                before, now = old.get(key), new.get(key)
                if before is not None and now is not None and before.sha256 == now.sha256:
                    for row in known.clean.list_rows(table, now):
                        if _place(row) in places:  # the stream's takes its place in the store
                            self._same[_place(row)].append(row)
                    continue
                for item, rows in ((before, self._served), (now, self._batch)):
                    for row in () if item is None else known.clean.list_rows(table, item):
                        rows[_place(row)].append(row)
        self._differing = {place: self._compare(place) for place in {*self._served, *self._batch}}
        self._order = sorted(key for place in self._differing for key in self._list_keys(place))

    def reach(self, changes: int) -> None:
        """Go on to a step, which is none before the last one."""
        while self._next < len(self._versions) and self._versions[self._next].step.changes <= changes:
            version = self._versions[self._next]
            place = version.table, version.identity
            self._told[place] = version
            self._next += 1
            if (found := self._compare(place)) != self._differing.get(place, []):
                for key in self._list_keys(place):
                    del self._order[bisect_left(self._order, key)]
                self._differing[place] = found
                for key in self._list_keys(place):
                    insort(self._order, key)

    def list_until(self, moment: datetime) -> list[RowDifference]:
        """The differences that begin by a moment, the first first. What does not change is the same object."""
        known = self._order[: bisect_right(self._order, (moment, _LAST, 0))]
        return [self._differing[place][number] for _, place, number in known]

    def _compare(self, place: Place) -> list[RowDifference]:
        version = self._told.get(place)
        if version is None or version.available_at is None or version.available_at < self._end:
            return _pair(place, self._served.get(place, ()), self._batch.get(place, ()))
        served = [_as_row(version, version.available_at)] if version.is_good else []
        return _pair(place, served, [*self._batch.get(place, ()), *self._same.get(place, ())])

    def _list_keys(self, place: Place) -> list[_Placed]:
        return [(each.available_at, place, number) for number, each in enumerate(self._differing.get(place, ()))]


def _as_row(version: RowVersion, available_at: datetime) -> FollowedRow:
    return FollowedRow(
        table=version.table, identity=version.identity, available_at=available_at, row_data=version.row_data
    )


def _place(row: FollowedRow) -> Place:
    return row.table, row.identity


def _pair(place: Place, served: Sequence[FollowedRow], batch: Sequence[FollowedRow]) -> list[RowDifference]:
    """What is in one of them only."""
    mine, others = ({row.row_data: row for row in rows} for rows in (served, batch))
    left, right = _subtract(mine, others), _subtract(others, mine)
    none: list[FollowedRow | None] = [None] * max(len(left), len(right))
    both = zip([*left, *none][: len(none)], [*right, *none][: len(none)], strict=True)
    return [RowDifference(table=place[0], identity=place[1], served=one, batch=other) for one, other in both]


def _subtract(rows: Mapping[str | None, FollowedRow], others: Mapping[str | None, FollowedRow]) -> list[FollowedRow]:
    """Rows without an equal one among others, in a fixed order."""
    return [rows[text] for text in sorted(rows.keys() - others.keys(), key=lambda text: text or "", reverse=True)]
