"""Broken or changed: what monitoring does about made-up faults of a feed, and about made-up changes of the world.

    python -m benchmarks.broken_feeds flights [--partitions 4] [--each 5]

Real partitions of a replay, each beside those before it. A fault (benchmarks/sabotage.py) is to block it; a change
(benchmarks/changes.py, of flights only) that lasts for two partitions is to be retrained on, or ignored, as it says; a
partition as it was is not to be blocked. What is drawn is drawn by a seed, so that limits can be set on some partitions
and judged on others.
"""

import argparse
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import features
from benchmarks.changes import CHANGES, apply
from benchmarks.matrix_rows import read_rows
from benchmarks.model_matrix import FOLDER
from benchmarks.sabotage import find_tables, sabotage_features, sabotage_tables
from benchmarks.table import keep_results
from pipeline.monitoring import Monitor
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.build_features.profile import make_profile
from tasks.monitor.broken.columns import Columns, read_columns
from tasks.monitor.broken.find import MOST_PARTITIONS, find_faults
from tasks.monitor.broken.signs import Fault
from tasks.monitor.drift import measure_drift
from tasks.monitor.observed import Action, Observed, OtherDecision
from tasks.monitor.performance_limits import Performance, PerformanceStatus
from tasks.monitor.triage import breached_features, make_decision

_LEARNT = 13  # partitions before the first that is looked at
_BLOCKED, _LEFT = frozenset({"block"}), frozenset({"ignore"})
_NO_LABELS = Performance(predicted=0, labelled=0, coverage=0, metrics={}, status=PerformanceStatus.OK, reasons=())


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One fault, change or healthy partition, and whether what was done is right."""

    partition: str
    kind: str
    target: str
    did: str
    right: bool
    because: str


def read_partitions(use_case: UseCase) -> list[tuple[Interval, pa.Table]]:
    """Every partition of a replay with its labelled rows, but for the first, of which windows hold little."""
    table = read_rows(use_case, FOLDER).table
    table = table.filter(pc.is_valid(table["label_time"]))
    first, last = (pc.min_max(table["prediction_time"])[edge].as_py() for edge in ("min", "max"))
    found = []
    for one in use_case.grid.covering(Interval(first, last))[1:]:
        times = table["prediction_time"]
        start, end = (pa.scalar(moment, times.type) for moment in (one.start, one.end))
        rows = table.filter(pc.and_(pc.greater_equal(times, start), pc.less(times, end)))
        if rows.num_rows:
            found.append((one, rows))
    return found


def find_as_they_were(partitions: Sequence[tuple[Interval, pa.Table]]) -> dict[str, str]:
    """Each partition as it was, one after the other; what is blocked is no past for the next: day -> what was seen."""
    known: list[Columns] = []
    found = {}
    for interval, rows in partitions:
        columns = read_columns(rows)
        if faults := find_faults(known, columns):
            found[f"{interval.start:%Y-%m-%d}"] = _because(faults)
            print(interval.start.date(), _because(faults), flush=True)
        else:
            known.append(columns)
    return found


def judge_partition(
    use_case: UseCase, partitions: Sequence[tuple[Interval, pa.Table]], place: int, each: int
) -> Iterator[Judged]:
    """Everything that is done to one partition."""
    interval = partitions[place][0]
    past = [read_columns(rows) for _, rows in partitions[max(0, place - MOST_PARTITIONS) : place]]
    now, rng = read_columns(partitions[place][1]), np.random.default_rng(place)

    def judged(kind: str, target: str, did: str, right: Container[str], because: str = "") -> Judged:
        day = f"{interval.start:%Y-%m-%d}"
        return Judged(partition=day, kind=kind, target=target, did=did, right=did in right, because=because)

    found = find_faults(past, now)
    yield judged("healthy", "", _did(found), _LEFT, _because(found))
    if found:
        return
    tables = find_tables(features.definition(use_case.name))
    broken = [*sabotage_features(now, past[-1], each, rng), *sabotage_tables(now, past[-1], tables, rng)]
    for fault in broken:
        found = find_faults(past, fault.columns)
        yield judged(fault.kind, fault.target, _did(found), _BLOCKED, _because(found))
    if use_case.name != "flights" or place + 1 == len(partitions):
        return
    profile = make_profile(pa.concat_tables(rows for _, rows in partitions[:place]), use_case)
    following = read_columns(partitions[place + 1][1])
    for change in CHANGES:
        both = [apply(change, columns, [*past, now, following], rng) for columns in (now, following)]
        did, because = _follow(use_case.monitor, profile, past, both, partitions[place][0].end)
        yield judged("change", f"{change.name} {change.strength:g}", did, change.right, because)


def _did(found: Sequence[Fault] | None) -> str:
    return "block" if found else "ignore"


def _because(found: Sequence[Fault] | None) -> str:
    return "; ".join(f"{fault.feature} {fault.sign}: {fault.seen}" for fault in (found or ())[:2])


def _follow(
    monitor: Monitor, profile: Mapping[str, object], past: Sequence[Columns], changed: Sequence[Columns], end: datetime
) -> tuple[str, str]:
    """What triage does about two partitions in a row: the strongest of it, and why."""
    history: list[OtherDecision] = []
    known = list(past)
    for columns in changed:
        table = pa.table({**columns.numbers, **columns.texts})
        drifts = measure_drift(profile, table, monitor)
        observed = Observed(
            as_of=end,
            model_version="1",
            network_version="1",
            drifts=drifts,
            faults=find_faults(known, columns),
            performance=_NO_LABELS,
            born_at=end,
            trained_rows=1_000_000,
            new_rows=0,
        )
        decision = make_decision(observed, history, monitor)
        if decision.decision in (Action.BLOCK, Action.RETRAIN):
            return decision.decision.value, "; ".join(decision.reasons)[:200]
        history.append(
            OtherDecision(
                as_of=end, network_version="1", decision=decision.decision, breached=breached_features(drifts)
            )
        )
        known.append(columns)
        end += timedelta(days=7)
    return "ignore", ""


def main() -> None:
    """Judge, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broken_feeds", description=__doc__)
    parser.add_argument("use_case")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--each", type=int, default=5)
    parser.add_argument("--skip", type=int, default=0, help="partitions that limits were set on")
    asked = parser.parse_args()
    use_case = use_cases(REPOSITORY / "params.yaml")[asked.use_case]
    partitions = read_partitions(use_case)
    as_they_were = find_as_they_were(partitions)
    places = np.linspace(_LEARNT + asked.skip, len(partitions) - 2, asked.partitions).astype(int)
    judged = []
    for place in places:
        some = [*judge_partition(use_case, partitions, int(place), asked.each)]
        judged += some
        print(place, {kind: f"{right}/{all_}" for kind, (right, all_) in _count(some).items()}, flush=True)
    counted = _count(judged)
    print({kind: f"{right}/{all_}" for kind, (right, all_) in counted.items()})
    keep_results(
        f"broken-feeds-{use_case.name}",
        as_they_were={"partitions": len(partitions), "blocked": as_they_were},
        right={kind: {"right": right, "of": all_} for kind, (right, all_) in counted.items()},
        wrong=[asdict(one) for one in judged if not one.right],
    )


def _count(judged: Sequence[Judged]) -> dict[str, tuple[int, int]]:
    found: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        found[one.kind].append(one.right)
    return {kind: (sum(each), len(each)) for kind, each in found.items()}


if __name__ == "__main__":
    main()
