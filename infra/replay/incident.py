"""The injected incident: for one week the weather feed sends records with every measurement empty."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from psycopg2 import sql

from adapters.warehouse import Warehouse
from pipeline.partitions import Interval

TABLE = "weather"
KEY = ("origin", "observed_at", "known_at")


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One injected incident, as the manifest records it."""

    partition_key: str
    table: str
    what: str
    rows: int
    state: str  # broken | mended


def manifest(folder: Path) -> list[Incident]:
    """The incidents injected so far, from <folder>/incidents.json."""
    path = folder / "incidents.json"
    return [Incident(**entry) for entry in json.loads(path.read_text())] if path.exists() else []


def _record(folder: Path, incident: Incident) -> Incident:
    folder.mkdir(parents=True, exist_ok=True)
    others = [known for known in manifest(folder) if known.partition_key != incident.partition_key]
    temporary = folder / "incidents.json.new"
    temporary.write_text(json.dumps([asdict(known) for known in [*others, incident]], indent=2))
    temporary.replace(folder / "incidents.json")
    return incident


def _measurements(source: Warehouse) -> list[str]:
    columns = source.fetch(
        "select column_name as name from information_schema.columns "
        "where table_schema = 'public' and table_name = %s order by ordinal_position",
        (TABLE,),
    )
    return [column["name"] for column in columns if column["name"] not in KEY]


def _backup_name(partition_key: str) -> sql.Identifier:
    return sql.Identifier(f"{TABLE}_before_{partition_key.replace('-', '')}")


def break_feed(source: Warehouse, week: Interval, partition_key: str, folder: Path) -> Incident:
    """Empty every measurement the feed sent in a week, keeping the true records beside; twice is once."""
    known = next((entry for entry in manifest(folder) if entry.partition_key == partition_key), None)
    if known is not None:
        return known
    blanks = sql.SQL(", ").join(sql.SQL("{} = null").format(sql.Identifier(name)) for name in _measurements(source))

    keep = sql.SQL("create table if not exists {} as select * from {} where known_at >= %s and known_at < %s").format(
        _backup_name(partition_key), sql.Identifier(TABLE)
    )
    empty = sql.SQL("update {} set {} where known_at >= %s and known_at < %s").format(sql.Identifier(TABLE), blanks)

    def work() -> int:
        with source.transaction() as cursor:
            cursor.execute(keep, (week.start, week.end))
            cursor.execute(empty, (week.start, week.end))
            return cursor.rowcount

    rows = source.retrying(work)
    what = "the weather feed sends records with every measurement empty"
    return _record(folder, Incident(partition_key=partition_key, table=TABLE, what=what, rows=rows, state="broken"))


@contextmanager
def mending(source: Warehouse, partition_key: str, folder: Path) -> Iterator[None]:
    """Put the true records of the broken week back, as the feed's operator would; mended once the block has ended."""
    known = next(entry for entry in manifest(folder) if entry.partition_key == partition_key)
    assignments = sql.SQL(", ").join(
        sql.SQL("{0} = backup.{0}").format(sql.Identifier(name)) for name in _measurements(source)
    )
    statement = sql.SQL("update {} w set {} from {} backup where w.origin = backup.origin and {}").format(
        sql.Identifier(TABLE), assignments, _backup_name(partition_key), sql.SQL("w.observed_at = backup.observed_at")
    )

    def work() -> None:
        with source.transaction() as cursor:
            cursor.execute(statement)

    source.retrying(work)
    yield
    _record(folder, Incident(**{**asdict(known), "state": "mended"}))
