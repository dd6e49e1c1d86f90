"""Keeps the ledger of served features: each partition that is built is compared, and compared again when it changes.

Reconciled from the warehouse: of the latest partitions those whose batch features, or answers, are not those of the
last comparison. One fenced transaction a partition replaces what the ledger has of it. A difference without a proved
cause is a defect, and an alert until the partition has none.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any

import psycopg2.extras
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.warehouse import Fence
from features import FeatureSet
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.followed_rows import read_identities
from tasks.build_features.followed_versions import first_compared, read_versions
from tasks.build_features.learnt_features import UncomputableFeatures, load_learnt_definition, load_learnt_points
from tasks.monitor.feature_ledger.answers import ServedAnswer, compare_features, read_answers
from tasks.monitor.feature_ledger.known_rows import CleanRows, DatasetObjects, KnownRows, read_objects
from tasks.monitor.feature_ledger.prove import DifferenceProver, ProvedDifference
from tasks.monitor.feature_ledger.quarantined import find_quarantined
from tasks.monitor.feature_ledger.recompute import Recomputation
from tasks.monitor.feature_ledger.row_causes import CauseFinder, ServedCause
from tasks.monitor.served_features import LOGGED_ANSWER

logger = logging.getLogger(__name__)

_PAGE_ROWS = 500
_SEEN = f"""
select p.start, concat_ws('|', s.index #>> array[p.key, 'inputs'], count(a.*), count(o.*),
    sum(hashtextextended(o.features::text, 0))) as seen, count(a.*) as answers
from unnest(%(keys)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) as p (key, start, "end")
join snapshots s on s.use_case = %(use_case)s and s.version = %(version)s and s.index ? p.key
left join answers_in_time a on a.use_case = s.use_case and a.in_time
    and a.prediction_time >= p.start and a.prediction_time < p."end"
left join {LOGGED_ANSWER}
group by p.key, p.start, s.index order by p.start"""  # noqa: S608  # our own condition
_KNOWN = "select partition_start, seen from served_partitions where use_case = %s"
_CLEAR = "delete from served_differences where use_case = %s and partition_start = %s"
_WRITE = """
insert into served_differences (use_case, partition_start, entity_key, event_time, feature, model_version, served,
    batch, cause, proof) values %s"""
_TOTALS = """
insert into served_partitions (use_case, partition_start, snapshot_version, seen, answers, unlogged, compared, equal,
    causes)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
on conflict (use_case, partition_start) do update set snapshot_version = excluded.snapshot_version,
    seen = excluded.seen, answers = excluded.answers, unlogged = excluded.unlogged, compared = excluded.compared,
    equal = excluded.equal, causes = excluded.causes, compared_at = now()"""
_OVER = """
update alerts set resolved_at = now() where fingerprint like %s and fingerprint < %s and resolved_at is null"""


@dataclass(frozen=True, kw_only=True)
class ServedPartition:
    """What a partition's answers in time used, beside batch: one row of `served_partitions`, and what differs."""

    partition: Interval
    snapshot_version: str
    seen: str
    answers: int
    unlogged: int
    compared: int
    differing: Sequence[ProvedDifference]

    @property
    def causes(self) -> dict[str, int]:
        """How many features differ by each cause."""
        return dict(sorted(Counter(each.cause.value for each in self.differing).items()))


def compare_served_features(use_case: UseCase, outside: Outside) -> list[ServedPartition]:
    """Bring the ledger up to date, oldest partition first; what was compared. Run again, it has nothing to do.

    Raises:
        FencedOut: another run has begun meanwhile, and does the rest.
        Missing, Corrupt: a bundle of a version that answered is not there, or is not the one that was registered.
    """
    snapshot = dataset.latest_snapshot(use_case, outside)
    if use_case.endpoint is None or snapshot is None:
        return []
    fence = outside.warehouse.begin(f"monitor/{use_case.name}/served")
    compared = []
    for partition, seen in find_uncompared(use_case, snapshot, outside):
        found = compare_partition(use_case, snapshot, partition, seen, outside)
        outside.warehouse.retry_transaction(partial(_write, use_case, found, outside, fence))
        logger.info("%s: %d answers of %s, %s", use_case.name, found.answers, partition, found.causes or "all equal")
        compared.append(found)
    _end_old_alerts(use_case, snapshot, outside)
    outside.alerts.flush()
    return compared


