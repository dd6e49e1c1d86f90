"""What a source needs so that it can be followed: a publication, a slot, a role; made, looked into and taken away.

All of it runs on a plain connection to the source's database. Make the publication before the slot: PostgreSQL looks it
up as it was when a row was written, and older than 18 never gets past rows that were written before there was one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2 import errors, sql
from psycopg2.extensions import cursor, encrypt_password

from adapters.errors import SlotInUse

_TABLES = """
select t.name, c.relkind, c.relpersistence, c.relreplident, n.nspname,
       coalesce(i.indimmediate, false) as has_key, c.relname
from unnest(%s::text[], %s::text[]) as t (name, relation)
left join pg_class c on c.oid = to_regclass(t.relation)
left join pg_namespace n on n.oid = c.relnamespace
left join pg_index i on i.indrelid = c.oid and i.indisprimary
order by t.name
"""
_SLOT = """
select s.active, s.wal_status, s.safe_wal_size, s.confirmed_flush_lsn - '0/0' as confirmed,
       pg_current_wal_lsn() - s.restart_lsn as retained, pg_current_wal_lsn() - s.confirmed_flush_lsn as behind,
       (select oid from pg_publication where pubname = %(publication)s) as publication_oid,
       array(select array[schemaname::text, tablename::text] from pg_publication_tables
             where pubname = %(publication)s order by tablename, schemaname) as relations
from pg_replication_slots s where s.slot_name = %(slot)s
"""
_ROLE = """
select r.rolsuper, r.rolcreatedb, r.rolcreaterole, r.rolbypassrls, not r.rolreplication,
       has_database_privilege(current_database(), 'create')
from pg_roles r where r.rolname = current_user
"""
_ROLE_FAULTS = (
    *("is a superuser", "may create databases", "may create roles", "passes by row level security"),
    *("may not replicate", "may create schemas and publications in this database"),
)
_PRIVILEGES = """
select tablename, has_table_privilege(name, 'select'),
       has_table_privilege(name, 'insert') or has_table_privilege(name, 'update')
       or has_table_privilege(name, 'delete') or has_table_privilege(name, 'truncate')
from pg_publication_tables, format('%%I.%%I', schemaname, tablename) as name where pubname = %s order by 1
"""


TableName = str | tuple[str, ...]  # a table, or its schema and it


@dataclass(frozen=True, kw_only=True)
class SlotState:
    """How a slot stands, and the publication that it is read for. Sizes are None where the slot has lost its log."""

    is_active: bool  # a follower has it
    wal_status: str  # reserved | extended | unreserved | lost
    retained_bytes: int | None  # of log that the source must keep because of it
    behind_bytes: int | None  # of log that is not confirmed
    spare_bytes: int | None  # of log that may yet be written before it is lost; None: no limit is set, or it is lost
    confirmed_position: int | None
    publication_oid: int | None  # another than before: it was made anew, with a gap; None: it is gone
    relations: tuple[tuple[str, str], ...]  # published: schema and table

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of what is published."""
        return tuple(table for _, table in self.relations)


def quote_relation(name: TableName) -> str:
    """SQL: a table's name, of whatever characters."""
    parts = (name,) if isinstance(name, str) else name
    return ".".join('"{}"'.format(part.replace('"', '""')) for part in parts)


def create_publication(at: cursor, name: str, tables: Sequence[TableName]) -> int:
    """Publish all changes of these tables; returns the publication's oid. Partitions come under their table's name.

    A published table without a primary key would refuse its own application's updates and deletes: none is published.

    Raises:
        ValueError: naming each table that cannot be followed, and why; or there is a publication of this name.
    """
    shown = [table if isinstance(table, str) else ".".join(table) for table in tables]
    at.execute(_TABLES, (shown, [quote_relation(table) for table in tables]))
    found = at.fetchall()
    if faults := [f"{row[0]} {fault}" for row in found if (fault := _find_fault(*row[1:4], has_key=row[5]))]:
        raise ValueError(f"publication {name}: {'; '.join(faults)}")
    if not found:
        raise ValueError(f"publication {name}: expected at least one table")
    # Only: a table that inherits from one of them may have no key. Partitions belong to theirs all the same.
    names = sql.SQL(", ").join(sql.SQL("only {}").format(sql.Identifier(row[4], row[6])) for row in found)
    statement = sql.SQL("create publication {} for table {} with (publish_via_partition_root)")
    try:
        at.execute(statement.format(sql.Identifier(name), names))
    except errors.DuplicateObject as error:
        raise ValueError(f"there is a publication {name} already") from error
    at.execute("select oid from pg_publication where pubname = %s", (name,))
    return _read_one(at)


