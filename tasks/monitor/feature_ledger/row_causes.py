"""Why the online store had a row otherwise than batch has it: from positions of the log, and from rows that are kept.

Each cause has evidence of its own; a row of which none is found has no cause, and is a defect.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import islice, takewhile
from typing import Any

from tasks.build_features.followed_rows import FollowedRow
from tasks.build_features.followed_versions import RowVersion
from tasks.build_features.manifest import CleanObject
from tasks.monitor.feature_ledger.known_rows import DatasetObjects, KnownRows, Place, RowDifference


class ServedCause(StrEnum):
    """Why a feature that was served is not batch's, in the order in which they are tried."""

    RECORD_LATE = "record_late"  # committed after all that became known by then was said to be known
    CLOCK_APART = "clock_apart"  # the same, and so was all that was written around it, by as much
    RECORD_CORRECTED = "record_corrected"  # the source changed or deleted it since
    QUARANTINED_SINCE = "quarantined_since"  # it was set aside since, or came back from where it was set aside
    STREAM_BEHIND = "stream_behind"  # the answer said that it did not know so much yet
    STORE_SILENT = "store_silent"
    DEFECT = "defect"  # nothing of this is proved


@dataclass(frozen=True, kw_only=True)
class RowCause:
    """One row, why it differs, and what says so."""

    difference: RowDifference
    cause: ServedCause
    evidence: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class KnownState:
    """What an answer says of the store: its dataset, the stream's steps in it, and what it knows to miss.

    `behind` is the last moment of which all was known, where that is before the prediction time.
    """

    then: DatasetObjects
    changes: int
    behind: datetime | None
    stopped: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class QuarantinedRow:
    """A row that validation set aside in what is current of a partition; `is_back`: corrected, and clean again."""

    partition: str
    row_number: int
    reasons: tuple[str, ...]
    is_back: bool

    def describe(self) -> dict[str, Any]:
        return {"partition": self.partition, "row_number": self.row_number, "reasons": list(self.reasons)}


_Found = tuple[ServedCause, dict[str, Any]]
_DEFECT: _Found = ServedCause.DEFECT, {"missing": "nothing that is kept says why"}
_NEIGHBOURS = 5  # so many rows next to one that is overdue, as late as it, say that the clock is which wrote them


