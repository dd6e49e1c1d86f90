"""The benchmark's features as one writes them with pandas: merge, merge_asof, and sums over time in one of two ways.

`rolling` is what pandas offers for it. `running` is the trick of our own engine, for those who know it: what was summed
up to a point less what was summed up to the beginning of its span.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

_FLIGHT = ["carrier", "flight", "origin", "scheduled_departure"]
_WEATHER = ["temp_f", "dewpoint_f", "humidity", "wind_speed_mph", "precip_in", "pressure_mb", "visibility_miles"]
_RATE, _MINUTES = ["arrived", "arrived_late"], ["arrived", "arrival_delay"]
_LEFT, _LATE = ["departed", "departure_delay"], ["departed", "departed_late"]
_SUMS = {
    "all": ([], {"7D": _RATE, "30D": _RATE, "3h": [*_MINUTES, *_LATE]}),
    "carrier": (["carrier"], {"7D": [*_RATE, "arrival_delay"], "30D": _RATE, "3h": _LEFT}),
    "origin": (["origin"], {"7D": [*_RATE, "cancelled"], "1h": _LEFT,
                            "3h": [*_LEFT, *_LATE, *_MINUTES, "cancelled"]}),
    "dest": (["dest"], {"7D": _RATE, "30D": _RATE, "6h": _MINUTES}),
    "route": (["origin", "dest"], {"30D": [*_RATE, "arrival_delay"]}),
    "carrier_origin": (["carrier", "origin"], {"7D": _RATE, "30D": _RATE, "3h": _LEFT}),
    "hour": (["origin", "local_hour"], {"30D": _RATE}),
    "number": (["carrier", "flight", "origin", "dest"], {"30D": [*_RATE, "arrival_delay"]}),
    "tail": (["tailnum"], {"7D": _MINUTES, "30D": _RATE}),
}  # fmt: skip
_RATES = {"carrier": ("7D", "30D"), "origin": ("7D",), "dest": ("7D", "30D"), "route": ("30D",),
          "carrier_origin": ("7D", "30D"), "hour": ("30D",), "number": ("30D",), "tail": ("30D",)}  # fmt: skip
_MEANS = {
    "all_late_rate_7d": ("all", "7D", "arrived_late", "arrived"),
    "all_arrival_delay_minutes_3h": ("all", "3h", "arrival_delay", "arrived"),
    "all_departed_late_share_3h": ("all", "3h", "departed_late", "departed"),
    "carrier_arrival_delay_minutes_7d": ("carrier", "7D", "arrival_delay", "arrived"),
    "carrier_departure_delay_minutes_3h": ("carrier", "3h", "departure_delay", "departed"),
    "origin_departure_delay_minutes_1h": ("origin", "1h", "departure_delay", "departed"),
    "origin_departure_delay_minutes_3h": ("origin", "3h", "departure_delay", "departed"),
    "origin_departed_late_share_3h": ("origin", "3h", "departed_late", "departed"),
    "origin_arrival_delay_minutes_3h": ("origin", "3h", "arrival_delay", "arrived"),
    "dest_arrival_delay_minutes_6h": ("dest", "6h", "arrival_delay", "arrived"),
    "route_arrival_delay_minutes_30d": ("route", "30D", "arrival_delay", "arrived"),
    "carrier_origin_departure_delay_minutes_3h": ("carrier_origin", "3h", "departure_delay", "departed"),
    "number_arrival_delay_minutes_30d": ("number", "30D", "arrival_delay", "arrived"),
    "tail_arrival_delay_minutes_7d": ("tail", "7D", "arrival_delay", "arrived"),
}
_COUNTS = {
    "origin_cancelled_3h": ("origin", "3h", "cancelled"),
    "route_flights_30d": ("route", "30D", "arrived"),
    "tail_flights_7d": ("tail", "7D", "arrived"),
}
_WEIGHT = {"number": 5, "tail": 10}
Spans = Mapping[str, Sequence[str]]
Sums = Callable[[pd.DataFrame, pd.DataFrame, Sequence[str], Spans], dict[str, pd.DataFrame]]


def build(sources: Path, lead: pd.Timedelta, sums: Sums) -> pd.DataFrame:
    """Every flight with its features, known at its prediction time."""
    points, events, weather = _read(sources, lead)
    number = points["carrier"] + points["flight"].astype(str) + "-" + points["origin"] + "-" + points["dest"]
    due, local = points["scheduled_departure"], points["local"]
    keys = {"entity_key": number, "event_time": due, "prediction_time": points["prediction_time"]}
    schedule = {
        "departure_minute_of_day": local.dt.hour * 60 + local.dt.minute,
        "planned_minutes": (points["scheduled_arrival"] - due).dt.total_seconds() / 60,
        "plane_age_years": due.dt.year - points["year"],
        "plane_seats": points["seats"],
    }
    others = _single(schedule | weather | _plane(events, points))
    return pd.DataFrame(keys | others | _history(events, points, sums))


def _read(sources: Path, lead: pd.Timedelta) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, pd.Series]]:
    """Points, events and the weather of the points; what they were made of is free again."""
    read = {path.stem: pd.read_parquet(path) for path in sources.glob("*.parquet")}
    points = _points(read["flights"], read["planes"], read["airports"], lead)
    events = _events(read["flights"], read["movements"], read["airports"])
    return points, events, _weather_now(points, read["weather"].sort_values("known_at"))


def _points(flights: pd.DataFrame, planes: pd.DataFrame, airports: pd.DataFrame, lead: pd.Timedelta) -> pd.DataFrame:
    points = flights.assign(prediction_time=flights["scheduled_departure"] - lead)
    points = points[points["known_at"] <= points["prediction_time"]].drop(columns="known_at")
    points = points.merge(planes[["tailnum", "year", "seats"]], on="tailnum", how="left")
    points["tailnum"] = points["tailnum"].where(points["tailnum"].isin(planes["tailnum"]))
    points["local"] = _local(points, airports)
    points["local_hour"] = points["local"].dt.hour
    return points.sort_values("prediction_time", ignore_index=True)


def _local(flights: pd.DataFrame, airports: pd.DataFrame) -> pd.Series:
    """When they leave by the clock on the airport's wall."""
    zones = flights["origin"].map(airports.set_index("faa")["tzone"])
    parts = flights["scheduled_departure"].groupby(zones)
    return pd.concat([moments.dt.tz_convert(zone).dt.tz_localize(None) for zone, moments in parts])


