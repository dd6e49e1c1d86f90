"""A slow plain reading of drawn definitions: every event of the world is looked at for every point, one by one.

It shares no code with the engines, and knows SQL only as far as the drawn expressions go.
"""

import calendar
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from features.vocabulary import Window
from tests.features.window_worlds import END, LEAD, SOURCE, START, Drawn, Row

Values = dict[tuple[str, int], dict[str, float | None]]  # of a point, by its key and event time: features by name
_ORIGIN = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def say_by_oracle(drawn: Drawn) -> Values:
    """Every feature of every point."""
    rows = [{**row, "seen": 1} for row in drawn.rows]
    versions = _list_versions(drawn.rows)
    said = {}
    for point in _list_points(drawn, versions):
        names = {
            **_look_up(drawn, point, drawn.rows),
            **{n: v for window in drawn.definition.windows for n, v in _measure(window, point, rows).items()},
            **_precede(drawn, point, versions),
        }
        key = (point["entity_key"], (point["event_time"] - _ORIGIN) // _MICROSECOND)
        said[key] = {name: _evaluate(sql, names) for name, sql in drawn.definition.numeric_sql.items()}
    return said


def _list_versions(rows: Iterable[Row]) -> list[Row]:
    """Each telling of an order, and when the next one became known."""
    by_number: dict[int, list[Row]] = {}
    for row in rows:
        by_number.setdefault(row["number"], []).append(row)
    versions = []
    for told in by_number.values():
        told.sort(key=lambda row: (row["known_at"], *_order(row[name] for name in SOURCE.columns)))
        for row, later in zip(told, [*told[1:], None], strict=True):
            versions.append({**row, "known_until": later["known_at"] if later else None})
    return versions


def _list_points(drawn: Drawn, versions: list[Row]) -> Iterator[Row]:
    if drawn.snapshots is None:
        for row in versions:
            moment = row["event_at"] - LEAD
            if START <= moment < END and _holds(row, moment):
                yield {
                    "entity_key": str(row["number"]), "event_time": row["event_at"], "prediction_time": moment,
                    "customer": row["customer"], "shop": row["shop"],
                }  # fmt: skip
        return
    every, times = drawn.snapshots
    named = {row["customer"] for row in drawn.rows} - {None}
    moment = START.replace(hour=0)
    while moment < END + 2 * LEAD:
        is_one = every == "day" or (every == "week" and moment.weekday() == 0) or (every == "month" and moment.day == 1)
        for customer in sorted(named) if is_one and START <= moment - LEAD < END else ():
            known = [row["known_at"] for row in drawn.rows if row["customer"] == customer]
            if any(at <= moment - LEAD and _count_begun(at, moment, every) <= times for at in known):
                yield {
                    "entity_key": customer, "event_time": moment, "prediction_time": moment - LEAD,
                    "customer": customer, "shop": "looked up",
                }  # fmt: skip
        moment += timedelta(days=1)


def _count_begun(since: datetime, until: datetime, every: str) -> int:
    """How many days, weeks or months began after a moment, up to a beginning itself."""
    if every == "month":
        return (until.year - since.year) * 12 + until.month - since.month
    days = (until.date() - since.date()).days
    return days if every == "day" else (days + since.weekday()) // 7


def _holds(version: Row, moment: datetime) -> bool:
    return version["known_at"] <= moment and (version["known_until"] is None or moment < version["known_until"])


def _order(values: Iterable[Any]) -> tuple[tuple[bool, Any], ...]:
    """What is missing counts as the greatest."""
    return tuple((value is None, 0 if value is None else value) for value in values)


def _look_up(drawn: Drawn, point: Row, rows: list[Row]) -> dict[str, Any]:
    """The last telling about the point's customer."""
    known = [r for r in rows if r["customer"] == point["customer"] and r["known_at"] <= point["prediction_time"]]
    last = None
    if point["customer"] is not None and known:
        last = max(known, key=lambda row: (row["known_at"], *_order(row[name] for name in SOURCE.columns)))
    if drawn.snapshots is not None:
        point["shop"] = last and last["shop"]
    return {"known_cents": last and last["cents"]}


def _begin(moment: datetime, span: str) -> datetime:
    number, unit = span.split()
    unit = unit.removesuffix("s")
    if unit not in ("month", "year"):
        return moment - timedelta(**{f"{unit}s": int(number)})
    months = moment.year * 12 + moment.month - 1 - int(number) * (12 if unit == "year" else 1)
    year, month = months // 12, months % 12 + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def _shorten(span: str) -> str:
    number, unit = span.split()
    return number + {"s": "s", "m": "m", "h": "h", "d": "d", "w": "w", "y": "y"}[unit[0]] + "o" * (unit[:2] == "mo")


def _measure(window: Window, point: Row, rows: list[Row]) -> dict[str, Any]:
    """All columns of a window, by name; of a point whose key is not there, nothing."""
    if any(point[name] is None for name in window.key):
        return {}
    mine = [row for row in rows if all(row[name] == point[name] for name in window.key)]
    end, names = point["prediction_time"], dict[str, Any]()
    for place, span in enumerate(window.spans):
        inside = [row for row in mine if _begin(end, span) <= row["known_at"] <= end]
        short = _shorten(span)
        for name in window.sums:
            names[f"{window.prefix}_{name}_{short}"] = float(sum(row[name] or 0 for row in inside))
        for name in window.variances:
            values = [row[name] for row in inside if row[name] is not None]
            names[f"{window.prefix}_{name}_var_{short}"] = _vary(values)
        for name in window.distinct:
            names[f"{window.prefix}_{name}_distinct_{short}"] = float(len({row[name] for row in inside} - {None}))
        for best, records in ((max, window.latest), (min, window.earliest)) if place == 0 else ():
            for name, fields in records.items():
                chosen = _choose(best, inside, fields)
                names |= {f"{window.prefix}_{name}.{each}": chosen.get(each) for each in fields}
    return names


def _choose(best: Any, rows: list[Row], fields: Iterable[str]) -> Row:
    """The row whose fields are the greatest, or the least; an empty one where there is none."""
    return best(rows, key=lambda row: _order(row[name] for name in fields)) if rows else {}


def _vary(values: list[int]) -> float | None:
    """n times the sum of squares less the square of the sum, exactly; by n (n - 1)."""
    count = len(values)
    if count < 2:
        return None
    spread = sum((one - other) ** 2 for place, one in enumerate(values) for other in values[:place])
    return float(spread) / float(count * (count - 1))


def _precede(drawn: Drawn, point: Row, versions: list[Row]) -> dict[str, Any]:
    names = {}
    for joined in drawn.definition.joined:
        since = _begin(point["event_time"], joined.span)
        held = [
            row for row in versions
            if row["customer"] is not None and row["customer"] == point["customer"]
            and since <= row["event_at"] < point["event_time"] and _holds(row, point["prediction_time"])
        ]  # fmt: skip
        chosen = _choose(max, held, joined.fields)
        names |= {f"{joined.prefix}.{name}": chosen.get(name) for name in joined.fields}
    return names


def _evaluate(sql: str, names: dict[str, Any]) -> float | None:
    """A drawn expression: a column, or one as a number."""
    for begin, read in _READ.items():
        if sql.startswith(begin):
            value = names.get(sql.removeprefix(begin).partition(" as ")[0].rstrip(")"))
            return None if value is None else float(read(value))
    value = names.get(sql)
    return None if value is None else float(value)


def _count_seconds(moment: datetime) -> int:
    return (moment.replace(microsecond=0) - datetime(2020, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


_READ: dict[str, Any] = {
    "date_diff('second', timestamp '2020-01-01', ": _count_seconds,
    "length(": len,
    "cast(": int,
    "sqrt(": math.sqrt,
}
