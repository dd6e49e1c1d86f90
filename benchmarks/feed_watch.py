"""How often the watch of feeds pages on real rows as they were, and how soon it does where a feed breaks.

    python -m benchmarks.feed_watch flights

Each partition is held against those before it, by the stream's own code, which sees the rows as they came; the last
one, within which the data ends, is left out. A break is made at moments drawn from the partition: from then on a column
comes empty, or no row comes. No stack; rows that validation would reject are among them.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.table import keep_results
from infra.replay.replays import REPLAYS
from pipeline.partitions import Interval, utc
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.stream.feed import Feed
from tasks.stream.feed_past import FeedPast, PartitionPast, count_partitions, learn_feed, list_optional, watch_rejected

_BREAKS = 3  # a partition
_HOUR = timedelta(hours=1)
Moment = tuple[datetime, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition of a table; `past` is None where no row came."""

    interval: Interval
    moments: Sequence[Moment]
    past: PartitionPast | None


def _cut(rows: pa.Table, use_case: UseCase, known: str) -> list[Partition]:
    moments = rows[known].cast(pa.timestamp("us", "UTC"))
    last = pc.max(moments).as_py().astimezone(UTC)
    parts = []
    for interval in use_case.grid.covering(Interval(utc(use_case.grid.first), last + timedelta(microseconds=1))):
        first, end = (pa.scalar(moment, moments.type) for moment in (interval.start, interval.end))
        inside = rows.filter(pc.and_(pc.greater_equal(moments, first), pc.less(moments, end))).sort_by(known)
        listed = [{**row, known: row[known].astimezone(UTC)} for row in inside.to_pylist()]
        grouped = [(moment, list(those)) for moment, those in groupby(listed, key=lambda row: row[known])]
        past = PartitionPast.read(inside, known) if inside.num_rows else None
        parts.append(Partition(interval=interval, moments=grouped, past=past))
    return parts


def _count_pages(past: FeedPast, part: Partition) -> list[str]:
    """What somebody is paged about in a partition as it was, and nothing twice while it lasts."""
    feed, said, told = Feed(past, part.interval.start), "", []
    looks: list[Moment] = []
    for moment, rows in part.moments:
        looks += [(moment, []), (moment, rows)]  # how long it was silent shows just before rows come
    for moment, rows in [*looks, (part.interval.end, [])]:
        if rows:
            feed.take(moment, rows, moment)
        problem = feed.describe(moment)
        told += [problem] if problem and not said else []
        said = problem
    return told


def _measure_delays(past: FeedPast, part: Partition, draw: np.random.Generator) -> Iterator[tuple[str, float | None]]:
    """What breaks, and the hours until somebody is paged; None where the partition ends before."""
    for at in draw.integers(0, len(part.moments), _BREAKS):
        for broken in past.columns:
            yield broken, _find_page(past, part, int(at), broken)
        yield "no row", past.patience / _HOUR


def _find_page(past: FeedPast, part: Partition, at: int, broken: str) -> float | None:
    feed, began = Feed(past, part.interval.start), part.moments[at][0]
    for number, (moment, rows) in enumerate(part.moments):
        feed.take(moment, [{**row, broken: None} for row in rows] if number >= at else rows, moment)
        if number >= at and broken in feed.list_empty():
            return (moment - began) / _HOUR
    return None


def _measure(use_case: UseCase, name: str, rows: pa.Table, draw: np.random.Generator) -> Mapping[str, Any] | None:
    table = use_case.source.tables[name]
    parts = _cut(rows.select([table.available_at, *list_optional(use_case, name)]), use_case, table.available_at)
    count, rejected = count_partitions(use_case), watch_rejected(table.max_quarantined_share)
    pages, delays, watched = list[str](), defaultdict[str, list[float | None]](list), 0
    for number in range(count, len(parts) - 1):
        before = [past for part in parts[number - count : number] if (past := part.past) is not None]
        feed = learn_feed(before, rejected)
        if feed is None:
            continue
        watched += 1
        pages += [f"{parts[number].interval.start:%Y-%m-%d}: {told}" for told in _count_pages(feed, parts[number])]
        if parts[number].moments:
            for broken, hours in _measure_delays(feed, parts[number], draw):
                delays[broken].append(hours)
    if not watched:
        return None
    return {"partitions": watched, "pages": pages, "hours": {n: _summarise(hours) for n, hours in delays.items()}}


def _summarise(hours: Sequence[float | None]) -> dict[str, float | None]:
    told = np.sort([np.inf if each is None else each for each in hours])
    at = {name: float(told[int(share * (len(told) - 1))]) for name, share in (("median", 0.5), ("p90", 0.9))}
    return {name: value if np.isfinite(value) else None for name, value in at.items()}


def main() -> None:
    """Print and keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feed_watch", description=__doc__)
    parser.add_argument("use_case", choices=sorted(REPLAYS))
    arguments = parser.parse_args()
    replayed, draw = REPLAYS[arguments.use_case], np.random.default_rng(0)
    replayed.require_data()
    use_case = use_cases(REPOSITORY / "params.yaml")[arguments.use_case]
    found = dict[str, Any]()
    for name, rows in replayed.source.read_rows().items():
        if (measured := _measure(use_case, name, rows, draw)) is None:
            continue
        found[name] = measured
        print(f"{name:12}{measured['partitions']:>4} partitions as they were, {len(measured['pages'])} pages")
        print("".join(f"    {page}\n" for page in measured["pages"]), end="")
        for broken, hours in measured["hours"].items():
            print(f"    {broken:24} told after {hours['median']} hours, nine in ten within {hours['p90']}")
    keep_results(f"feed-watch-{use_case.name}", tables=found)


if __name__ == "__main__":
    main()