def _weather_now(points: pd.DataFrame, weather: pd.DataFrame) -> dict[str, pd.Series]:
    last = _last(points, weather[["origin", "known_at", "observed_at", *_WEATHER]], "origin", "4h")
    first = _first(points, weather[["origin", "known_at", "observed_at", "pressure_mb"]], "4h")
    hours = (last["observed_at"] - first["observed_at"]).dt.total_seconds() / 3600
    return {name: last[name] for name in _WEATHER if name != "dewpoint_f"} | {
        "dewpoint_spread_f": last["temp_f"] - last["dewpoint_f"],
        "pressure_trend_mb_per_hour": (last["pressure_mb"] - first["pressure_mb"]) / hours.where(hours != 0),
    }


def _history(events: pd.DataFrame, points: pd.DataFrame, sums: Sums) -> dict[str, pd.Series]:
    made: dict[str, pd.Series] = {}
    for key, (columns, spans) in _SUMS.items():
        found = sums(events, points, columns, spans)
        if key == "all":
            overall = _mean(found["30D"], "arrived_late", "arrived")
        means = {name: told for name, (of, *told) in _MEANS.items() if of == key}
        new = {name: _mean(found[span], total, count) for name, (span, total, count) in means.items()}
        new |= {name: found[span][count] for name, (of, span, count) in _COUNTS.items() if of == key}
        for span in _RATES.get(key, ()):
            late, count, weight = found[span]["arrived_late"], found[span]["arrived"], _WEIGHT.get(key, 20)
            new[f"{key}_late_rate_{span.lower()}"] = ((late + weight * overall) / (count + weight)).where(count > 0)
        if key == "origin":
            week = found["7D"]
            new["origin_cancel_rate_7d"] = week["cancelled"] / (week["arrived"] + week["cancelled"])
        made |= _single(new)
    return made


def _single(columns: Mapping[str, pd.Series]) -> dict[str, pd.Series]:
    return {name: column.astype("float32") for name, column in columns.items()}


def _mean(sums: pd.DataFrame, total: str, count: str) -> pd.Series:
    return sums[total] / sums[count]


def _plane(events: pd.DataFrame, points: pd.DataFrame) -> dict[str, pd.Series]:
    moves = events[["tailnum", "known_at", "kind", "origin", "departure_delay", "arrival_delay"]]
    last = _last(points[["tailnum", "prediction_time"]], moves, "tailnum", "3D")
    told = last["kind"].notna()
    delay = last["arrival_delay"].where(last["kind"] == "arrived")
    return {
        "tail_last_delay_minutes": delay.fillna(last["departure_delay"].where(last["kind"] == "departed")),
        "tail_hours_since_last_movement": (points["prediction_time"] - last["known_at"]).dt.total_seconds() / 3600,
        "tail_last_from_here": (last["origin"] == points["origin"]).astype("float64").where(told),
        "tail_in_the_air": (last["kind"] == "departed").astype("float64").where(told),
    }


