"""Windows as SQL: sums, and latest or earliest records, of what became known in a span that ends at each point.

A sum is the running total at the point less that at the span's beginning, so that no frame is summed anew for every
point. Totals are of doubles, which add whole numbers up exactly, in any order, and faster than integers of any size.
"""

from collections.abc import Container, Sequence

from features.spans import read_window_span, short_span
from features.vocabulary import Window


def sum_name(window: Window, column: str, span: str) -> str:
    """The name of a window's sum: `origin_arrived_7d`."""
    return f"{window.prefix}_{column}_{short_span(span)}"


def variance_name(window: Window, column: str, span: str) -> str:
    """The name of a window's variance: `origin_delay_var_7d`."""
    return f"{window.prefix}_{column}_var_{short_span(span)}"


def distinct_name(window: Window, column: str, span: str) -> str:
    """The name of a window's count of different values: `origin_carrier_distinct_7d`."""
    return f"{window.prefix}_{column}_distinct_{short_span(span)}"


def column_names(window: Window) -> list[str]:
    """The names of all of a window's columns; of two that have one name each."""
    measured = ((sum_name, window.sums), (variance_name, window.variances), (distinct_name, window.distinct))
    named = [name(window, column, span) for name, columns in measured for column in columns for span in window.spans]
    return [*named, *(f"{window.prefix}_{record}" for record in (*window.latest, *window.earliest))]


def record_sql(fields: Sequence[str], table: str = "") -> str:
    """SQL: one value of several columns; it compares field by field."""
    return "struct_pack(" + ", ".join(f"{name} := {table}{name}" for name in fields) + ")"


def window_sql(window: Window, used: Container[str]) -> str:
    """SQL: `point_id`, and those of the window's columns that a feature mentions, of every point that has its key."""
    sums = [c for c in window.sums if any(sum_name(window, c, span) in used for span in window.spans)]
    records = {n: f for n, f in {**window.latest, **window.earliest}.items() if f"{window.prefix}_{n}" in used}
    parts = [
        *([_sums_sql(window, sums, used)] if sums else []),
        *([_records_sql(window, records)] if records else []),
        *(_measures_sql(window, span, found) for span in window.spans if (found := _measures(window, span, used))),
    ] or [f"select point_id from points where {_present(window)}"]
    first, *others = (f"({part}) part_{number}" for number, part in enumerate(parts))
    return f"select * from {first} {' '.join(f'left join {other} using (point_id)' for other in others)}"


def _present(window: Window) -> str:
    return " and ".join(f"{column} is not null" for column in window.key) or "true"


def _sums_sql(window: Window, sums: Sequence[str], used: Container[str]) -> str:
    """Running totals over events and, in one order with them, the moments that each span of each point begins and ends.

    At one moment a beginning comes before the events, which lie inside, and the point after them.
    """
    keys, point = ", ".join(["", *window.key]), len(window.spans) + 1
    values = ", ".join(f"cast({column} as double) as {column}" for column in sums)
    nothing = ", ".join("0" for _ in sums)
    rows = [
        f"select null as point_id, known_at as moment, 0 as kind{keys}, {values} from {window.stream}",
        f"select point_id, prediction_time, {point}{keys}, {nothing} from points",
        *(
            f"select point_id, prediction_time - interval {span}, {number - point}{keys}, {nothing} from points"
            for number, span in enumerate(window.spans)
        ),
    ]
    union = " union all ".join(f"{row} where {_present(window)}" for row in rows)
    partition = f"partition by {', '.join(window.key)} " if window.key else ""
    totals = ", ".join(f"sum({column}) over earlier as {column}" for column in sums)
    columns = ", ".join(
        f"sum(case kind when {point} then {column} when {number - point} then -{column} else 0 end)"
        f" as {sum_name(window, column, span)}"
        for number, span in enumerate(window.spans)
        for column in sums
        if sum_name(window, column, span) in used
    )
    return (
        f"select point_id, {columns} from (select point_id, kind, {totals} from ({union})"
        f" window earlier as ({partition}order by moment, kind rows unbounded preceding))"
        " where point_id is not null group by point_id"
    )


