"""A plan as one Python function: what a point has of its key's events, without a loop over what is always the same.

The function takes the point's values by name, which it adds to, its key's events, up to when it may know, and when it
is to happen; it returns why something is not known, as the definition words it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from features.key_events import KeyEvents, find_extreme, find_last_known
from features.measures import count_distinct, find_variance, place_running
from features.operations import add_months
from features.plan import SeriesPlan
from features.spans import WindowSpan, parse_span
from features.vocabulary import Window

AddValues = Callable[[dict[str, Any], KeyEvents, int, int], tuple[str, ...]]


def compile_plan(plan: SeriesPlan) -> AddValues:
    """The function of a plan: its lines are written here, and the definition's names are in them as constants alone."""
    lines = ["def add_values(row, events, known, event_time):", "at, totals, columns = events", *_write_lines(plan)]
    names: dict[str, Any] = {
        "add_months": add_months,
        "bisect_left": bisect_left,
        "count_distinct": count_distinct,
        "find_variance": find_variance,
        "find_extreme": find_extreme,
        "find_last_known": find_last_known,
    }
    exec("\n    ".join(lines), names)  # noqa: S102
    made: AddValues = names["add_values"]
    return made


def _write_lines(plan: SeriesPlan) -> Iterator[str]:
    series = plan.series
    if joined := series.joined:
        span = parse_span(joined.span) // timedelta(microseconds=1)
        yield f"low, high = bisect_left(at, event_time - {span}), bisect_left(at, event_time)"
        yield "place = find_last_known(columns, low, high, known)"
        yield from _write_record(plan, joined.prefix)
        yield "return ()"
        return
    yield "high = bisect_left(at, known + 1)"
    if series.lookup:
        name, lookup = series.lookup
        yield "place = high - 1"
        yield from _write_record(plan, name)
        yield f"return () if high else {() if lookup.absent is None else (lookup.absent,)!r}"
        return
    summed = sorted({which for named in plan.sums.values() for which, _ in named})
    for which in summed:
        yield f"total{which} = totals[{which}]"
        yield f"end{which} = total{which}[high]"
    for place, (text, reach) in enumerate(plan.spans.items()):
        yield f"low{place} = bisect_left(at, {_write_begin(reach)}, 0, high)"
        for which, name in plan.sums.get(text, ()):
            yield f"row[{name!r}] = float(end{which} - total{which}[low{place}])"
    yield from _write_measures(plan)
    for window in series.windows:
        yield from _write_window_records(plan, window)
    absent = [(w.spans[-1], w.absent) for w in series.windows if w.absent is not None]
    told = (f"*(({text!r},) if high == low{list(plan.spans).index(span)} else ())" for span, text in absent)
    yield f"return ({''.join(f'{each}, ' for each in told)})"


def _write_begin(span: WindowSpan) -> str:
    return f"add_months(known, {-span.months}, 0)" if span.months else f"known - {span.microseconds}"


def _write_measures(plan: SeriesPlan) -> Iterator[str]:
    lows = {text: f"low{place}" for place, text in enumerate(plan.spans)}
    for span, column, name in plan.variances:
        running = (f"totals[{place}]" for place in place_running(plan.series, column))
        yield f"row[{name!r}] = find_variance({', '.join(f'{each}[high] - {each}[{lows[span]}]' for each in running)})"
    for span, column, name in plan.distinct:
        yield f"row[{name!r}] = count_distinct(columns[{column!r}][{lows[span]}:high])"


def _write_window_records(plan: SeriesPlan, window: Window) -> Iterator[str]:
    low = f"low{list(plan.spans).index(window.spans[0])}"
    for named, last in ((window.latest, True), (window.earliest, False)):
        for name, fields in named.items():
            if (record := f"{window.prefix}_{name}") in plan.records:
                order = plan.series.orders.index(fields)
                if order == 0 and plan.series.is_parted:  # sorted so already
                    best = "high - 1" if last else low
                else:
                    best = f"find_extreme(columns['rank{order}'], {low}, high, {last})"
                yield f"place = {best} if {low} < high else -1"
                yield from _write_record(plan, record)


def _write_record(plan: SeriesPlan, record: str) -> Iterator[str]:
    """The fields of the event at `place`; below 0 there is none."""
    yield f"row[{record!r}] = True if place >= 0 else None"
    for name in plan.records[record]:
        yield f"row[{f'{record}.{name}'!r}] = columns[{name!r}][place] if place >= 0 else None"
