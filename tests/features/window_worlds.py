"""Drawn definitions of windows, lookups and points, and a drawn world of orders; nothing here knows what they mean."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pyarrow as pa

from features import vocabulary
from features.engine import FeatureSet
from features.request import RequestField
from features.vocabulary import AsOf, Preceding, Window, declare_source, known_at_sql, versions_sql
from features.windows import distinct_name, sum_name, variance_name

Row = dict[str, Any]
LEAD, DAY = timedelta(hours=2), timedelta(days=1)
START, END = datetime(2024, 2, 26, tzinfo=UTC), datetime(2024, 4, 8, tzinfo=UTC)  # over a leap day, and a shorter month
FIRST = START - timedelta(days=700)
UNITS = {"second": 90_000, "minute": 5_000, "hour": 400, "day": 60, "week": 20, "month": 14, "year": 2}
SUMMED, VARIED = ("cents", "seen"), ("cents", "wide")
COUNTED = ("kind", "shop", "is_gift", "seen_at")
CONSTRUCTS = (
    "sum", "variance", "standard deviation", "distinct count", "latest", "earliest", "absent", "AsOf", "Preceding",
    "points of events", *(f"snapshots every {unit}" for unit in ("day", "week", "month")),
    *(f"window by {number} columns" for number in range(3)), *(f"span of {unit}s" for unit in UNITS),
)  # fmt: skip
RECORDS = (("known_at", "cents", "kind"), ("cents", "known_at"), ("known_at", "is_gift", "seen_at"), ("kind", "number"))
KEYS: tuple[tuple[str, ...], ...] = ((), ("customer",), ("shop",), ("customer", "shop"))
SCHEMA = pa.schema(
    {
        "customer": pa.string(), "kind": pa.string(), "shop": pa.int64(), "cents": pa.int64(), "wide": pa.int64(),
        "number": pa.int64(), "is_gift": pa.bool_(), "event_at": pa.timestamp("us", "UTC"),
        "seen_at": pa.timestamp("us", "UTC"), "known_at": pa.timestamp("us", "UTC"),
    }
)  # fmt: skip
SOURCE = declare_source(
    varchar="customer kind", bigint="shop cents wide number", boolean="is_gift",
    timestamp="event_at seen_at known_at", grain="customer",
)  # fmt: skip
_FIELDS = {"customer": "varchar", "shop": "bigint", "number": "bigint", "event_at": "timestamp"}
_ASKED = f"""
    select number, customer, shop, event_at, prediction_time
    from (select *, event_at - {{lead}} as prediction_time from entries) p
    where prediction_time >= {{start}} and prediction_time < {{end}} and {known_at_sql("p", "prediction_time")}
