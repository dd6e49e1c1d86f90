"""The tables of a followed source: what tells their rows apart, and their rows as validation would have them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import cursor

from adapters.connect import Outside
from expectations import suites
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow, Identities, encode_rows
from tasks.ingest.check import added_columns, find_bad_rows, missing_columns, retyped_columns, to_canonical

if TYPE_CHECKING:
    from adapters.alerts import Tier  # Slack is heavy

_LAST = datetime(9000, 1, 1, tzinfo=UTC)  # what "becomes known" later is a mistake, and beyond what dates can say
_PRIMARY_KEY = """
select array_agg(a.attname::text order by array_position(i.indkey, a.attnum))
from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
where i.indrelid = to_regclass(quote_ident(%s)) and i.indisprimary"""


def find_identities(at: cursor, use_case: UseCase) -> dict[str, tuple[str, ...]]:
    """Of each table the columns that tell its rows apart: its primary key, if validation declares it whole.

    Else the key by which rows are taken, and when each became known: such a table can only be polled.

    Raises:
        ValueError: one is to be read by its log, which does not tell its rows apart; names each, and what to do.
    """
    found, faults, declared = dict[str, tuple[str, ...]](), list[str](), suites(use_case.name)
    for name, table in use_case.source.tables.items():
        at.execute(_PRIMARY_KEY, (name,))
        [key] = at.fetchone() or (None,)
        undeclared = sorted(set(key or ()) - declared[name].columns.keys())
        if key and not undeclared:
            found[name] = tuple(key)
            continue
        found[name] = tuple(dict.fromkeys([*table.key, table.available_at]))
        why = f"the primary key of {name} has columns that its suite does not declare: {undeclared}"
        faults.append(why if key else f"{name} has no primary key")
    if faults and use_case.source.follow == "cdc":
        raise ValueError(f"{use_case.name} cannot be followed by cdc: {'; '.join(faults)}. Poll it instead")
    return found


@dataclass
class SourceTables:
    """Turns rows as the source has them into rows that are kept; tells of tables that are not as declared.

    `stopped` are those of which something was missed, `mended` those of them that are as declared again.
    """

    use_case: UseCase
    outside: Outside
    identities: Identities
    stopped: set[str] = field(default_factory=set, init=False)
    mended: set[str] = field(default_factory=set, init=False)
    _told: dict[str, str] = field(default_factory=dict, init=False)  # table -> what the last alert said

    def keep_rows(self, name: str, raw: pa.Table) -> list[FollowedRow] | None:
        """Rows of a table, judged; None where the table is not as declared: then an alert says so.

        A row that became known at no time, or before the first partition, is left to `ingest`, which counts such rows.
        """
        suite = suites(self.use_case.name)[name]
        missing = [f"column {column} is missing" for column in missing_columns(raw.schema, suite)]
        problems = [*missing, *retyped_columns(raw.schema, suite)]
        if problems:
            self.stop(name, "; ".join(problems))
            return None
        if name in self.stopped:
            self.mended.add(name)
        else:
            self._tell(name, "warning", _describe_added(added_columns(raw.schema, suite)))
        rows = to_canonical(raw, suite)
        known = rows[self.use_case.source.tables[name].available_at]
        first, last = (pa.scalar(moment, known.type) for moment in (utc(self.use_case.grid.first), _LAST))
        inside = pc.and_(pc.greater_equal(known, first), pc.less(known, last))
        rows = rows.filter(pc.fill_null(inside, fill_value=False))
        return [row for interval, part in self._by_partition(name, rows) for row in self._judge(name, part, interval)]

    def stop(self, name: str, problem: str) -> None:
        """Say that a table cannot be followed, and that something of it is missed from now on."""
        self.stopped.add(name)
        self.mended.discard(name)
        self._tell(name, "critical", problem)

    def resume(self, name: str) -> None:
        """What was missed of a table was read."""
        self.stopped.discard(name)
        self.mended.discard(name)
        self._tell(name, "warning", "")

    def _by_partition(self, name: str, rows: pa.Table) -> list[tuple[Interval, pa.Table]]:
        column, grid = self.use_case.source.tables[name].available_at, self.use_case.grid
        intervals = [grid.containing(moment) for moment in rows[column].to_pylist()]
        order = sorted(range(rows.num_rows), key=intervals.__getitem__)
        return [
            (interval, rows.take(pa.array(list(places), pa.int64())))
            for interval, places in groupby(order, key=intervals.__getitem__)
        ]

    def _judge(self, name: str, rows: pa.Table, interval: Interval) -> list[FollowedRow]:
        bad = find_bad_rows(rows, suites(self.use_case.name)[name], self.use_case.source.tables[name], interval)
        kept = encode_rows(self.use_case, name, rows, self.identities[name])
        return [replace(row, reasons=bad.get(place)) for place, row in enumerate(kept)]

    def _tell(self, name: str, tier: "Tier", text: str) -> None:
        if self._told.get(name) == text:
            return
        self._told[name], fingerprint = text, f"{self.use_case.name}.stream.{name}"
        if not text:
            self.outside.alerts.resolve(fingerprint)
            return
        is_stopped = tier == "critical"
        title = f"{self.use_case.name}: {name} {'is no longer followed' if is_stopped else 'has undeclared columns'}"
        body = f"{text}. The other tables go on; mend it, or declare its columns anew" if is_stopped else text
        self.outside.alerts.raise_alert(tier, self.use_case.name, fingerprint, title, body)


def _describe_added(columns: Sequence[str]) -> str:
    return f"columns {', '.join(columns)} were added; they are not taken over" if columns else ""
