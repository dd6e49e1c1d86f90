"""The series of a definition in memory, from a dataset and the rows that were followed since; and their bytes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from adapters.connect import Outside
from features import FeatureSet
from features.followed import ChangedSeries, FollowedSeries
from features.stream_change import SourceKey
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import (
    FollowedRow,
    FollowedSource,
    Identities,
    decode_identities,
    to_source_changes,
)
from tasks.build_features.manifest import CleanObject, clean_files, clean_objects, local_files

_PARTITIONS_KEPT = 2  # of prediction times before `as_of` that are answered exactly; golden rows come from the last one


def kept_interval(use_case: UseCase, snapshot: Snapshot) -> Interval:
    """The prediction times for which the online store has all the history that they look back on."""
    return Interval(snapshot.end - timedelta(days=_PARTITIONS_KEPT * use_case.source.partition_days), snapshot.end)


def build_followed_series(
    use_case: UseCase,
    definition: FeatureSet,
    snapshot: Snapshot,
    outside: Outside,
    identities: Identities,
    *,
    since: datetime | None = None,
    asks: bool = False,
) -> FollowedSeries:
    """Of a dataset alone: `apply_rows` brings them to what was followed since. With `asks`, events too.

    They are for predictions from `since` on; None: for those that the online store answers.

    Raises:
        ValueError, duckdb.Error: a clean table lacks what the features read.
    """
    kept = Interval(since or kept_interval(use_case, snapshot).start, snapshot.end)
    files = clean_files(snapshot, kept, outside, definition)
    tables = use_case.source.tables
    return FollowedSeries(
        definition,
        files,
        {n: SourceKey(identity=identities[n], available_at=tables[n].available_at) for n in definition.sources},
        since=kept.start,
        split=snapshot.end,
        lead=use_case.time.lead,
        asks=asks,
    )


def move_series(
    series: FollowedSeries,
    use_case: UseCase,
    definition: FeatureSet,
    *,
    before: Snapshot,
    snapshot: Snapshot,
    outside: Outside,
    followed: FollowedSource,
) -> ChangedSeries:
    """Bring series from a dataset to a later one, beside the rows that were followed since it ends.

    What both have is not read again.

    Raises:
        ValueError, duckdb.Error: a clean table lacks what the features read.
    """
    kept = kept_interval(use_case, snapshot)
    new = clean_objects(snapshot, kept, outside, definition)
    old = clean_objects(before, kept_interval(use_case, before), outside, definition)
    # What was followed since the earlier one ends is the later one's to have, even where it has nothing of it.
    told_since = before.end if snapshot.end > before.end else None
    first = {name: _find_first_change(old[name], new[name], told_since) for name in definition.sources}
    begins = {name: start for name, start in first.items() if start is not None}
    held = defaultdict[str, list[str]](list)
    for row in followed.rows:
        held[row.table].append(row.identity)
    return series.move(
        local_files(
            {name: [item for item in new[name] if item.interval.start >= start] for name, start in begins.items()},
            outside,
        ),
        {name: Interval(start, snapshot.end) for name, start in begins.items()},
        {name: decode_identities(use_case, name, held[name], followed.identities) for name in begins},
        since=kept.start,
        split=snapshot.end,
    )


def _find_first_change(
    old: Sequence[CleanObject], new: Sequence[CleanObject], told_since: datetime | None
) -> datetime | None:
    """When the first object begins that a later dataset has otherwise; None: it has what the earlier one has.

    No later than when following began, where the later one goes on from there. What the earlier one has before all of
    the later one is only looked back on no more.
    """
    was, now = ({item.interval.start: item.sha256 for item in items} for items in (old, new))
    reached = min(now, default=datetime.max.replace(tzinfo=UTC))
    starts = {start for start in was if start >= reached} | now.keys()
    changed = [start for start in starts if was.get(start) != now.get(start)]
    return min([*changed, *([] if told_since is None else [told_since])], default=None)


def apply_rows(
    series: FollowedSeries,
    use_case: UseCase,
    definition: FeatureSet,
    rows: Iterable[FollowedRow],
    identities: Identities,
) -> ChangedSeries:
    """Bring series to some rows, of which those of sources that the definition does not read change nothing."""
    wanted = [row for row in rows if row.table in definition.sources]
    return series.apply(to_source_changes(use_case, wanted, identities))
