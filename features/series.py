"""What the online store holds of a feature definition: for each key, the events of its streams in the order of time.

Derived from the same windows, lookups and joins that the batch compiles to SQL, and extracted by the same steps.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa

from features.engine import ANY_DAY, FeatureSet, Span, mentioned_names, moment_sql, points_sql, run_steps
from features.spans import parse_span
from features.vocabulary import AsOf, Preceding, Window
from features.windows import distinct_name, record_sql, sum_name, variance_name

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # made once: a move writes the keys of all series
_KINDS = {
    "BIGINT": "bigint", "DOUBLE": "double", "VARCHAR": "varchar", "TIMESTAMP": "timestamp", "BOOLEAN": "boolean",
}  # fmt: skip
_COUNTED = ("bigint", "varchar", "timestamp", "boolean")  # not of a double: NaN and -0.0 are more than they look like


@dataclass(frozen=True, kw_only=True)
class Series:
    """One stream's events by one key. `columns` are what an event holds beside its moment: name -> kind.

    `orders` are the fields that records are compared by, each kept as a column `rank<number>`; `beside` is what all
    series of the stream hold, so that its events are in one order for all of them.
    """

    name: str
    stream: str
    key: tuple[str, ...]
    on: tuple[str, ...]
    moment: str
    reach: timedelta | None  # how long an event counts; None: for ever
    sums: tuple[str, ...]
    columns: Mapping[str, str]
    orders: tuple[tuple[str, ...], ...]
    lookup: tuple[str, AsOf] | None = None
    windows: tuple[Window, ...] = ()
    joined: Preceding | None = None
    beside: tuple[str, ...] = ()
    variances: tuple[str, ...] = ()  # those of `columns` of which variances are asked

    @property
    def is_parted(self) -> bool:
        """Whether its records compare by their moment first: ranks tell which is greater only within a part."""
        return all(fields[0] == self.moment for fields in self.orders)

    @property
    def order(self) -> tuple[str, ...]:
        """The columns by which the events of one key are in order: what is stored of two that tie is the same."""
        first = self.orders[0] if self.orders and self.is_parted else ()
        return tuple(dict.fromkeys([self.moment, *first, *self.beside, *self.sums, *self.columns]))

    @property
    def stored(self) -> dict[str, str]:
        """What is written of an event, in this order, and read by it: name -> kind."""
        return {
            "moment": "timestamp",
            **dict.fromkeys(self.sums, "bigint"),
            **self.columns,
            **{f"rank{number}": "bigint" for number in range(len(self.orders))},
        }

    def key_text(self, values: Sequence[str | int]) -> str:
        """How a key is written in the store; moments are microseconds since 1970."""
        return f"{self.name}{_ENCODER.encode(list(values))}"


def point_kinds(definition: FeatureSet) -> dict[str, str]:
    """The type of every column that the streams, `asked` and the points have: `<table>.<column>` -> kind."""
    readers: list[AsOf | Window | Preceding] = [*definition.lookups.values(), *definition.windows, *definition.joined]
    with run_steps(definition, {}, ANY_DAY, timedelta(0)) as connection:
        connection.execute(f"create temp view points as {points_sql(definition, definition.point_sql)}")
        return {
            f"{table}.{name}": _KINDS[kind]
            for table in ("asked", "points", *sorted({reader.stream for reader in readers}))
            for name, kind, *_ in connection.execute(f"describe {table}").fetchall()
            if kind in _KINDS
        }


def list_series(definition: FeatureSet, kinds: Mapping[str, str]) -> tuple[Series, ...]:
    """Every series of a definition; windows over one stream by one key share theirs."""
    shared: dict[tuple[str, tuple[str, ...]], list[Window]] = {}
    for window in definition.windows:
        shared.setdefault((window.stream, window.key), []).append(window)
    series = (
        *(_of_lookup(definition, name, kinds) for name in definition.lookups),
        *(_of_windows(definition, together, kinds) for together in shared.values()),
        *(_of_joined(definition, joined, kinds) for joined in definition.joined),
    )
    held = {each.stream: _list_held([other for other in series if other.stream == each.stream]) for each in series}
    return tuple(replace(each, beside=held[each.stream]) for each in series)


def _list_held(series: Sequence[Series]) -> tuple[str, ...]:
    """All that some series of one stream hold of its events, what records compare by first."""
    compared = [fields for each in series for fields in each.orders[:1]]
    held = [[*each.sums, *each.columns] for each in series]
    return tuple(dict.fromkeys(name for names in [*compared, *held] for name in names))


def record_fields(definition: FeatureSet, record: str) -> tuple[str, ...]:
    """The fields of a record that some feature reads: of `leg`, those written as `leg.origin`."""
    texts = " ".join([*definition.numeric_sql.values(), *definition.categorical_sql.values()])
    return tuple(dict.fromkeys(re.findall(rf"(?<![\w.]){re.escape(record)}\.(\w+)", texts)))


def to_microseconds(moment: datetime) -> int:
    """Since 1970, as moments are kept; one without a zone is UTC."""
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


def extract_series(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> Iterator[tuple[Series, pa.Table]]:
    """Each series with its events: key columns, `moment`, the columns and ranks, ordered by key and moment.

    `tables` reach back as for `build`. Events that no point of the interval, or after it, can see are left out.
    """
    series = list_series(definition, point_kinds(definition))
    with run_steps(definition, tables, interval, lead) as connection:
        for item in series:
            yield item, connection.sql(extract_sql(item, item.stream, interval.start)).to_arrow_table()


def extract_sql(item: Series, stream: str, since: datetime) -> str:
    """SQL: the events of a series, as `extract_series` has them, of a relation that holds its stream."""
    names = [*item.key, *dict.fromkeys([*item.sums, *item.columns])]
    partition = f"partition by {', '.join(item.key)}" if item.key else ""
    ranks = [
        f"rank() over ({partition} order by {record_sql(fields)}) as rank{number}"
        for number, fields in enumerate(item.orders)
    ]
    conditions = [f"{name} is not null" for name in item.key]
    if item.lookup:  # a version that another took the place of at the same moment never held
        conditions.append("known_until is distinct from known_at")
    if item.reach is not None:
        conditions.append(f"{item.moment} >= {moment_sql(since - item.reach)}")
    where = f"where {' and '.join(conditions)}" if conditions else ""
    columns = ", ".join([f"{item.moment} as moment", *dict.fromkeys(names), *ranks])
    return f"select {columns} from {stream} {where} order by {', '.join([*item.key, *item.order])}"


def _of_lookup(definition: FeatureSet, name: str, kinds: Mapping[str, str]) -> Series:
    lookup, texts = definition.lookups[name], " ".join(definition.point_sql.values())
    fields = [
        full.partition(".")[2]
        for full in kinds
        if full.startswith(f"{lookup.stream}.") and f"{name}.{full.partition('.')[2]}" in texts
    ]
    return Series(
        name=_name(lookup.stream, tuple(lookup.on)),
        stream=lookup.stream,
        key=tuple(lookup.on),
        on=tuple(lookup.on.values()),
        moment="known_at",
        reach=None,
        sums=(),
        columns={field: kinds[f"{lookup.stream}.{field}"] for field in fields},
        orders=(),
        lookup=(name, lookup),
    )


def _of_windows(definition: FeatureSet, windows: Sequence[Window], kinds: Mapping[str, str]) -> Series:
    names, first = mentioned_names(definition), windows[0]
    sums = dict.fromkeys(s for w in windows for s in w.sums if any(sum_name(w, s, span_) in names for span_ in w.spans))
    records = {
        f"{w.prefix}_{name}": fields
        for w in windows
        for name, fields in (*w.latest.items(), *w.earliest.items())
        if f"{w.prefix}_{name}" in names
    }
    kinds_of = partial(_kinds_of, first.stream, kinds)
    variances = [c for w in windows for c in w.variances if any(variance_name(w, c, s) in names for s in w.spans)]
    distinct = [c for w in windows for c in w.distinct if any(distinct_name(w, c, s) in names for s in w.spans)]
    return Series(
        name=_name(first.stream, first.key),
        stream=first.stream,
        key=first.key,
        on=first.key,
        moment="known_at",
        reach=max(parse_span(text) for w in windows for text in w.spans),
        sums=tuple(sums),
        columns={f: kinds[f"{first.stream}.{f}"] for record in records for f in record_fields(definition, record)}
        | kinds_of("variance", variances, ("bigint",))
        | kinds_of("distinct count", distinct, _COUNTED),
        orders=tuple(dict.fromkeys(records.values())),
        windows=tuple(windows),
        variances=tuple(dict.fromkeys(variances)),
    )


def _kinds_of(
    stream: str, kinds: Mapping[str, str], what: str, columns: Sequence[str], taken: Sequence[str]
) -> dict[str, str]:
    """The kinds of columns of a stream, all of which must be among some."""
    found = {name: kinds.get(f"{stream}.{name}", "another") for name in columns}
    for name, kind in found.items():
        if kind not in taken:
            raise ValueError(f"a {what} of {stream}.{name}, which is of kind {kind}: cast it to {' or '.join(taken)}")
    return found


def _of_joined(definition: FeatureSet, joined: Preceding, kinds: Mapping[str, str]) -> Series:
    return Series(
        name=_name(joined.stream, joined.key),
        stream=joined.stream,
        key=joined.key,
        on=joined.key,
        moment=joined.fields[0],
        reach=parse_span(joined.span) + timedelta(days=1),
        sums=(),
        columns={
            field: kinds[f"{joined.stream}.{field}"]
            for field in (*record_fields(definition, joined.prefix), "known_at", "known_until")
        },
        orders=(joined.fields,),
        joined=joined,
    )


def _name(stream: str, key: tuple[str, ...]) -> str:
    return f"{stream}({','.join(key)})"
