"""Whether each followed source is followed: the stream, and for a log its publication, slot and role."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2

from adapters.errors import Refused
from adapters.replication_setup import SlotState, check_role, inspect_slot
from adapters.warehouse import Warehouse
from infra.doctor.finding import RESTART, Environment, Finding
from pipeline.settings import find_params
from pipeline.spec import UseCase, use_cases
from tasks.stream.awaited_tables import has_begun, list_absent_tables
from tasks.stream.log_reader import slot_name

_HAS_STORE = "select exists (select from online_state where use_case = %s)"
_MOVED = """
select extract(epoch from now() - moved_at)::float, known_until from stream_state where use_case = %s"""
_PATIENCE_SECONDS = 5
_SILENT_SECONDS = 60.0  # it writes every second how far it is; a new dataset takes it away for some
_PREPARE = "make what is missing: `make publish`, or `python -m tasks.stream.prepare_source {}` as the source's owner"


def check_streams(environment: Environment) -> Iterator[Finding]:
    """What is wrong with following, for each use case that asks for it."""
    for use_case in use_cases(find_params(environment)).values():
        if use_case.source.follow is not None:
            yield from _check_stream(use_case, environment)


def _check_stream(use_case: UseCase, environment: Environment) -> Iterator[Finding]:
    check, dsn = f"stream {use_case.name}", environment["WINDSOCK_WAREHOUSE_DSN"]
    if absent := ", ".join(_list_absent_tables(use_case, environment["WINDSOCK_SOURCE_DSN"])):
        if not has_begun(use_case, Warehouse(dsn, patience_seconds=_PATIENCE_SECONDS)):
            hint = "load them (those of a shipped one come with `make demo`): it begins by itself"
            yield Finding(check=check, observation=f"waits for what is not in the source yet: {absent}", hint=hint)
            return
        remedy = f"make them again, or take them out of {use_case.name}.source in params.yaml"
        yield Finding(check=check, observation=f"no longer in the source: {absent}", remedy=remedy)
    with closing(psycopg2.connect(dsn, connect_timeout=5)) as opened, opened, opened.cursor() as at:
        at.execute(_HAS_STORE, (use_case.name,))
        [has_store] = at.fetchone() or (False,)
        at.execute(_MOVED, (use_case.name,))
        moved = at.fetchone()
    if has_store:
        yield _check_progress(check, moved)
    else:
        yield Finding(check=check, observation="waits for the first dataset", hint=f"run {use_case.name}.ingest")
    if use_case.source.follow == "cdc":
        yield from _check_log(use_case, environment.get("WINDSOCK_FOLLOWER_DSN"), has_store=has_store)


def _list_absent_tables(use_case: UseCase, dsn: str) -> list[str]:
    source = Warehouse(dsn, what="source database", is_source=True, patience_seconds=_PATIENCE_SECONDS)
    try:
        return list_absent_tables(use_case, source)
    except (psycopg2.Error, Refused):
        return []  # the check of databases says what is wrong


def _check_progress(check: str, row: tuple[Any, ...] | None) -> Finding:
    start = f"start the part `stream` (its log says why it ended): {RESTART.removeprefix('then ')}"
    if row is None:
        return Finding(check=check, observation="has never begun", remedy=start)
    silent, known_until = row
    observation = f"knows all until {known_until}, said so {silent:.0f} s ago"
    return Finding(check=check, observation=observation, remedy=start if silent > _SILENT_SECONDS else "")


def _check_log(use_case: UseCase, dsn: str | None, *, has_store: bool) -> Iterator[Finding]:
    check, name = f"log {use_case.name}", slot_name(use_case)
    if dsn is None:
        yield Finding(check=check, observation="no role follows it", remedy="set WINDSOCK_FOLLOWER_DSN")
        return
    try:
        with closing(psycopg2.connect(dsn, connect_timeout=5)) as opened, opened, opened.cursor() as at:
            state, faults = inspect_slot(at, name, name), check_role(at, name)
    except psycopg2.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        yield Finding(check=check, observation=reason, remedy=_PREPARE.format(use_case.name))
        return
    remedy = _PREPARE.format(use_case.name) if faults else ""
    yield Finding(check=check, observation="; ".join(faults) or "the role may follow, and no more", remedy=remedy)
    yield _check_slot(use_case, state, has_store=has_store)


def _check_slot(use_case: UseCase, state: SlotState | None, *, has_store: bool) -> Finding:
    check = f"slot {use_case.name}"
    if state is None:
        remedy = "start the part `stream`, which makes it" if has_store else ""  # with the first dataset
        return Finding(check=check, observation="there is none", remedy=remedy)
    if state.publication_oid is None:
        return Finding(check=check, observation="the publication is gone", remedy=_PREPARE.format(use_case.name))
    behind = "its log is lost" if state.behind_bytes is None else f"{state.behind_bytes / 1e6:.1f} MB behind"
    observation = f"{behind}, {'read' if state.is_active else 'not read'}, {len(state.tables)} tables"
    return Finding(
        check=check,
        observation=observation,
        remedy="" if state.is_active else "start the part `stream`: until then the source keeps its log",
    )
