"""The series of a definition in memory, from a dataset and the rows that were followed since; and their bytes."""

from collections.abc import Iterable
from datetime import timedelta

from adapters.connect import Outside
from features import FeatureSet
from features.followed import ChangedSeries, FollowedSeries
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow, Identities, to_source_changes
from tasks.build_features.manifest import clean_files

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
    asks: bool = False,
) -> FollowedSeries:
    """Of a dataset alone: `apply_rows` brings them to what was followed since. With `asks`, events too.

    Raises:
        ValueError, duckdb.Error: a clean table lacks what the features read.
    """
    kept = kept_interval(use_case, snapshot)
    files = clean_files(snapshot, kept, outside, definition)
    return FollowedSeries(
        definition,
        files,
        {name: identities[name] for name in definition.sources},
        since=kept.start,
        split=snapshot.end,
        lead=use_case.time.lead,
        asks=asks,
    )


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