def _find_fault(kind: str | None, persistence: str, identity: str, *, has_key: bool) -> str | None:
    if kind is None:
        return "does not exist"
    if kind not in ("r", "p"):
        return "is no table"
    if persistence != "p":
        return "is temporary or unlogged: its changes are not in the log"
    if not has_key:
        return "has no primary key (or a deferrable one, which identifies no row)"
    if identity not in ("d", "f"):
        return "has a replica identity other than its primary key"
    return None


def create_slot(at: cursor, slot: str) -> int:
    """Make the slot; returns the position after whose commits it sends. From now on the source keeps its log for it.

    Waits for the transactions that are open now. To be called in a transaction that has written nothing.

    Raises:
        ValueError: there is one already; or the server has no room for another, or does not decode its log.
    """
    try:
        at.execute("select lsn - '0/0' from pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    except errors.DuplicateObject as error:
        raise ValueError(f"there is a replication slot {slot} already") from error
    except errors.ConfigurationLimitExceeded as error:
        raise ValueError("the source has no replication slot left: drop one, or raise max_replication_slots") from error
    except errors.ObjectNotInPrerequisiteState as error:
        raise ValueError(f"the source cannot be followed: {str(error).strip()} (set it, and restart)") from error
    return int(_read_one(at))


def drop_slot(at: cursor, slot: str) -> bool:
    """Remove the slot, so that the source keeps nothing for it; false if there is none.

    Raises:
        SlotInUse: a follower has it; end that first.
    """
    try:
        at.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", (slot,))
    except errors.ObjectInUse as error:
        raise SlotInUse(f"{str(error).strip()}: end its follower before the slot is dropped") from error
    except errors.UndefinedObject:  # dropped by someone else since
        return False
    return bool(at.rowcount)


def inspect_slot(at: cursor, slot: str, publication: str) -> SlotState | None:
    """How the slot stands, and what the publication publishes; None if there is no such slot."""
    at.execute(_SLOT, {"slot": slot, "publication": publication})
    row = at.fetchone()
    if row is None:
        return None
    active, wal_status, spare, confirmed, retained, behind, oid, relations = row
    return SlotState(
        is_active=active,
        wal_status=wal_status,
        retained_bytes=_whole(retained),
        behind_bytes=_whole(behind),
        spare_bytes=spare,
        confirmed_position=_whole(confirmed),
        publication_oid=oid,
        relations=tuple((schema, table) for schema, table in relations),
    )


def create_follower_role(at: cursor, name: str, password: str, tables: Sequence[TableName]) -> None:
    """Make a role that may log in, replicate, and read these tables; whoever makes it must be able to do so.

    A role that may replicate may also copy the whole cluster where pg_hba.conf has a line for `replication`, which
    following does not need.
    """
    # As the server would keep it: a statement that fails is logged.
    kept = encrypt_password(password, name, scope=at.connection, algorithm="scram-sha-256")
    statement = sql.SQL("create role {} login replication password {}")
    at.execute(statement.format(sql.Identifier(name), sql.Literal(kept)))
    grant_reading(at, name, tables)


def grant_reading(at: cursor, name: str, tables: Sequence[TableName]) -> None:
    """Let a role connect to this database, and read these tables of its schemas."""
    at.execute("select current_database(), current_schema()")
    database, schema = at.fetchone() or ("", "")
    schemas = {schema, *(table[0] for table in tables if not isinstance(table, str) and len(table) > 1)}
    parts = {
        "role": sql.Identifier(name),
        "database": sql.Identifier(database),
        "schemas": sql.SQL(", ").join(map(sql.Identifier, sorted(schemas))),
        "tables": sql.SQL(", ").join(sql.SQL(quote_relation(table)) for table in tables),
    }
    for statement in (
        "grant connect on database {database} to {role}",
        "grant usage on schema {schemas} to {role}",
        "grant select on {tables} to {role}",
    ):
        at.execute(sql.SQL(statement).format(**parts))


def check_role(at: cursor, publication: str) -> list[str]:
    """What the role of this very connection lacks for following a publication, or may do to its tables beyond that."""
    at.execute(_ROLE)
    faults = [fault for is_so, fault in zip(at.fetchone() or (), _ROLE_FAULTS, strict=True) if is_so]
    at.execute(_PRIVILEGES, (publication,))
    tables = at.fetchall()
    return [
        *faults,
        *(() if tables else (f"finds no table in a publication {publication}",)),
        *(f"may not read {table}" for table, may_read, _ in tables if not may_read),
        *(f"may write {table}" for table, _, may_write in tables if may_write),
    ]


def _whole(size: object) -> int | None:
    """A difference of positions is a numeric."""
    return None if size is None else int(str(size))


def _read_one(at: cursor) -> int:
    [value] = at.fetchone() or (0,)
    return int(value)