def _events(flights: pd.DataFrame, movements: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    """What was told of each flight: when, and what it adds to."""
    told = movements[movements["kind"].isin(["cancelled", "diverted"]) | movements["delay_minutes"].notna()]
    told = told.sort_values("known_at").drop_duplicates([*_FLIGHT, "kind"])
    events = told.merge(flights[[*_FLIGHT, "dest", "tailnum", "known_at"]], on=_FLIGHT, suffixes=("", "_entry"))
    minutes = events["delay_minutes"].clip(-60, 300).round()
    for kind, delay in (("departed", "departure_delay"), ("arrived", "arrival_delay")):
        happened = events["kind"] == kind
        events[kind] = happened.astype("int64")
        events[f"{kind}_late"] = (happened & (events["delay_minutes"] > 15)).astype("int64")
        events[delay] = minutes.where(happened, 0)
    events["cancelled"] = (events["kind"] == "cancelled").astype("int64")
    events["local_hour"] = _local(events, airports).dt.hour
    entered = events["known_at_entry"]
    events["known_at"] = events["known_at"].where(events["known_at"] >= entered, entered)
    return events.sort_values(["known_at", "kind", "scheduled_departure"], ignore_index=True)


def rolling(events: pd.DataFrame, points: pd.DataFrame, key: Sequence[str], spans: Spans) -> dict[str, pd.DataFrame]:
    """By span, the sums over the events that became known in the span that ends at each point."""
    sums = list(dict.fromkeys(name for names in spans.values() for name in names))
    asked = points[[*key, "prediction_time"]].rename(columns={"prediction_time": "known_at"})
    both = pd.concat([events[[*key, "known_at", *sums]].set_index(-1 - events.index), asked]).dropna(subset=[*key])
    both = both.fillna(dict.fromkeys(sums, 0)).sort_values(
        [*key, "known_at"], kind="stable"
    )  # of one moment: events first
    found = {}
    for span, names in spans.items():
        rows = both.groupby([*key]) if key else both
        columns = [*dict.fromkeys(names)]
        rolled = rows[["known_at", *columns]].rolling(span, on="known_at", closed="both")[columns].sum()
        found[span] = rolled.set_axis(both.index).reindex(points.index)
    return found


def running(events: pd.DataFrame, points: pd.DataFrame, key: Sequence[str], spans: Spans) -> dict[str, pd.DataFrame]:
    """The same by running totals of each key: those at the point less those before its span."""
    sums, by = list(dict.fromkeys(name for names in spans.values() for name in names)), [*key]
    told = events[[*by, "known_at", *sums]].dropna(subset=by)
    told[sums] = (told.groupby(by) if by else told)[sums].cumsum().astype("float64")
    asked = points[[*by, "prediction_time"]].reset_index().dropna(subset=by)
    keyed = {"by": by} if by else {}
    until = pd.merge_asof(asked, told, left_on="prediction_time", right_on="known_at", **keyed)[sums].fillna(0)
    found = {}
    for span, names in spans.items():
        columns = [*dict.fromkeys(names)]
        begun = asked.assign(since=asked["prediction_time"] - pd.Timedelta(span))
        before = pd.merge_asof(
            begun, told[[*by, "known_at", *columns]], left_on="since", right_on="known_at", allow_exact_matches=False,
            **keyed,
        )[columns].fillna(0)  # fmt: skip
        found[span] = (until[columns] - before).set_axis(asked["index"]).reindex(points.index)
    return found


def _last(points: pd.DataFrame, records: pd.DataFrame, key: str, span: str) -> pd.DataFrame:
    """The latest record of the key that was known, if within the span."""
    asked = points[[key, "prediction_time"]].reset_index().dropna(subset=[key])
    found = pd.merge_asof(
        asked, records, left_on="prediction_time", right_on="known_at", by=key, tolerance=pd.Timedelta(span)
    )
    return found.set_index("index").reindex(points.index)


def _first(points: pd.DataFrame, records: pd.DataFrame, span: str) -> pd.DataFrame:
    """The earliest record of the origin within the span before each point."""
    asked = points[["origin"]].assign(since=points["prediction_time"] - pd.Timedelta(span))
    found = pd.merge_asof(
        asked, records, left_on="since", right_on="known_at", by="origin", direction="forward",
        tolerance=pd.Timedelta(span),
    )  # fmt: skip
    return found.set_index(points.index)