def find_uncompared(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> list[tuple[Interval, str]]:
    """The latest partitions that have answers and are built, and were not compared as they are now."""
    first = max(snapshot.start.astimezone(UTC), first_compared(use_case, snapshot.end.astimezone(UTC)))
    parts = use_case.grid.covering(Interval(first, snapshot.end.astimezone(UTC)))
    where = {
        "use_case": use_case.name,
        "version": snapshot.version,
        "keys": [use_case.grid.key(part) for part in parts],
        "starts": [part.start for part in parts],
        "ends": [part.end for part in parts],
    }
    known = {row["partition_start"]: row["seen"] for row in outside.warehouse.query(_KNOWN, (use_case.name,))}
    return [
        (use_case.grid.containing(row["start"]), row["seen"])
        for row in outside.warehouse.query(_SEEN, where)
        if row["seen"] != known.get(row["start"]) and (row["answers"] or row["start"] in known)
    ]


def compare_partition(
    use_case: UseCase, snapshot: Snapshot, partition: Interval, seen: str, outside: Outside
) -> ServedPartition:
    """Compare the answers in time of a partition with a dataset, and prove what differs."""
    with outside.warehouse.transaction(snapshot=True) as at:
        answers = read_answers(at, use_case, partition)
    logged = [answer for answer in answers if answer.features is not None]
    compared, told, differing = 0, 0, list[ProvedDifference]()
    for definition, mine in _by_definition(use_case, logged, outside):
        where = {"start": partition.start, "end": partition.end}
        try:
            points = load_learnt_points(definition, snapshot.version, use_case, outside, **where)
        except UncomputableFeatures as error:
            logger.warning("%s: %d answers of %s are not compared: %s", use_case.name, len(mine), partition, error)
            continue
        count, differences = compare_features(definition, mine, points)
        compared, told = compared + count, told + len(mine)
        if differences:
            prover = make_prover(use_case, definition, snapshot, partition, outside)
            differing += prover.prove(differences)
    return ServedPartition(
        partition=partition,
        snapshot_version=snapshot.version,
        seen=seen,
        answers=len(answers),
        unlogged=len(answers) - told,
        compared=compared,
        differing=differing,
    )


def _by_definition(
    use_case: UseCase, answers: Sequence[ServedAnswer], outside: Outside
) -> Iterator[tuple[FeatureSet, list[ServedAnswer]]]:
    """Answers by the definition that their version learnt; those of versions whose definition is lost are left out."""
    by_version, by_digest = defaultdict[str, list[ServedAnswer]](list), dict[str, tuple[FeatureSet, Any]]()
    for answer in answers:
        by_version[answer.model_version].append(answer)
    for version, mine in sorted(by_version.items()):
        try:
            definition = load_learnt_definition(use_case, version, outside)
        except UncomputableFeatures as error:
            logger.warning("%s: %d answers are not compared: %s", use_case.name, len(mine), error)
            continue
        by_digest.setdefault(definition.digest(), (definition, []))[1].extend(mine)
    yield from by_digest.values()


def make_prover(
    use_case: UseCase, definition: FeatureSet, snapshot: Snapshot, partition: Interval, outside: Outside
) -> DifferenceProver:
    """Who proves the differences of a partition's answers by one definition, from a dataset and what is kept."""
    with outside.warehouse.transaction(snapshot=True) as at:
        identities = read_identities(at, use_case)
        since = partition.start - definition.look_back
        versions = read_versions(at, use_case, since, list(definition.sources))
    assert identities is not None  # whoever answers events by themselves follows their source
    clean = CleanRows(use_case, identities, outside)

    @cache
    def find_dataset(version: str) -> DatasetObjects:
        return read_objects(dataset.find_snapshot(version, use_case, outside), partition, definition, outside)

    batch = find_dataset(snapshot.version)
    known = KnownRows(clean=clean, batch=batch, versions=versions)
    return DifferenceProver(
        known=known,
        causes=CauseFinder(
            known=known,
            quarantined=find_quarantined(use_case, identities, batch.objects, outside),
            horizon=timedelta(seconds=use_case.source.horizon_seconds),
            partition_key=lambda moment: use_case.grid.key(use_case.grid.containing(moment)),
        ),
        recomputation=Recomputation(
            use_case=use_case, definition=definition, clean=clean, batch=batch, outside=outside
        ),
        find_dataset=find_dataset,
    )


def _write(use_case: UseCase, found: ServedPartition, outside: Outside, fence: Fence) -> None:
    where = (use_case.name, found.partition.start)
    with outside.warehouse.transaction(fence) as at:
        at.execute(_CLEAR, where)
        rows = [(*where, *_row(each)) for each in found.differing]
        psycopg2.extras.execute_values(at, _WRITE, rows, page_size=_PAGE_ROWS)
        equal = found.compared - len(found.differing)
        totals = (found.snapshot_version, found.seen, found.answers, found.unlogged, found.compared, equal)
        at.execute(_TOTALS, (*where, *totals, json.dumps(found.causes)))
        _tell_defects(at, use_case, found, outside)


def _row(each: ProvedDifference) -> tuple[Any, ...]:
    difference = each.difference
    values = [None if value is None else json.dumps(value) for value in (difference.served, difference.batch)]
    key = (*difference.answer.key, difference.feature, difference.answer.model_version)
    return (*key, *values, each.cause.value, json.dumps(each.proof))


def _tell_defects(at: cursor, use_case: UseCase, found: ServedPartition, outside: Outside) -> None:
    fingerprint = _fingerprint(use_case, found.partition.start)
    defects = [each for each in found.differing if each.cause is ServedCause.DEFECT]
    if not defects:
        outside.alerts.resolve(fingerprint, at)
        return
    features = Counter(each.difference.feature for each in defects)
    events = len({each.difference.answer.key for each in defects})
    lines = [f"{name}: {count} events" for name, count in features.most_common(20)]
    why = Counter(str(each.proof.get("missing", "a row without a cause")) for each in defects)
    outside.alerts.record(
        at,
        tier="critical",
        use_case=use_case.name,
        fingerprint=fingerprint,
        title=f"{use_case.name}: features of {events} answers differ from batch's without a cause,"
        f" partition {found.partition.start:%Y-%m-%d}",
        body="\n".join(
            [*lines, *(f"{text} ({count}x)" for text, count in why.most_common()), "docs/runbooks/served-features.md"]
        ),
    )


def _end_old_alerts(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> None:
    """Of partitions that are not compared any more."""
    first = first_compared(use_case, snapshot.end.astimezone(UTC))
    outside.warehouse.execute(_OVER, (f"{use_case.name}.served.%", _fingerprint(use_case, first)))


def _fingerprint(use_case: UseCase, start: datetime) -> str:
    return f"{use_case.name}.served.{start.astimezone(UTC):%Y-%m-%d}"
