"""Keeps the online store at the latest feature dataset: for each key the packed series of its history.

It holds today's definition of the features, and those of every version that answers or may come to, so that a changed
definition is no outage. A refresh is one transaction for each: readers see the old state or the new one, whole, and
only series that changed are written. The store follows snapshots in the order they were built; a run that was overtaken
can no longer commit.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import duckdb
import psycopg2.extras
from psycopg2.extensions import cursor

import features
from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.learnt_features import iterate_definitions_in_use
from tasks.build_features.manifest import clean_files

logger = logging.getLogger(__name__)

_PARTITIONS_KEPT = 2  # of prediction times before `as_of` that are answered exactly; golden rows come from the last one
_PAGE_ROWS = 500

_STATE = """
select s.snapshot_version, b.build_order from online_state s
left join snapshots b on b.use_case = s.use_case and b.version = s.snapshot_version
where s.use_case = %s and s.definition = %s"""

_REACHED = "select definition from online_state where use_case = %s and snapshot_version = %s"

_ORDER = "select build_order from snapshots where use_case = %s and version = %s"

_WRITE = """
insert into online_series (use_case, definition, key, payload) values %s
on conflict (use_case, definition, key) do update set payload = excluded.payload"""

_ADVANCE = """
insert into online_state (use_case, definition, since, as_of, snapshot_version, revision)
values (%s, %s, %s, %s, %s, 1)
on conflict (use_case, definition) do update set since = excluded.since, as_of = excluded.as_of,
    snapshot_version = excluded.snapshot_version, revision = online_state.revision + 1, refreshed_at = now()"""

_RETIRE = """
with old as (
    select definition from online_state where use_case = %s and definition <> all(%s)
), gone as (
    delete from online_series using old where use_case = %s and online_series.definition = old.definition
)
delete from online_state using old where use_case = %s and online_state.definition = old.definition"""


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """What a refresh did to the store, in series."""

    written: int
    deleted: int
    unchanged: int

    def __add__(self, other: "Refreshed") -> "Refreshed":
        return Refreshed(
            written=self.written + other.written,
            deleted=self.deleted + other.deleted,
            unchanged=self.unchanged + other.unchanged,
        )


def find_unreached_snapshot(use_case: UseCase, outside: Outside) -> Snapshot | None:
    """The snapshot the store has yet to reach; None: it is there, or there is no endpoint, or nothing was built."""
    if use_case.endpoint is None:
        return None
    latest = dataset.latest_snapshot(use_case, outside)
    if latest is None:
        return None
    rows = outside.warehouse.query(_REACHED, (use_case.name, latest.version))
    reached = {row["definition"] for row in rows}
    in_use = iterate_definitions_in_use(use_case, outside, lost=[])
    return None if all(definition.digest() in reached for definition in in_use) else latest


def refresh_store(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> Refreshed:
    """Bring the store to a snapshot, from the clean objects it was made from; an older one changes nothing.

    What is of none of the definitions in use goes. An older one that the clean data no longer serve stays as it is, and
    an alert says so.

    Raises:
        ValueError: a clean table lacks what the features read.
        FencedOut: a later refresh has begun, and will do this work.
    """
    fence = outside.warehouse.begin(f"{use_case.name}/online_features")
    kept = Interval(snapshot.end - timedelta(days=_PARTITIONS_KEPT * use_case.source.partition_days), snapshot.end)
    done, digests, lost = Refreshed(written=0, deleted=0, unchanged=0), list[str](), list[str]()
    for definition in iterate_definitions_in_use(use_case, outside, lost):
        digests.append(digest := definition.digest())
        try:
            files = clean_files(snapshot, kept, outside, definition)
            series = dict(pack_all_series(definition, files, kept, use_case.time.lead))
        except (ValueError, duckdb.Error) as error:
            if definition is features.definition(use_case.name):
                raise
            _alert_stale_definition(use_case, digest, error, outside)
            continue

        def commit(digest: str = digest, series: Mapping[str, bytes] = series) -> Refreshed:
            with outside.warehouse.transaction(fence) as at:
                return _write(at, use_case, snapshot, digest=digest, kept=kept, series=series)

        done += outside.warehouse.retry_transaction(commit)

    def retire() -> None:
        with outside.warehouse.transaction(fence) as at:
            at.execute(_RETIRE, (use_case.name, digests, use_case.name, use_case.name))

    if not lost:  # else one of those that seem unused may be what a lost version learnt
        outside.warehouse.retry_transaction(retire)
    logger.info("%s: online store at %s, %s", use_case.name, snapshot.version, done)
    return done


def _alert_stale_definition(use_case: UseCase, digest: str, error: Exception, outside: Outside) -> None:
    outside.alerts.raise_alert(
        "critical",
        use_case.name,
        f"{use_case.name}/online_features/{digest[:12]}",
        f"{use_case.title}: history online of an older feature definition is no longer refreshed",
        f"the clean data no longer have what the features {digest[:12]} read ({error}). What answers by them grows old:"
        f" run {use_case.name}.train",
    )


def pack_all_series(
    definition: features.FeatureSet, tables: Mapping[str, Sequence[Path]], kept: Interval, lead: timedelta
) -> Iterator[tuple[str, bytes]]:
    """Every series of a definition: the text of its key, and its bytes."""
    from features.series import extract_series
    from features.series_codec import pack_series

    for item, table in extract_series(definition, tables, kept, lead):
        yield from pack_series(item, table)


def _write(
    at: cursor, use_case: UseCase, snapshot: Snapshot, *, digest: str, kept: Interval, series: Mapping[str, bytes]
) -> Refreshed:
    at.execute(_STATE, (use_case.name, digest))
    state = at.fetchone()
    at.execute(_ORDER, (use_case.name, snapshot.version))
    order = at.fetchone()
    if state is not None and order is not None and (state[1] or 0) > order[0]:
        logger.info("%s: the online store is past %s already", use_case.name, snapshot.version)
        return Refreshed(written=0, deleted=0, unchanged=len(series))
    where = (use_case.name, digest)
    at.execute("select key, sha256(payload) from online_series where use_case = %s and definition = %s", where)
    stored = {key: bytes(hashed) for key, hashed in at.fetchall()}
    changed = [(*where, k, v) for k, v in sorted(series.items()) if stored.get(k) != sha256(v).digest()]
    gone = sorted(stored.keys() - series.keys())
    psycopg2.extras.execute_values(at, _WRITE, changed, page_size=_PAGE_ROWS)
    at.execute("delete from online_series where use_case = %s and definition = %s and key = any(%s)", (*where, gone))
    if changed or gone or state is None or state[0] != snapshot.version:
        at.execute(_ADVANCE, (*where, kept.start, kept.end, snapshot.version))
    return Refreshed(written=len(changed), deleted=len(gone), unchanged=len(series) - len(changed))
