"""Makes a source ready to be followed by its log: a publication of the tables, and a role that may replicate and read.

    WINDSOCK_SOURCE_ADMIN_DSN=... python -m tasks.stream.prepare_source <use case>

The role is the one that WINDSOCK_FOLLOWER_DSN names, with its password; the slot is made by the stream itself, so that
the source keeps nothing for a stream that never started. What is there already stays.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

import psycopg2
from psycopg2.extensions import cursor, parse_dsn

from adapters.replication_setup import create_follower_role, create_publication, grant_reading
from pipeline.settings import find_params
from pipeline.spec import UseCase
from tasks.common.command import find_use_case, report_mistakes
from tasks.stream.log_reader import slot_name

ADMIN, FOLLOWER = "WINDSOCK_SOURCE_ADMIN_DSN", "WINDSOCK_FOLLOWER_DSN"
_PUBLISHED = "select schemaname::text, tablename::text from pg_publication_tables where pubname = %s"


def prepare_source(use_case: UseCase, admin_dsn: str, follower_dsn: str) -> list[str]:
    """Make what is missing; what was done, in words.

    Raises:
        ValueError: a table cannot be followed; or there is a publication of this name for other tables.
    """
    source = use_case.source
    tables = {name: source.find_relation(name) for name in sorted(source.followed_tables)}
    with closing(psycopg2.connect(admin_dsn)) as opened, opened, opened.cursor() as at:
        done = _publish(at, slot_name(use_case), use_case, tables)
        return [done, _make_role(at, follower_dsn, list(tables.values()))]


def _publish(at: cursor, name: str, use_case: UseCase, tables: Mapping[str, tuple[str, ...]]) -> str:
    at.execute(_PUBLISHED, (name,))
    published = sorted(use_case.source.find_table(*row) for row in at.fetchall())
    if not published:
        create_publication(at, name, list(tables.values()))
        return f"publication {name}: made, of {', '.join(tables)}"
    if published != [*tables]:
        raise ValueError(
            f"publication {name} is of {', '.join(published)}: expected {', '.join(tables)}; drop it first"
        )
    return f"publication {name}: was there"


def _make_role(at: cursor, follower_dsn: str, tables: Sequence[tuple[str, ...]]) -> str:
    parts = parse_dsn(follower_dsn)
    if not parts.get("user") or not parts.get("password"):
        raise ValueError(f"{FOLLOWER}: expected a user and a password in it")
    at.execute("select from pg_roles where rolname = %s", (parts["user"],))
    if at.fetchone() is not None:
        grant_reading(at, parts["user"], tables)
        return f"role {parts['user']}: was there, and may read them"
    create_follower_role(at, parts["user"], parts["password"], tables)
    return f"role {parts['user']}: made"


@report_mistakes
def main(arguments: list[str]) -> int:
    """The command line; 1: the source is not there; 2: it cannot be followed, and why."""
    parser = argparse.ArgumentParser(prog="python -m tasks.stream.prepare_source", description="Make a source ready.")
    parser.add_argument("use_case")
    use_case = find_use_case(parser.parse_args(arguments).use_case, find_params(os.environ))
    admin_dsn, follower_dsn = os.environ.get(ADMIN), os.environ.get(FOLLOWER)
    if not admin_dsn or not follower_dsn:
        raise ValueError(f"set {ADMIN} (who owns the tables, and may make roles) and {FOLLOWER}")
    try:
        print(*prepare_source(use_case, admin_dsn, follower_dsn), sep="\n")
    except psycopg2.OperationalError as error:
        print(f"{ADMIN}: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
