"""Whether a server would compute for an event what batch does: real events, asked as a client asks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from features import FeatureSet
from features.offline_requests import load_past_requests
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.as_online import compute_as_online
from tasks.check_use_case.mistakes import Mistake, in_file

_ASKED = 64
_SEED = 0


def check_online(
    use_case: UseCase,
    definition: FeatureSet,
    tables: Mapping[str, Sequence[Path]],
    *,
    kept: Interval,
    asked_in: Interval,
    points: pa.Table,
) -> Iterator[Mistake]:
    """Some events predicted in an interval, asked as a client does, have the features of the batch.

    Args:
        use_case: whose events they are; without an endpoint nothing is asked.
        definition: the features.
        tables: clean Parquet files that reach back as for `features.build` of `kept`.
        kept: what a store would hold, to its end.
        asked_in: the events are of this part of it.
        points: what batch made of that part, or of more.
    """
    if use_case.endpoint is None:
        return
    lead = use_case.time.lead
    asked = load_past_requests(definition, tables, asked_in, lead)
    chosen = np.sort(np.random.default_rng(_SEED).permutation(asked.num_rows)[:_ASKED])
    asked = asked.take(pa.array(chosen))
    found = compute_as_online(definition, tables, kept, lead, asked.drop_columns(["entity_key", "event_time"]))
    keys = asked.select(["entity_key", "event_time"]).append_column("place", pa.array(range(asked.num_rows)))
    keys = keys.set_column(1, "event_time", keys["event_time"].cast(points["event_time"].type))
    batch = points.join(keys, ["entity_key", "event_time"], join_type="inner").sort_by("place")
    for name in (*definition.numeric, *definition.categorical):
        if not is_same(batch[name], found[name]):
            yield in_file(
                f"features/{use_case.name}.py",
                name,
                f"of {asked.num_rows} events asked as a client does, some have another value than in batch",
                "an expression of what the request tells, the lookups and the windows",
            )


def is_same(some: pa.ChunkedArray, others: pa.ChunkedArray) -> bool:
    """Bit by bit; nothing equals nothing, and what is no number itself."""
    return len(some) == len(others) and repr(some.to_pylist()) == repr(others.to_pylist())
