"""Features as a server computes them, on the store that a refresh makes of some files: no store, and no server."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from features import FeatureSet
from features.online import FetchedSeries, OnlineFeatures, StoreState
from features.series import to_microseconds
from pipeline.partitions import Interval
from tasks.build_features.store_refresh import pack_all_series

_CACHE_BYTES = 256 << 20


def compute_as_online(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], kept: Interval, lead: timedelta, asked: pa.Table
) -> pa.Table:
    """The features of requests [n], moments naive UTC, in their order, by a store that is at the interval's end.

    `tables` are clean Parquet files that reach back as for `features.build` of the interval.
    """
    series = dict(pack_all_series(definition, tables, kept, lead))
    state = StoreState(1, to_microseconds(kept.start), to_microseconds(kept.end), "files")

    def fetch(keys: list[str], _: StoreState | None) -> FetchedSeries:
        return FetchedSeries(state=state, parts={key: (series.get(key), None) for key in keys})

    return OnlineFeatures(definition, lead, cache_bytes=_CACHE_BYTES).compute(asked, fetch).features
