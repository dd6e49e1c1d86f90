"""Tells of a stream that stands still, and of a slot that makes the source keep too much of its log.

A slot that nobody reads is dropped before it fills the source's disk: what was missed is then read from the tables.
"""

from datetime import timedelta
from typing import Any

import psycopg2

from adapters.connect import Outside
from adapters.errors import Refused, SlotInUse, Unavailable
from adapters.replication_setup import SlotState, drop_slot, inspect_slot
from adapters.warehouse import Warehouse
from pipeline.spec import UseCase
from tasks.stream.feed_watch import resolve_unwatched
from tasks.stream.log_reader import slot_name
from tasks.stream.state import forget_log, read_stream_state

STANDING_STILL = timedelta(minutes=5)  # a stream writes every second how far it is; a new dataset holds it up for less
WARNED_BYTES, DROPPED_BYTES = 512 << 20, 2 << 30

_HAS_STORE = "select 1 from online_state where use_case = %s limit 1"
_MOVED = "select now() - moved_at as since, known_until from stream_state where use_case = %s"


def judge_stream(use_case: UseCase, outside: Outside) -> list[str]:
    """Raise or resolve the alerts about one stream, and drop a slot that nobody reads; what was found.

    A source that does not answer is an alert, and no error: what else is to be found goes on.
    """
    dsn = outside.settings.follower_dsn
    state = read_stream_state(use_case, outside)
    may_have_slot = use_case.source.follow == "cdc" or (state is not None and state.place is not None)
    found = list[str]()
    if use_case.source.follow is not None:
        found += _judge_progress(use_case, outside)
    elif state is not None:
        found += _tell(use_case, outside, "standstill", None)
        resolve_unwatched(use_case, outside, ())
    if may_have_slot and dsn is not None:
        try:
            source = Warehouse(dsn, what="followed source", is_source=True, patience_seconds=5)
            found += _judge_slot(use_case, outside, source)
        except (psycopg2.Error, Unavailable, Refused) as error:
            title, body = f"{use_case.name}: the slot of the source cannot be looked at", str(error).strip()
            found += _tell(use_case, outside, "slot", ("warning", title, body))
    return found


def _judge_progress(use_case: UseCase, outside: Outside) -> list[str]:
    rows: list[dict[str, Any]] = outside.warehouse.query(_MOVED, (use_case.name,))
    if not rows and not outside.warehouse.query(_HAS_STORE, (use_case.name,)):
        return _tell(use_case, outside, "standstill", None)  # before the first dataset there is nothing to follow into
    if rows and rows[0]["since"] <= STANDING_STILL:
        return _tell(use_case, outside, "standstill", None)
    since = f"for {rows[0]['since']}, at {rows[0]['known_until']}" if rows else "since it was asked for"
    body = f"nothing of the source has reached the online store {since}: see the log of the part `stream`"
    return _tell(use_case, outside, "standstill", ("critical", f"{use_case.name}: the stream stands still", body))


def _judge_slot(use_case: UseCase, outside: Outside, source: Warehouse) -> list[str]:
    name = slot_name(use_case)
    if use_case.source.follow != "cdc":  # any more
        with source.transaction() as at:
            drop_slot(at, name)
        forget_log(use_case, outside)
        return _tell(use_case, outside, "slot", None)
    with source.transaction() as at:
        state = inspect_slot(at, name, name)
    kept = state.retained_bytes if state is not None else None
    if state is None or kept is None or kept <= WARNED_BYTES:
        return _tell(use_case, outside, "slot", None)
    title, body = f"{use_case.name}: the source keeps {kept / 1e9:.1f} GB of its log for the stream", _describe(state)
    if kept > DROPPED_BYTES and not state.is_active:
        try:
            with source.transaction() as at:
                drop_slot(at, name)
        except SlotInUse:  # the stream is back
            return _tell(use_case, outside, "slot", ("warning", title, body))
        title = f"{use_case.name}: the stream's slot was dropped, before the source's log fills its disk"
        body = "nobody read it. The stream reads what it missed from the tables when it is back"
    return _tell(use_case, outside, "slot", ("critical" if kept > DROPPED_BYTES else "warning", title, body))


def _describe(state: SlotState) -> str:
    spare = "" if state.spare_bytes is None else f"; it loses the slot after {state.spare_bytes / 1e9:.1f} GB more"
    return f"the stream {'is slower than the source' if state.is_active else 'does not run'}{spare}"


def _tell(use_case: UseCase, outside: Outside, what: str, alert: tuple[Any, str, str] | None) -> list[str]:
    fingerprint = f"{use_case.name}.stream.{what}"
    if alert is None:
        outside.alerts.resolve(fingerprint)
        return []
    tier, title, body = alert
    outside.alerts.raise_alert(tier, use_case.name, fingerprint, title, body)
    return [title]
