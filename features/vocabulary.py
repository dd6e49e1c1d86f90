"""The words a feature definition is written in: tables, lookups, windows, and what precedes an event.

Each is data, compiled twice: to SQL over a history (`features.engine`), and to lookups in sorted series of it
(`features.plan`). Neither defines a feature by itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, cast, get_args

from features.spans import parse_span, read_window_span, short_span

# Of sources, in SQL's words. A date is read as the midnight it begins with, and a decimal as the nearest double: what
# there is online of both.
ColumnKind = Literal["varchar", "bigint", "double", "timestamp", "boolean", "date", "decimal"]
READ_AS: Mapping[ColumnKind, str] = {"date": "timestamp", "decimal": "double"}  # the others as themselves
# What DuckDB takes for a part of a statement wherever it stands: no table and no column of a definition is named so.
RESERVED_WORDS = frozenset(
    """
    all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create
    default deferrable desc describe distinct do else end except false fetch for foreign from group having in
    initially intersect into lambda lateral leading limit not null offset on only or order pivot pivot_longer
    pivot_wider placing primary qualify references returning select show some summarize symmetric table then to
    trailing true union unique unpivot using variadic when where window with
    """.split()  # noqa: SIM905  # 75 of them
)


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """A clean table as read: column -> SQL type. `timeless` tables change slowly and are read from their beginning.

    `grain` are the columns that tell apart what never meets in a step: what steps make of the rows of one grain does
    not change with rows of another, of this source or of others with the same grain. So a changed row is followed by
    computing its grain again; where there is none, all.
    """

    columns: Mapping[str, ColumnKind]
    timeless: bool = False
    grain: tuple[str, ...] = ()


def declare_source(*, timeless: bool = False, grain: str = "", **names: str) -> SourceTable:
    """A source declared by type: `declare_source(bigint="flight", varchar="carrier origin", grain="flight")`.

    The order of the columns is in the definition's digest, and breaks ties between versions of a record.
    """
    if unknown := names.keys() - get_args(ColumnKind):
        raise ValueError(f"expected kinds of columns among {get_args(ColumnKind)}, got {sorted(unknown)}")
    kinds = cast("dict[ColumnKind, str]", names)
    columns = {name: kind for kind in kinds for name in kinds[kind].split()}
    refuse_reserved(columns)
    if unknown := set(grain.split()) - columns.keys():
        raise ValueError(f"a grain is of columns, got {sorted(unknown)}")
    return SourceTable(columns=columns, timeless=timeless, grain=tuple(grain.split()))


def refuse_reserved(names: Iterable[str]) -> None:
    """Raises ValueError where a name is a word of SQL: a table or column has another here than in its source."""
    if reserved := sorted(RESERVED_WORDS & {*names}):
        raise ValueError(
            f"{', '.join(reserved)}: expected a name that is no word of SQL; params.yaml gives a table another by"
            " `relation`, and expectations/ a column by `source`"
        )


def refuse_unread(sources: Iterable[str], windows: Iterable["Window"], look_back: timedelta) -> None:
    """Raises ValueError where what a definition names cannot be read: a word of SQL, or what is older than it reads."""
    refuse_reserved(sources)
    for window in windows:
        longest = max(window.spans, key=parse_span)
        if parse_span(longest) > look_back:
            raise ValueError(
                f"window {window.prefix}: a window of {longest}, and the definition looks back {look_back.days} days:"
                f" what is older is not read; expected a look_back of at least {parse_span(longest).days} days, and"
                " what its steps look back on besides"
            )


@dataclass(frozen=True, kw_only=True)
class AsOf:
    """The version of a record that was known at the prediction time, for the expressions that make a point.

    `stream` is made by `versions_sql`; `on` says which of its columns equals which column of `asked`. `absent` is the
    reason that an online answer gives where there is no record of the key (a key that is null has no reason).
    """

    stream: str
    on: Mapping[str, str]
    absent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one stream's events of a key come to over spans of time (shortest first) that end at each point.

    A span is a whole number and a unit from second to year: "90 minutes", "1 day", "6 months". Its beginning and the
    point are inside. Months and years are the calendar's in UTC, as SQL has them: 6 months before August 31st is the
    last of February. The definition's `look_back` is at least the longest of them.

    - `sums` are integer columns of the stream: integers add up to the same total in any order and on any engine; null
      adds nothing. The column is `<prefix>_<sum>_<span>`, of 7 days `7d`, of 6 months `6mo`.
    - `variances` are integer columns, too: the sample variance of the values that are there, null of fewer than two, as
      `<prefix>_<column>_var_<span>`. Its `sqrt` is the standard deviation.
    - `distinct` are columns of any kind but double: how many different values there are, null not counted, as
      `<prefix>_<column>_distinct_<span>`.
    - `latest` are records over the first span, `<prefix>_<latest>`: of all events in it the one whose fields are the
      greatest in their order, so the last one where the first field is `known_at`; `earliest` likewise. An expression
      reads a field of it as `<prefix>_<latest>.<field>`.

    `absent` is the reason that an online answer gives where the longest span holds nothing.
    """

    prefix: str
    stream: str
    key: tuple[str, ...]
    spans: tuple[str, ...]
    sums: tuple[str, ...] = ()
    variances: tuple[str, ...] = ()
    distinct: tuple[str, ...] = ()
    latest: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    earliest: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: str | None = None

    def __post_init__(self) -> None:
        refuse_reserved([*self.latest, *self.earliest])
        for span in self.spans:
            read_window_span(span)
        if not self.spans or len({*map(short_span, self.spans)}) < len(self.spans):
            raise ValueError(f"window {self.prefix}: expected spans, each once, got {', '.join(self.spans) or 'none'}")