@dataclass(frozen=True, kw_only=True)
class CauseFinder:
    """Finds causes of rows. `horizon` is how long after it became known a row may be committed."""

    known: KnownRows
    quarantined: Mapping[Place, Sequence[QuarantinedRow]]
    horizon: timedelta
    partition_key: Callable[[datetime], str]

    def find_cause(self, difference: RowDifference, state: KnownState) -> RowCause:
        """Why a row differs from what the store had in a state."""
        versions = self.known.by_place.get(difference.place, ())
        told = [v for v in versions if v.is_followed and v.step.changes <= state.changes]
        later = [v for v in versions if not v.is_followed or v.step.changes > state.changes]
        held = told[-1] if told and _is_since(told[-1], state.then.snapshot.end) else None
        if difference.batch is None:
            assert difference.served is not None
            cause, evidence = self._explain_gone(difference.served, later, state)
        elif held is not None and held.reasons is not None:
            cause, evidence = self._explain_released(difference.batch, held, later)
        elif difference.served is None:
            cause, evidence = self._explain_missing(difference.batch, held, later, state)
        else:
            cause, evidence = self._explain_changed(difference.batch, later, state)
        return RowCause(difference=difference, cause=cause, evidence=evidence)

    def _explain_gone(self, served: FollowedRow, later: Sequence[RowVersion], state: KnownState) -> _Found:
        """The store had it, and batch has it no more."""
        for row in self._list_quarantined(served):
            if not row.is_back:
                return ServedCause.QUARANTINED_SINCE, row.describe()
        for version in reversed(later):
            if version.reasons is not None:
                return ServedCause.QUARANTINED_SINCE, _describe(version)
            if version.row_data != served.row_data:
                return ServedCause.RECORD_CORRECTED, _describe(version)
        return self._explain_by_objects(served, ServedCause.RECORD_CORRECTED, state, was_there=True)

    def _explain_released(self, batch: FollowedRow, held: RowVersion, later: Sequence[RowVersion]) -> _Found:
        """The stream had set it aside, and batch has it."""
        for row in self._list_quarantined(batch):
            if row.is_back:
                return ServedCause.QUARANTINED_SINCE, row.describe()
        for version in later:
            if version.is_good and version.row_data == batch.row_data:
                return ServedCause.RECORD_CORRECTED, _describe(version)
        if held.row_data == batch.row_data:
            return ServedCause.QUARANTINED_SINCE, _describe(held)
        return _DEFECT

    def _explain_missing(
        self, batch: FollowedRow, held: RowVersion | None, later: Sequence[RowVersion], state: KnownState
    ) -> _Found:
        """Batch has it, and the store had nothing, or another row in its place."""
        if held is not None:  # deleted, or replaced by one that batch has, too
            return ServedCause.RECORD_CORRECTED, _describe(held)
        if (found := self._explain_behind(batch, state)) is not None:
            return found
        same = [version for version in later if version.row_data == batch.row_data]
        for version in same:
            if version.step.known_before is not None and version.step.known_before > batch.available_at:
                return self._explain_overdue(version)
        if same or not batch.available_at < state.then.snapshot.end:
            return _DEFECT  # it was told in time, or never
        return self._explain_by_objects(batch, ServedCause.RECORD_LATE, state, was_there=False)

    def _explain_changed(self, batch: FollowedRow, later: Sequence[RowVersion], state: KnownState) -> _Found:
        """Both have it, with other values."""
        for row in self._list_quarantined(batch):
            if row.is_back:
                return ServedCause.QUARANTINED_SINCE, row.describe()
        for version in later:
            if version.row_data == batch.row_data:
                return self._explain_behind(batch, state) or (ServedCause.RECORD_CORRECTED, _describe(version))
        return self._explain_by_objects(batch, ServedCause.RECORD_CORRECTED, state, was_there=True)

    def _explain_behind(self, batch: FollowedRow, state: KnownState) -> _Found | None:
        """The answer said itself that it did not know of this time, or table."""
        if state.behind is not None and batch.available_at > state.behind:
            return ServedCause.STREAM_BEHIND, {"known_to": state.behind.isoformat()}
        if batch.table in state.stopped:
            return ServedCause.STREAM_BEHIND, {"not_followed": batch.table}
        return None

    def _explain_overdue(self, version: RowVersion) -> _Found:
        """Told after all that became known before it was said to be known: it, or all that its writer wrote."""
        around = self._list_as_late(version)
        if len(around) < _NEIGHBOURS:
            return ServedCause.RECORD_LATE, _describe(version)
        evidence = {"apart_seconds": _lag(version).total_seconds(), "around": [each.version for each in around]}
        return ServedCause.CLOCK_APART, _describe(version) | evidence

    def _list_as_late(self, version: RowVersion) -> list[RowVersion]:
        """Rows of its table, first told in the steps next to its own, up to the first that is not as late as it."""
        told = self.known.first_told.get(version.table, ())
        first = bisect_left(told, version.version, key=lambda each: each.version)
        before = (each for each in reversed(told[:first]) if each.step != version.step)
        after = (each for each in told[first:] if each.step != version.step)
        is_apart = partial(_is_apart, by=_lag(version), horizon=self.horizon)
        return [each for side in (before, after) for each in islice(takewhile(is_apart, side), _NEIGHBOURS)]

    def _explain_by_objects(
        self, row: FollowedRow, cause: ServedCause, state: KnownState, *, was_there: bool
    ) -> _Found:
        """Its partition was taken before the answer's dataset, and again since, with another content."""
        key = self.partition_key(row.available_at)
        then = state.then.objects.get(row.table, {}).get(key)
        now = self.known.batch.objects[row.table].get(key)
        if now is None or then == now or (then is None and was_there):
            return _DEFECT
        evidence = {"partition": key, "then": _name(then, state.then), "now": _name(now, self.known.batch)}
        return cause, evidence

    def _list_quarantined(self, row: FollowedRow) -> Sequence[QuarantinedRow]:
        return self.quarantined.get((row.table, row.identity), ())


def _name(item: CleanObject | None, dataset: DatasetObjects) -> dict[str, str | None]:
    return {"dataset": dataset.snapshot.version, "clean_sha256": item.sha256 if item else None}


def _is_since(version: RowVersion, moment: datetime) -> bool:
    return version.available_at is not None and version.available_at >= moment


def _lag(version: RowVersion) -> timedelta:
    """How long after it became known it was told, by the source's clock, less the horizon; or its watermark."""
    assert version.available_at is not None
    known = version.step.known_until or version.step.known_before
    assert known is not None
    return known - version.available_at


def _is_apart(version: RowVersion, by: timedelta, horizon: timedelta) -> bool:
    """Whether it is overdue, by as much."""
    assert version.available_at is not None
    assert version.step.known_before is not None
    return version.available_at < version.step.known_before and abs(_lag(version) - by) <= horizon


def _describe(version: RowVersion) -> dict[str, Any]:
    """What is kept of a version: where it stands in the log, and until when all was said to be known before it."""
    known = version.step.known_before
    return {
        "version": version.version,
        "step": version.step.changes,
        "position": version.step.position,
        "known_before": None if known is None else known.isoformat(),
        "available_at": None if version.available_at is None else version.available_at.isoformat(),
        "reasons": None if version.reasons is None else list(version.reasons),
        "followed": version.is_followed,
    }