"""


@dataclass(frozen=True)
class Drawn:
    """A definition, the rows of its source, and how many times it has each construct of the language."""

    definition: FeatureSet
    rows: list[Row]
    constructs: Counter[str]
    snapshots: tuple[str, int] | None  # the unit and how many; None: points are events
    is_followed: bool  # whether the store is one that follows its source, so that series lie in two parts


def draw(seed: int, windows: int = 5) -> Drawn:
    """The same for the same seed."""
    random = Random(seed)  # noqa: S311  # examples
    seen: Counter[str] = Counter()
    snapshots = (random.choice(["day", "week", "month"]), random.randint(1, 3)) if random.random() < 0.4 else None
    seen["points of events" if snapshots is None else f"snapshots every {snapshots[0]}"] += 1
    drawn = [_draw_window(random, f"w{number}", seen) for number in range(windows)]
    numeric = {name: name for window in drawn for name in measure_names(window) if random.random() < 0.8}
    for window in drawn:
        for name, fields in {**window.latest, **window.earliest}.items():
            record = f"{window.prefix}_{name}"
            numeric |= {f"{record}_{each}": _number(f"{record}.{each}", each) for each in fields}
    joined: tuple[Preceding, ...] = ()
    if random.random() < 0.5:
        span = random.choice(["24 hours", "1 day", "90 minutes", "7200 seconds"])
        fields = ("event_at", "cents")
        joined = (Preceding(prefix="leg", stream="entries", key=("customer",), span=span, fields=fields),)
        numeric |= {"leg_cents": "leg.cents", "leg_event_at": _number("leg.event_at", "event_at")}
        seen["Preceding"] += 1
    seen["AsOf"] += 1
    numeric |= {"known_cents": "known_cents"}
    for name in (n for n in [*numeric] if "_var_" in n and random.random() < 0.5):
        numeric[f"{name}_sd"] = f"sqrt({name})"
        seen["standard deviation"] += 1
    definition = FeatureSet(
        name="drawn",
        sources={"orders": SOURCE},
        look_back=timedelta(days=800),
        request=tuple(_request(name, kind) for name, kind in _FIELDS.items()),  # type: ignore[arg-type]
        steps={
            "entries": versions_sql("orders", "number"),
            "customers": versions_sql("orders", "customer"),
            "events": "select *, cast(1 as bigint) as seen from orders where known_at < {end}",
            "asked": _ASKED if snapshots is None else _snapshots(*snapshots),
            "labels": """select cast(number as varchar) as entity_key, event_at as event_time, 1 as label,
                known_at as label_time from orders where known_at >= {start} and known_at < {end}""",
        },
        lookups={"customers": AsOf(stream="customers", on={"customer": "customer"}, absent="no {customer}")},
        point_sql={
            "entity_key": "cast(asked.number as varchar)" if snapshots is None else "asked.customer",
            "event_time": "asked.event_at",
            "prediction_time": "asked.prediction_time",
            "customer": "asked.customer",
            "shop": "asked.shop" if snapshots is None else "customers.shop",
            "known_cents": "customers.cents",
        },
        windows=tuple(drawn),
        joined=joined,
        numeric_sql=numeric,
        categorical_sql={},
    )
    rows = draw_rows(random, random.choice([0, 5, 60, 60, 120]))
    return Drawn(definition, rows, seen, snapshots, random.random() < 0.4)


def _snapshots(every: Any, times: int) -> str:
    # The columns of a request that an event would have are there, and say nothing.
    made = vocabulary.snapshots_sql("orders", "customer", every=every, times=times)
    return f"""select cast(null as bigint) as number, customer, cast(null as bigint) as shop, snapshot_at as event_at,
        prediction_time from ({made}) where prediction_time >= {{start}} and prediction_time < {{end}}"""


def _request(name: str, kind: Any) -> RequestField:
    return RequestField(name=name, kind=kind, meaning="m", example=1, required=False)


def _number(column: str, name: str) -> str:
    """A column of any kind as a number that tells its values apart."""
    if name in ("known_at", "seen_at", "event_at"):
        return f"date_diff('second', timestamp '2020-01-01', {column})"
    return {"kind": f"length({column})", "is_gift": f"cast({column} as bigint)"}.get(name, column)


def _draw_window(random: Random, prefix: str, seen: Counter[str]) -> Window:
    units = random.sample([*UNITS], random.randint(1, 3))
    spans = tuple(_write_span(random, unit) for unit in units)
    seen.update(f"span of {unit}s" for unit in units)
    key = random.choice(KEYS)
    seen[f"window by {len(key)} columns"] += 1

    def some(of: tuple[Any, ...], construct: str, share: float = 0.6) -> tuple[Any, ...]:
        chosen = tuple(each for each in of if random.random() < share)
        seen[construct] += len(chosen)
        return chosen

    latest = {f"r{RECORDS.index(fields)}": fields for fields in some(RECORDS, "latest", 0.25)}
    earliest = {f"e{RECORDS.index(fields)}": fields for fields in some(RECORDS, "earliest", 0.25)}
    absent = "nothing of {customer}" if random.random() < 0.3 else None
    seen["absent"] += absent is not None
    return Window(
        prefix=prefix,
        stream="events",
        key=key,
        spans=spans,
        sums=some(SUMMED, "sum"),
        variances=some(VARIED, "variance"),
        distinct=some(COUNTED, "distinct count"),
        latest=latest,
        earliest=earliest,
        absent=absent,
    )


def _write_span(random: Random, unit: str) -> str:
    number = 1 if random.random() < 0.2 else random.randint(1, UNITS[unit])
    return f"{number} {unit}{'s' if number > 1 or random.random() < 0.5 else ''}"


def measure_names(window: Window) -> Iterator[str]:
    """The names of a window's sums, variances and distinct counts."""
    for span in window.spans:
        yield from (sum_name(window, column, span) for column in window.sums)
        yield from (variance_name(window, column, span) for column in window.variances)
        yield from (distinct_name(window, column, span) for column in window.distinct)


def draw_rows(random: Random, rows: int) -> list[Row]:
    """Orders of three customers, many at one moment, on the last days of months more often; some are told again."""
    told: list[Row] = []
    for number in range(rows):
        known = _draw_moment(random)
        row: Row = {
            "customer": random.choice(["ann", "bob", "zoë", None]),
            "kind": random.choice(["", "a", "b", "cc", None]),
            "shop": random.choice([1, 2, None]),
            "cents": random.choice([None, 0, 5, -300, random.randint(-1000, 1000)]),
            "wide": random.choice([None, 1 << 40, (1 << 45) + 1, -(1 << 44), random.randint(-(1 << 50), 1 << 50)]),
            "number": number,
            "is_gift": random.choice([True, False, None]),
            "event_at": known + timedelta(hours=random.randint(1, 60)),
            "seen_at": random.choice([known, FIRST, None]),
            "known_at": known,
        }
        told.append(row)
        if random.random() < 0.2:
            again = known + timedelta(hours=random.randint(0, 30))
            told.append({**row, "known_at": again, "cents": random.randint(0, 9), "kind": "told again"})
    random.shuffle(told)
    return told


def _draw_moment(random: Random) -> datetime:
    """Most lie in the interval of the points, at whole hours; some are a microsecond from one, or a month's end."""
    days = (END - START).days
    moment = START + timedelta(hours=random.randrange(24 * days))
    way = random.random()
    if way < 0.3:
        moment -= timedelta(days=random.randrange(650))
    elif way < 0.4:
        moment = datetime(2024, random.choice([2, 3]), random.choice([28, 29]), random.choice([0, 1]), tzinfo=UTC)
    return moment + timedelta(microseconds=random.choice([0, 0, 0, 1, -1]))