@dataclass(frozen=True, kw_only=True)
class Preceding:
    """The record that comes last before the event, within a span of at most a day, as known at the prediction time.

    `stream` holds versions (known_at, known_until); the first of `fields` is the moment that must precede the event,
    and the record whose fields are greatest in order is taken, as the column `prefix`.
    """

    prefix: str
    stream: str
    key: tuple[str, ...]
    span: str
    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        if parse_span(self.span) > timedelta(days=1):
            raise ValueError(f"{self.prefix}: expected a span of at most a day, got {self.span!r}")


def utc_sql(moment: str) -> str:
    """SQL: a naive UTC timestamp from one with a time zone, or the other way round."""
    return f"timezone('UTC', {moment})"


def naive_utc_sql(moment: str) -> str:
    """SQL: a naive UTC timestamp from one with a time zone, as DuckDB makes it without looking into a calendar."""
    return f"make_timestamp(epoch_us({moment}))"


def local_time_sql(zone: str, moment: str) -> str:
    """SQL: the wall-clock time of a naive UTC moment in a named zone; null where the zone is null."""
    return f"timezone({zone}, {utc_sql(moment)})"


def versions_sql(table: str, key: str) -> str:
    """SQL: every version of a record with the moment the next one became known (null: still current).

    Of those that became known at one moment the greatest row counts, in whatever order the files have them.
    """
    order = f"over (partition by {key} order by known_at, {table})"
    return unique_or_repeated_sql(
        table,
        key,
        alone="cast(null as timestamp) as known_until, true as is_first",
        among=f"lead(known_at) {order} as known_until, row_number() {order} = 1 as is_first",
    )


def snapshots_sql(table: str, key: str, *, every: Literal["day", "week", "month"], times: int) -> str:
    """SQL: points without an event of their own: each key at the beginning of each day, week (Monday) or month, in UTC.

    After a row of the table became known its key has so many of these moments, but for those whose prediction time is
    before that. The columns are the key's, `snapshot_at` and `prediction_time`, for the step `asked`, which keeps
    those of its interval. The definition's `look_back` is at least as long as these moments and the lead.
    """
    columns = ", ".join(name.strip() for name in key.split(","))
    there = "".join(f" and {name.strip()} is not null" for name in key.split(","))
    moments = " union all ".join(
        f"select {columns}, known_at, date_trunc('{every}', known_at) + interval {number} {every} as snapshot_at"
        f" from {table}"
        for number in range(1, times + 1)
    )
    return (
        f"select distinct {columns}, snapshot_at, snapshot_at - {{lead}} as prediction_time from ({moments}) moments"
        f" where known_at <= snapshot_at - {{lead}}{there}"
    )


def unique_or_repeated_sql(table: str, key: str, *, alone: str, among: str) -> str:
    """SQL: a table with columns added: `alone` to the only row of its key, `among` to a row that has others beside it.

    Most keys have one row; to find those that have more is much less work than a window over all rows. Hashes are
    counted first, which takes half the time and memory that keys do.
    """
    maybe = f"select h from (select hash({key}) as h from {table}) hashes group by h having count(*) > 1"
    same = " and ".join(f"several.{column} = {table}.{column}" for column in key.split(", "))
    several = f"exists (select 1 from several where {same})"
    return (
        f"with several as (select {key} from {table} where hash({key}) in ({maybe}) group by {key} having count(*) > 1)"
        f" select *, {alone} from {table} where not {several}"
        f" union all select *, {among} from {table} where {several}"
    )


def known_at_sql(version: str, moment: str) -> str:
    """SQL condition: this version was the latest known one at the moment."""
    return f"{version}.known_at <= {moment} and ({version}.known_until is null or {moment} < {version}.known_until)"