def _records_sql(window: Window, records: dict[str, tuple[str, ...]]) -> str:
    """A record is a number in the order of its key's while a frame goes over it: cheaper to compare than its fields."""
    kinds = list(dict.fromkeys(records.values()))
    keys, places = list(window.key), [f"place_{number}" for number in range(len(kinds))]
    partition = f"partition by {', '.join(keys)} " if keys else ""
    numbered = [f"{record_sql(f)} as record_{n}, row_number() over ({partition}order by {record_sql(f)}) as place_{n}"
                for n, f in enumerate(kinds)]  # fmt: skip
    events = ", ".join(["cast(null as bigint) as point_id", "known_at as moment", *keys, *places])
    points = ", ".join(["point_id", "prediction_time", *keys, *("null" for _ in places)])
    union = f"select {events} from events union all select {points} from points where {_present(window)}"
    places_of = {
        name: f"{'max' if name in window.latest else 'min'}(place_{kinds.index(fields)})"
        for name, fields in records.items()
    }
    framed = ", ".join(["point_id", *keys, *(f"{best} over frame as {name}_place" for name, best in places_of.items())])
    of_frames = (
        f"select * from (select {framed} from ({union}) window frame as"
        f" ({partition}order by moment range between interval {window.spans[0]} preceding and current row))"
        " where point_id is not null"
    )
    if read_window_span(window.spans[0]).months:
        # Of two points the later one's may begin earlier (August 30th at 2, and 31st at 1): no frame for an engine.
        grouped = ", ".join(["p.point_id", *(f"p.{key}" for key in keys)])
        chosen = "".join(f", {best} as {name}_place" for name, best in places_of.items())
        of_frames = f"select {grouped}{chosen} {_beside_sql(window, window.spans[0], 'events')} group by {grouped}"
    records_selected = ", ".join(f"{n}.record_{kinds.index(f)} as {window.prefix}_{n}" for n, f in records.items())
    joins = " ".join(
        f"left join events {n} on {n}.place_{kinds.index(f)} = framed.{n}_place"
        + "".join(f" and {n}.{key} = framed.{key}" for key in keys)
        for n, f in records.items()
    )
    return (
        f"with events as materialized (select *, {', '.join(numbered)} from {window.stream} where {_present(window)})"
        f" select point_id, {records_selected} from ({of_frames}) framed {joins}"
    )


def _beside_sql(window: Window, span: str, events: str) -> str:
    """SQL: each point `p` that has the window's key, beside every event `e` that its span holds; alone where none."""
    same = "".join(f" and e.{key} = p.{key}" for key in window.key)
    there = " and ".join(f"p.{key} is not null" for key in window.key) or "true"
    return (
        f"from points p left join {events} e on e.known_at <= p.prediction_time"
        f" and e.known_at >= p.prediction_time - interval {span}{same} where {there}"
    )


def _measures(window: Window, span: str, used: Container[str]) -> dict[str, str]:
    """The variances and distinct counts of a span that a feature mentions: name -> SQL over its events `e`."""
    variances = {variance_name(window, column, span): _variance_sql(f"e.{column}") for column in window.variances}
    counts = {
        distinct_name(window, column, span): f"cast(count(distinct e.{column}) as double)" for column in window.distinct
    }
    return {name: sql for name, sql in (variances | counts).items() if name in used}


def _measures_sql(window: Window, span: str, measures: dict[str, str]) -> str:
    """Every event of a span beside its point: nothing else counts different values exactly, on any engine."""
    columns = ", ".join(f"{sql} as {name}" for name, sql in measures.items())
    return f"select p.point_id, {columns} {_beside_sql(window, span, window.stream)} group by p.point_id"


def _variance_sql(value: str) -> str:
    """Of whole numbers, exactly until the division: by their count, total and total of squares, as `find_variance`.

    Through text a number of many digits becomes the nearest double, on any engine.
    """
    number, count = f"cast({value} as decimal(38, 0))", f"count({value})"
    spread = f"{count} * sum({number} * {number}) - sum({number}) * sum({number})"
    return (
        f"case when {count} > 1 then cast(cast({spread} as varchar) as double)"
        f" / cast({count} * ({count} - 1) as double) end"
    )
