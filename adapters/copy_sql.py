"""The SQL of writing rows by COPY: into a table, or beside it and then as an upsert. Every name is an identifier."""

from collections.abc import Sequence

from psycopg2 import sql


def upsert_statements(table: str, columns: Sequence[str], key: Sequence[str]) -> dict[str, sql.Composed]:
    """To `stage` rows beside a table, and to `write` those that differ.

    Raises:
        ValueError: the key is not among the columns.
    """
    if not key or not set(key) <= set(columns):
        raise ValueError(f"{table}: the key {list(key)} must be among the columns {list(columns)}")
    values = [name for name in columns if name not in key]
    names = {
        "table": sql.Identifier(table),
        "columns": list_columns(columns),
        "key": list_columns(key),
        "same_key": sql.SQL(" and ").join(sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in key),
        "same": _same(values, "s"),
        "differ": sql.SQL("not ({})").format(_same(values, "excluded")),
        "set": sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in values),
    }
    on_conflict = "do update set {set} where {differ}" if values else "do nothing"
    texts = {
        "stage": "create temporary table staged on commit drop as select {columns} from {table} with no data",
        # Unchanged rows are left out first: `do update ... where` would still lock, and so write, each of them.
        # Ordered by key, so that two upserts of the same rows lock them in one order and do not deadlock.
        "write": "with written as (insert into {table} as t ({columns}) select {columns} from staged s"  # noqa: S608
        " where not exists (select from {table} t where {same_key} and {same}) order by {key}"
        f" on conflict ({{key}}) {on_conflict} returning t.xmax = 0 as inserted)"  # every name is an sql.Identifier
        " select count(*) filter (where inserted), count(*) filter (where not inserted) from written",
    }
    return {name: sql.SQL(text).format(**names) for name, text in texts.items()}


def copy_statement(table: str, columns: Sequence[str]) -> sql.Composed:
    """To take rows in, in the order of these columns."""
    return sql.SQL("copy {} ({}) from stdin (format csv)").format(sql.Identifier(table), list_columns(columns))


def _same(names: Sequence[str], alias: str) -> sql.Composable:
    if not names:
        return sql.SQL("true")
    return sql.SQL("row({}) is not distinct from row({})").format(list_columns(names, "t"), list_columns(names, alias))


def list_columns(names: Sequence[str], alias: str | None = None) -> sql.Composed:
    """Names with commas between them; of one table, where it is named."""
    parts = (alias,) if alias else ()
    return sql.SQL(", ").join(sql.Identifier(*parts, name) for name in names)
