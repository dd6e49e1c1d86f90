"""Keeps the online store at the latest feature dataset: for each key the packed series of its history.

It holds today's definition of the features, and those of every version that answers or may come to, so that a changed
definition is no outage. A refresh is one transaction for each: readers see the old state or the new one, whole, and
only series that changed are written. The store follows snapshots in the order they were built; a run that was overtaken
can no longer commit.

Where the source is followed (`tasks/stream`), the stream brings the store to a later snapshot itself, in place; a
refresh waits for it. Where nobody follows, or a definition is new, it takes along what became known since.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import duckdb

import features
from adapters.connect import Outside
from adapters.retrying import wait_until
from adapters.warehouse import Fence
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.followed_versions import forget_followed
from tasks.build_features.learnt_features import iterate_definitions_in_use
from tasks.build_features.store_refresh import DefinitionRefresh, Refreshed

logger = logging.getLogger(__name__)

_STREAM_SECONDS = 120.0  # a stream that has not come to it by then will not
_REACHED = """
select s.definition, s.snapshot_version, s.split is not null as is_parted, s.snapshot_version = %(version)s
    or b.build_order >= (select build_order from snapshots where (use_case, version) = (%(use_case)s, %(version)s))
    as is_reached
from online_state s left join snapshots b on (b.use_case, b.version) = (s.use_case, s.snapshot_version)
where s.use_case = %(use_case)s"""
_RETIRE = """
with old as (
    select definition from online_state where use_case = %s and definition <> all(%s)
), gone as (
    delete from online_series using old where use_case = %s and online_series.definition = old.definition
)
delete from online_state using old where use_case = %s and online_state.definition = old.definition"""


def find_unreached_snapshot(use_case: UseCase, outside: Outside) -> Snapshot | None:
    """The snapshot the store has yet to reach; None: it is there, or there is no endpoint, or nothing was built.

    A definition that is in use no more is to go, so the store is not there either.
    """
    if use_case.endpoint is None:
        return None
    latest = dataset.latest_snapshot(use_case, outside)
    if latest is None:
        return None
    lost = list[str]()
    in_use = {definition.digest() for definition in iterate_definitions_in_use(use_case, outside, lost)}
    held = outside.warehouse.query(_REACHED, {"use_case": use_case.name, "version": latest.version})
    unused = set[str]() if lost else {row["definition"] for row in held} - in_use
    return latest if unused or in_use - {row["definition"] for row in held if row["is_reached"]} else None


def refresh_store(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> Refreshed:
    """Bring the store to a snapshot, from the clean objects it was made from; an older one changes nothing.

    What is of none of the definitions in use goes. An older one that the clean data no longer serve stays as it is, and
    an alert says so.

    Raises:
        ValueError: a clean table lacks what the features read.
        FencedOut: a later refresh has begun, and will do this work.
    """
    lost = list[str]()
    in_use = list(iterate_definitions_in_use(use_case, outside, lost))
    digests = [definition.digest() for definition in in_use]
    fence = outside.warehouse.begin(f"{use_case.name}/online_features")
    done = Refreshed(written=0, deleted=0, unchanged=0)
    if not _await_stream(use_case, snapshot, outside, digests):
        for definition in in_use:
            done += _refresh_definition(use_case, definition, snapshot, outside, fence)

    def retire() -> None:
        with outside.warehouse.transaction(fence) as at:
            at.execute(_RETIRE, (use_case.name, digests, use_case.name, use_case.name))
            forget_followed(at, use_case, snapshot.end)

    if not lost:  # else what seems unused may be what a lost version learnt
        outside.warehouse.retry_transaction(retire)
    logger.info("%s: online store at %s, %s", use_case.name, snapshot.version, done)
    return done


def _await_stream(use_case: UseCase, snapshot: Snapshot, outside: Outside, digests: Sequence[str]) -> bool:
    """Whether the stream brought all definitions to a snapshot; where it follows only some, it is not awaited."""
    if use_case.source.follow is None:
        return False

    def read_held() -> dict[str, dict[str, Any]]:
        rows = outside.warehouse.query(_REACHED, {"use_case": use_case.name, "version": snapshot.version})
        return {row["definition"]: row for row in rows if row["is_parted"]}

    held, is_left = read_held(), False
    if not held.keys() >= {*digests} or len({held[digest]["snapshot_version"] for digest in digests}) > 1:
        return False

    def is_over() -> bool:
        nonlocal held, is_left
        with outside.warehouse.alone(f"{use_case.name}/stream") as is_left:
            held = read_held()
        return is_left or not held.keys() >= {*digests} or all(held[digest]["is_reached"] for digest in digests)

    wait_until(is_over, within_seconds=_STREAM_SECONDS, every_seconds=0.5)
    return not is_left and all(digest in held and held[digest]["is_reached"] for digest in digests)


def _refresh_definition(
    use_case: UseCase, definition: features.FeatureSet, snapshot: Snapshot, outside: Outside, fence: Fence
) -> Refreshed:
    try:
        refresh = DefinitionRefresh(use_case, definition, snapshot, outside)
    except (ValueError, duckdb.Error) as error:
        if definition is features.definition(use_case.name):
            raise
        _alert_stale_definition(use_case, definition.digest(), error, outside)
        return Refreshed(written=0, deleted=0, unchanged=0)
    with closing(refresh):
        return outside.warehouse.retry_transaction(partial(refresh.commit, fence))


def _alert_stale_definition(use_case: UseCase, digest: str, error: Exception, outside: Outside) -> None:
    outside.alerts.raise_alert(
        "critical",
        use_case.name,
        f"{use_case.name}/online_features/{digest[:12]}",
        f"{use_case.title}: history online of an older feature definition is no longer refreshed",
        f"the clean data no longer have what the features {digest[:12]} read ({error}). What answers by them grows old:"
        f" run {use_case.name}.train",
    )
