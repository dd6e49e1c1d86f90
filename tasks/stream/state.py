"""How far a use case was followed, and who may follow it."""

import json
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.warehouse import Fence
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import Identities
from tasks.stream.source_step import LogPlace

_STATE = """
select position, number, publication_oid, known_until, changes, answers_since from stream_state where use_case = %s"""
_BEGIN = """
insert into stream_state (use_case, identities) values (%(use_case)s, %(identities)s)
on conflict (use_case) do update set identities = excluded.identities, position = null, number = -1,
    publication_oid = null where stream_state.identities <> excluded.identities"""
_FORGET = """
with store as (
    update online_state o set split = null where use_case = %(use_case)s and exists (
        select from stream_state s where s.use_case = o.use_case and s.identities <> %(identities)s::jsonb)
), versions as (
    delete from followed_versions v where use_case = %(use_case)s and exists (
        select from stream_state s where s.use_case = v.use_case and s.identities <> %(identities)s::jsonb)
)
delete from followed_rows f where use_case = %(use_case)s and exists (
    select from stream_state s where s.use_case = f.use_case and s.identities <> %(identities)s::jsonb)"""
_ADVANCE = """
update stream_state set position = %(position)s, number = %(number)s, publication_oid = %(publication_oid)s,
    known_until = %(known_until)s, changes = %(changes)s, answers_since = %(answers_since)s, moved_at = now()
where use_case = %(use_case)s"""


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """How far a use case was followed."""

    place: LogPlace | None
    publication_oid: int | None
    known_until: datetime | None
    changes: int
    answers_since: datetime | None = None  # a prediction time; None: no event is answered by itself yet


def read_stream_state(use_case: UseCase, outside: Outside) -> StreamState | None:
    """How far a use case was followed; None: it never was."""
    rows = outside.warehouse.query(_STATE, (use_case.name,))
    if not rows:
        return None
    [row] = rows
    place = None if row["position"] is None else LogPlace(position=row["position"], number=row["number"])
    return StreamState(
        place=place,
        publication_oid=row["publication_oid"],
        known_until=row["known_until"],
        changes=row["changes"],
        answers_since=row["answers_since"],
    )


def begin_following(use_case: UseCase, outside: Outside, identities: Identities) -> tuple[Fence, StreamState]:
    """The right to follow, which whoever followed before has no longer; and how far was followed."""
    fence = outside.warehouse.begin(f"{use_case.name}/stream")

    def begin() -> None:
        with outside.warehouse.transaction(fence) as at:
            values = {"use_case": use_case.name, "identities": json.dumps(identities)}
            at.execute(_FORGET, values)  # rows that were told apart by other columns
            at.execute(_BEGIN, values)

    outside.warehouse.retry_transaction(begin)
    state = read_stream_state(use_case, outside)
    assert state is not None  # begun
    return fence, state


def forget_log(use_case: UseCase, outside: Outside) -> None:
    """What was read of the log counts no more: the next to follow reads the tables first, and begins a log anew."""
    statement = "update stream_state set position = null, number = -1, publication_oid = null where use_case = %s"
    outside.warehouse.execute(statement, (use_case.name,))


def advance_stream(at: cursor, use_case: UseCase, state: StreamState) -> None:
    """Write how far it was followed, in the caller's transaction."""
    values = {
        "use_case": use_case.name,
        "position": state.place.position if state.place else None,
        "number": state.place.number if state.place else -1,
        "publication_oid": state.publication_oid,
        "known_until": state.known_until,
        "changes": state.changes,
        "answers_since": state.answers_since,
    }
    at.execute(_ADVANCE, values)
