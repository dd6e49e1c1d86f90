"""Windows as SQL: sums, and latest or earliest records, over the union of a stream's events and the prediction points.

While a frame goes over them, sums are of doubles, which add whole numbers up exactly, in any order, and faster than
integers of any size; and records are numbers in the records' order, which are cheaper to compare than what they hold.
"""

from collections.abc import Container, Sequence

from features.vocabulary import Window


def sum_name(window: Window, column: str, span: str) -> str:
    """The name of a window's sum: `origin_arrived_7d`."""
    number, unit = span.split()
    return f"{window.prefix}_{column}_{number}{unit[0]}"


def record_sql(fields: Sequence[str], table: str = "") -> str:
    """SQL: one value of several columns; it compares field by field."""
    return "struct_pack(" + ", ".join(f"{name} := {table}{name}" for name in fields) + ")"


def window_sql(window: Window, used: Container[str]) -> str:
    """SQL: `point_id`, and those of the window's columns that a feature mentions, of every point that has its key."""
    records = {n: f for n, f in {**window.latest, **window.earliest}.items() if f"{window.prefix}_{n}" in used}
    kinds = {fields: number for number, fields in enumerate(dict.fromkeys(records.values()))}
    sums = _sums(window, used)
    places = {
        f"{name}_place": f"{'max' if name in window.latest else 'min'}(place_{kinds[fields]}) over w0"
        for name, fields in records.items()
    }
    computed = ", ".join(f"{sql} as {name}" for name, sql in (sums | places).items())
    present = " and ".join(f"{column} is not null" for column in window.key) or "true"
    framed = f"select point_id, {computed} from ({_union(window, len(kinds), present)}) window {_frames(window)}"
    numbered = "".join(
        f", {record_sql(f)} as record_{n}, row_number() over (order by {record_sql(f)}) as place_{n}"
        for f, n in kinds.items()
    )
    found = [f"{name}.record_{kinds[fields]} as {window.prefix}_{name}" for name, fields in records.items()]
    joins = [f"left join events {n} on {n}.place_{kinds[f]} = framed.{n}_place" for n, f in records.items()]
    return (
        f"with events as materialized (select *{numbered} from {window.stream} where {present})"
        f" select {', '.join(['point_id', *sums, *found])}"
        f" from (select * from ({framed}) where point_id is not null) framed {' '.join(joins)}"
    )


def _sums(window: Window, used: Container[str]) -> dict[str, str]:
    # What no feature mentions is not computed: each sum over a frame costs about as much as the sort.
    every = {
        sum_name(window, column, span): f"coalesce(sum({column}) over w{number}, 0)"
        for number, span in enumerate(window.spans)
        for column in window.sums
    }
    return {name: sql for name, sql in every.items() if name in used}


def _union(window: Window, kinds: int, present: str) -> str:
    values = [f"cast({column} as double) as {column}" for column in window.sums]
    values += [f"place_{number}" for number in range(kinds)]
    events = ", ".join(["cast(null as bigint) as point_id", "known_at as moment", *window.key, *values])
    points = ", ".join(["point_id", "prediction_time", *window.key, *("null" for _ in values)])
    return f"select {events} from events union all select {points} from points where {present}"


def _frames(window: Window) -> str:
    partition = f"partition by {', '.join(window.key)} " if window.key else ""
    return ", ".join(
        f"w{number} as ({partition}order by moment range between interval {span} preceding and current row)"
        for number, span in enumerate(window.spans)
    )
