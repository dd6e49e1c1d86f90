"""What the online store holds of each definition, as its last refresh and the stream left it."""

from datetime import datetime
from typing import NamedTuple

from psycopg2.extensions import cursor

from pipeline.spec import UseCase

_REVISIONS = """
select definition, revision, as_of, snapshot_version, split is not null as is_parted from online_state
where use_case = %s order by 1"""


class Revision(NamedTuple):
    """What the store holds of one definition: a refresh changes it, and the stream does not."""

    revision: int
    as_of: datetime
    snapshot_version: str
    is_parted: bool


def read_revisions(at: cursor, use_case: UseCase, lock: str = "") -> dict[str, Revision]:
    """Of each definition, by its digest, in the caller's transaction; `lock`: `for update` keeps them as they are."""
    at.execute(f"{_REVISIONS} {lock}", (use_case.name,))
    return {digest: Revision(*others) for digest, *others in at.fetchall()}
