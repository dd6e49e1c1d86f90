"""How often the watch of feeds pages on real rows as they were, and how soon it does where a feed breaks.

    python -m benchmarks.feed_watch flights

Each partition is held against the twelve before it. A break is made at moments drawn from the partition: from then on a
column comes empty, or no row comes. No stack; a stream sees the same rows in the same order.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.table import keep_results
from expectations import suites
from infra.replay.replays import REPLAYS
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.stream.feed_past import PARTITIONS, FeedPast, learn_feed

_BREAKS = 5  # a partition
_HOUR = timedelta(hours=1) / timedelta(microseconds=1)


def _cut(rows: pa.Table, use_case: UseCase, known: str) -> list[pa.Table]:
    """A table's rows by partition, each in the order in which they became known; only those with rows."""
    moments = rows[known].cast(pa.timestamp("us", "UTC"))
    first, last = (value.as_py() for value in pc.min_max(moments).values())
    grid = use_case.grid
    start = max(grid.containing(first.astimezone(UTC)).start, datetime.combine(grid.first, datetime.min.time(), UTC))
    parts = []
    while start <= last:
        part = grid.containing(start)
        inside = pc.and_(
            pc.greater_equal(moments, pa.scalar(part.start, moments.type)),
            pc.less(moments, pa.scalar(part.end, moments.type)),
        )
        parts.append(rows.filter(inside).sort_by(known))
        start = part.end
    return [part for part in parts if part.num_rows]


def _microseconds(rows: pa.Table, known: str) -> np.ndarray:
    found: np.ndarray = rows[known].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return found


def _false_alarms(past: FeedPast, rows: pa.Table, known: str) -> list[str]:
    """What is said of a partition as it was."""
    said = [name for name, runs in past.columns.items() if runs.highest(rows[name].is_null().to_numpy()) >= runs.limit]
    gaps = np.diff(_microseconds(rows, known))
    is_silent = past.patience is not None and len(gaps) and gaps.max() > past.patience / timedelta(microseconds=1)
    return [*said, *(["no row"] if is_silent else [])]


def _delays(past: FeedPast, rows: pa.Table, known: str, draw: np.random.Generator) -> Iterator[tuple[str, float]]:
    """What breaks, and the hours until it is said; infinite where the partition ends before."""
    moments = _microseconds(rows, known)
    for at in draw.integers(0, len(moments), _BREAKS):
        for name, runs in past.columns.items():
            needed = int(np.ceil(runs.limit / runs.up))
            end = at + needed - 1
            yield name, (moments[end] - moments[at]) / _HOUR if end < len(moments) else np.inf
        if past.patience is not None:
            yield "no row", past.patience / timedelta(hours=1)


def _measure(use_case: UseCase, name: str, rows: pa.Table, draw: np.random.Generator) -> Mapping[str, object] | None:
    known = use_case.source.tables[name].available_at
    optional = [column for column, declared in suites(use_case.name)[name].columns.items() if declared.nullable]
    parts = _cut(rows.select([known, *optional]), use_case, known)
    alarms, delays, watched = list[str](), defaultdict[str, list[float]](list), 0
    for number in range(PARTITIONS, len(parts)):
        past = learn_feed(parts[number - PARTITIONS : number], known)
        assert past is not None
        watched += 1
        alarms += _false_alarms(past, parts[number], known)
        for broken, hours in _delays(past, parts[number], known, draw):
            delays[broken].append(hours)
    if not watched:
        return None
    told = {
        broken: {"median": float(np.median(hours)), "p90": float(np.quantile(hours, 0.9, method="higher"))}
        for broken, hours in delays.items()
    }
    return {"partitions": watched, "pages": sorted(alarms), "hours": told}


def main() -> None:
    """Print and keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feed_watch", description=__doc__)
    parser.add_argument("use_case", choices=sorted(REPLAYS))
    arguments = parser.parse_args()
    replayed, draw = REPLAYS[arguments.use_case], np.random.default_rng(0)
    replayed.require_data()
    use_case = use_cases(REPOSITORY / "params.yaml")[arguments.use_case]
    found = dict[str, object]()
    for name, rows in replayed.source.read_rows().items():
        if (measured := _measure(use_case, name, rows, draw)) is not None:
            found[name] = measured
            print(f"{name:12}{measured['partitions']:>4} partitions, pages on them as they were: {measured['pages']}")
            for broken, hours in dict(measured["hours"]).items():  # type: ignore[call-overload]
                print(f"    {broken:24} told after {hours['median']:6.1f} hours, nine in ten within {hours['p90']:.1f}")
    keep_results(f"feed-watch-{use_case.name}", tables=found)


if __name__ == "__main__":
    main()
