"""The tables of a followed source: what tells their rows apart, and their rows as validation would have them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import cursor

from adapters.column_types import ReadColumn, look_up_types
from adapters.connect import Outside
from adapters.errors import Unreadable
from adapters.pgoutput import Relation
from adapters.replication_setup import quote_relation
from expectations import suites
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow, Identities, encode_rows
from tasks.ingest.check import find_bad_rows, missing_columns, retyped_columns
from tasks.ingest.clean_columns import Faults, list_undeclared, name_columns, read_canonical
from tasks.ingest.source_rows import choose_columns

if TYPE_CHECKING:
    from adapters.alerts import Tier  # Slack is heavy

_LAST = datetime(9000, 1, 1, tzinfo=UTC)  # what "becomes known" later is a mistake, and beyond what dates can say
_PRIMARY_KEY = """
select array_agg(a.attname::text order by array_position(i.indkey, a.attnum))
from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
where i.indrelid = to_regclass(%s) and i.indisprimary"""


def find_identities(at: cursor, use_case: UseCase) -> dict[str, tuple[str, ...]]:
    """Of each table the columns that tell its rows apart: its primary key, if validation declares it whole.

    Else the key by which rows are taken, and when each became known: such a table can only be polled.

    Raises:
        ValueError: one is to be read by its log, which does not tell its rows apart; names each, and what to do.
    """
    found, faults, declared = dict[str, tuple[str, ...]](), list[str](), suites(use_case.name)
    for name, table in use_case.source.tables.items():
        at.execute(_PRIMARY_KEY, (quote_relation(use_case.source.find_relation(name)),))
        [key] = at.fetchone() or (None,)
        by_source = declared[name].by_source
        undeclared = sorted(set(key or ()) - by_source.keys())
        if key and not undeclared:
            found[name] = tuple(by_source[column] for column in key)
            continue
        found[name] = tuple(dict.fromkeys([*table.key, table.available_at]))
        why = f"the primary key of {name} has columns that its suite does not declare: {undeclared}"
        faults.append(why if key else f"{name} has no primary key (a view has none)")
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
    _chosen: dict[str, tuple[Relation, tuple[ReadColumn, ...]]] = field(default_factory=dict, init=False)

    def choose_columns(self, name: str, relation: Relation) -> tuple[ReadColumn, ...] | None:
        """How a table's columns are read from its log; None where one of them cannot be: then an alert says so."""
        if name not in self._chosen or self._chosen[name][0] is not relation:
            described = relation.describe()
            with self.outside.source.transaction() as at:
                named = look_up_types(at, [column.oid for column in described])
            try:
                chosen = choose_columns(
                    [column._replace(named=named.get(column.oid)) for column in described],
                    suites(self.use_case.name)[name],
                )
            except Unreadable as error:
                self.stop(name, str(error))
                return None
            self._chosen[name] = relation, chosen.columns
        return self._chosen[name][1]

    def keep_rows(self, name: str, raw: pa.Table) -> list[FollowedRow] | None:
        """Rows of a table, judged; None where the table is not as declared: then an alert says so.

        A row that became known at no time, or before the first partition, is left to `ingest`, which counts such rows.
        """
        suite = suites(self.use_case.name)[name]
        named = name_columns(raw, suite)
        missing = [f"column {column} is missing" for column in missing_columns(named.schema, suite)]
        problems = [*missing, *retyped_columns(named.schema, suite)]
        if problems:
            self.stop(name, "; ".join(problems))
            return None
        if name in self.stopped:
            self.mended.add(name)
        else:
            self._tell(name, "warning", _describe_added(list_undeclared(raw.schema, suite)))
        rows, faults = read_canonical(named, suite)
        known = rows[self.use_case.source.tables[name].available_at]
        first, last = (pa.scalar(moment, known.type) for moment in (utc(self.use_case.grid.first), _LAST))
        inside = pc.and_(pc.greater_equal(known, first), pc.less(known, last))
        places = [place for place, is_inside in enumerate(inside.to_pylist()) if is_inside]
        return [
            row
            for interval, those in self._by_partition(name, rows, places)
            for row in self._judge(name, rows.take(pa.array(those, pa.int64())), interval, _choose(faults, those))
        ]

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

    def _by_partition(self, name: str, rows: pa.Table, places: Sequence[int]) -> list[tuple[Interval, list[int]]]:
        column, grid = self.use_case.source.tables[name].available_at, self.use_case.grid
        known = rows[column].take(pa.array(places, pa.int64())).to_pylist()
        intervals = {place: grid.containing(moment) for place, moment in zip(places, known, strict=True)}
        order = sorted(places, key=intervals.__getitem__)
        return [(interval, list(those)) for interval, those in groupby(order, key=intervals.__getitem__)]

    def _judge(self, name: str, rows: pa.Table, interval: Interval, faults: Faults) -> list[FollowedRow]:
        limits = self.use_case.source.tables[name]
        bad = find_bad_rows(rows, suites(self.use_case.name)[name], limits, interval, faults)
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


def _choose(faults: Faults, places: Sequence[int]) -> Faults:
    """Those of some rows, by their number among these."""
    return {number: faults[place] for number, place in enumerate(places) if place in faults} if faults else faults


def _describe_added(columns: Sequence[str]) -> str:
    return f"columns {', '.join(columns)} were added; they are not taken over" if columns else ""
