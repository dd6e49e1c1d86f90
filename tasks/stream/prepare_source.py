"""Makes a source ready to be followed by its log: a publication of the tables, and a role that may replicate and read.

    WINDSOCK_SOURCE_ADMIN_DSN=... python -m tasks.stream.prepare_source <use case>

The role is the one that WINDSOCK_FOLLOWER_DSN names, with its password; the slot is made by the stream itself, so that
the source keeps nothing for a stream that never started. What is there already stays.
"""

import argparse
import os
import sys
from contextlib import closing

import psycopg2
from psycopg2.extensions import cursor, parse_dsn

from adapters.replication_setup import create_follower_role, create_publication, grant_reading
from pipeline.spec import UseCase
from tasks.common.command import parse_command, report_mistakes
from tasks.stream.log_reader import slot_name

ADMIN = "WINDSOCK_SOURCE_ADMIN_DSN"
_PUBLISHED = "select tablename::text from pg_publication_tables where pubname = %s order by 1"


def prepare_source(use_case: UseCase, admin_dsn: str, follower_dsn: str) -> list[str]:
    """Make what is missing; what was done, in words.

    Raises:
        ValueError: a table cannot be followed; or there is a publication of this name for other tables.
    """
    tables = sorted(use_case.source.followed_tables)
    with closing(psycopg2.connect(admin_dsn)) as opened, opened, opened.cursor() as at:
        return [_publish(at, slot_name(use_case), tables), _make_role(at, follower_dsn, tables)]


def _publish(at: cursor, name: str, tables: list[str]) -> str:
    at.execute(_PUBLISHED, (name,))
    published = [row[0] for row in at.fetchall()]
    if not published:
        create_publication(at, name, tables)
        return f"publication {name}: made, of {', '.join(tables)}"
    if published != tables:
        raise ValueError(
            f"publication {name} is of {', '.join(published)}: expected {', '.join(tables)}; drop it first"
        )
    return f"publication {name}: was there"


def _make_role(at: cursor, follower_dsn: str, tables: list[str]) -> str:
    parts = parse_dsn(follower_dsn)
    if not parts.get("user") or not parts.get("password"):
        raise ValueError("WINDSOCK_FOLLOWER_DSN: expected a user and a password in it")
    at.execute("select from pg_roles where rolname = %s", (parts["user"],))
    if at.fetchone() is not None:
        grant_reading(at, parts["user"], tables)
        return f"role {parts['user']}: was there, and may read them"
    create_follower_role(at, parts["user"], parts["password"], tables)
    return f"role {parts['user']}: made"


@report_mistakes
def main(arguments: list[str]) -> int:
    """The command line; 2: the source cannot be followed, and why."""
    parser = argparse.ArgumentParser(prog="python -m tasks.stream.prepare_source", description="Make a source ready.")
    parser.add_argument("use_case")
    _, use_case, outside = parse_command(parser, arguments)
    admin_dsn, follower_dsn = os.environ.get(ADMIN), outside.settings.follower_dsn
    if admin_dsn is None or follower_dsn is None:
        raise ValueError(f"set {ADMIN} (who owns the tables, and may make roles) and WINDSOCK_FOLLOWER_DSN")
    for line in prepare_source(use_case, admin_dsn, follower_dsn):
        print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
