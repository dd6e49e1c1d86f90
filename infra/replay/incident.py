"""The injected incident: for one week the weather feed sends records with every measurement empty.

What was injected is written down where it was done, in the source database: the two are there, or gone, together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg2 import sql

from adapters.warehouse import Warehouse
from pipeline.partitions import Interval

TABLE = "weather"
KEY = ("origin", "observed_at", "known_at")
_WHAT = "the weather feed sends records with every measurement empty"
_MANIFEST = """
create table if not exists injected_incidents (
    partition_key text primary key, table_name text not null, what text not null, rows bigint not null,
    state text not null check (state in ('broken', 'mended'))
)
"""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One injected incident, as the manifest records it."""

    partition_key: str
    table_name: str
    what: str
    rows: int
    state: str  # broken | mended


def list_incidents(source: Warehouse) -> list[Incident]:
    """The incidents injected so far."""
    [manifest] = source.query("select to_regclass('injected_incidents') is not null as there")
    rows = source.query("select * from injected_incidents order by partition_key") if manifest["there"] else []
    return [Incident(**row) for row in rows]


def _measurements(source: Warehouse) -> list[str]:
    columns = source.query(
        "select column_name as name from information_schema.columns "
        "where table_schema = 'public' and table_name = %s order by ordinal_position",
        (TABLE,),
    )
    return [column["name"] for column in columns if column["name"] not in KEY]


def _backup_name(partition_key: str) -> sql.Identifier:
    return sql.Identifier(f"{TABLE}_before_{partition_key.replace('-', '')}")


def break_feed(source: Warehouse, week: Interval, partition_key: str) -> Incident:
    """Empty every measurement the feed sent in a week, keeping the true records beside; twice is once."""
    blanks = sql.SQL(", ").join(sql.SQL("{} = null").format(sql.Identifier(name)) for name in _measurements(source))

    keep = sql.SQL("create table {} as select * from {} where known_at >= %s and known_at < %s").format(
        _backup_name(partition_key), sql.Identifier(TABLE)
    )
    empty = sql.SQL("update {} set {} where known_at >= %s and known_at < %s").format(sql.Identifier(TABLE), blanks)

    def change_feed() -> None:
        with source.transaction() as cursor:
            cursor.execute(_MANIFEST)
            cursor.execute("select from injected_incidents where partition_key = %s", (partition_key,))
            if cursor.fetchone() is None:
                cursor.execute(keep, (week.start, week.end))
                cursor.execute(empty, (week.start, week.end))
                cursor.execute(
                    "insert into injected_incidents values (%s, %s, %s, %s, 'broken')",
                    (partition_key, TABLE, _WHAT, cursor.rowcount),
                )

    source.retry_transaction(change_feed)
    return next(known for known in list_incidents(source) if known.partition_key == partition_key)


@contextmanager
def restored_feed(source: Warehouse, partition_key: str) -> Iterator[None]:
    """Put the true records of the broken week back, as the feed's operator would; mended once the block has ended."""
    assignments = sql.SQL(", ").join(
        sql.SQL("{0} = backup.{0}").format(sql.Identifier(name)) for name in _measurements(source)
    )
    statement = sql.SQL("update {} w set {} from {} backup where w.origin = backup.origin and {}").format(
        sql.Identifier(TABLE), assignments, _backup_name(partition_key), sql.SQL("w.observed_at = backup.observed_at")
    )
    source.execute(statement)
    yield
    source.execute("update injected_incidents set state = 'mended' where partition_key = %s", (partition_key,))
