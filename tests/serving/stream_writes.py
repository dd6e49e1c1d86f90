"""The online store as the stream writes it, between three moments of a small world."""

from datetime import datetime

import psycopg2.extras

from adapters.connect import Outside
from features.followed import ChangedSeries, FollowedSeries
from tests.features.test_followed import between, rows_changed
from tests.features.world import FLIGHTS, World, day

SINCE, AS_OF = day(15), day(18)
SPLIT, CUT = day(16), day(17)


def write_step(outside: Outside, step: ChangedSeries, known_until: datetime, *, changes: int) -> None:
    """What the stream writes, in one transaction."""
    digest = FLIGHTS.digest()
    with outside.warehouse.transaction() as at:
        for part, payloads in (("payload", step.settled), ("recent", step.recent)):
            psycopg2.extras.execute_values(
                at,
                f"insert into online_series (use_case, definition, key, {part}, changed) values %s"
                f" on conflict (use_case, definition, key) do update set {part} = excluded.{part},"
                " changed = excluded.changed",
                [("flights", digest, key, payload, changes) for key, payload in payloads.items()],
            )
        at.execute("update online_state set known_until = %s, changes = %s", (known_until, changes))


def apply_between(followed: FollowedSeries, world: World, *names: str) -> ChangedSeries:
    """What some tables' rows between CUT and AS_OF change."""
    return followed.apply({name: rows_changed(name, between(world[name], CUT, AS_OF)) for name in names})
