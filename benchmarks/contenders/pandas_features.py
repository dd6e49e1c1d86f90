"""The benchmark's features as one writes them with pandas: merge, time-based rolling sums, merge_asof."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

_FLIGHT = ["carrier", "flight", "origin", "scheduled_departure"]
_WEATHER = ["observed_at", "temp_f", "wind_speed_mph", "pressure_mb"]
_HISTORY, _LIVE = ["arrived", "arrived_late", "arrival_delay"], ["departed", "departed_late", "departure_delay"]


def build(sources: Path, lead: pd.Timedelta) -> pd.DataFrame:
    """Every flight with its features, known at its prediction time."""
    read = {path.stem: pd.read_parquet(path) for path in sources.glob("*.parquet")}
    flights, weather = read["flights"], read["weather"].sort_values("known_at")
    points = flights.assign(
        prediction_time=flights["scheduled_departure"] - lead,
        tailnum=flights["tailnum"].where(flights["tailnum"].isin(read["planes"]["tailnum"])),
    )
    points = points[points["known_at"] <= points["prediction_time"]].drop(columns="known_at")
    points = points.sort_values("prediction_time", ignore_index=True)
    events = _events(flights, read["movements"])
    carrier = _rolling(events, points, ["carrier", "origin"], _HISTORY, "30D")
    tail = _rolling(events, points, ["tailnum"], _HISTORY, "30D")
    origin = _rolling(events, points, ["origin"], [*_LIVE, "cancelled"], "3h")
    last = _last(points, weather[["origin", "known_at", *_WEATHER]], "origin", "4h")
    first = _first(points, weather[["origin", "known_at", "observed_at", "pressure_mb"]], "4h")
    moves = events[["tailnum", "known_at", "kind", "departure_delay", "arrival_delay"]]
    plane = _last(points, moves, "tailnum", "3D")
    hours = (last["observed_at"] - first["observed_at"]).dt.total_seconds() / 3600
    trend = (last["pressure_mb"] - first["pressure_mb"]) / hours.where(hours != 0)
    delay = plane["arrival_delay"].where(plane["kind"] == "arrived")
    since = (points["prediction_time"] - plane["known_at"]).dt.total_seconds() / 3600
    number = points["carrier"] + points["flight"].astype(str) + "-" + points["origin"] + "-" + points["dest"]
    return pd.DataFrame(
        {
            "entity_key": number,
            "event_time": points["scheduled_departure"],
            "prediction_time": points["prediction_time"],
            "carrier_origin_late_share_30d": carrier["arrived_late"] / carrier["arrived"],
            "carrier_origin_delay_minutes_30d": carrier["arrival_delay"] / carrier["arrived"],
            "tail_late_share_30d": tail["arrived_late"] / tail["arrived"],
            "tail_delay_minutes_30d": tail["arrival_delay"] / tail["arrived"],
            "tail_flights_30d": tail["arrived"],
            "origin_late_share_3h": origin["departed_late"] / origin["departed"],
            "origin_delay_minutes_3h": origin["departure_delay"] / origin["departed"],
            "origin_cancelled_3h": origin["cancelled"],
            "temp_f": last["temp_f"],
            "wind_speed_mph": last["wind_speed_mph"],
            "pressure_trend_mb_per_hour": trend,
            "tail_last_delay_minutes": delay.fillna(plane["departure_delay"].where(plane["kind"] == "departed")),
            "tail_hours_since_last_movement": since,
        }
    )


def _events(flights: pd.DataFrame, movements: pd.DataFrame) -> pd.DataFrame:
    """What was told of each flight: when, and what it adds to."""
    told = movements[movements["kind"].isin(["cancelled", "diverted"]) | movements["delay_minutes"].notna()]
    told = told.sort_values("known_at").drop_duplicates([*_FLIGHT, "kind"])
    events = told.merge(flights[[*_FLIGHT, "tailnum", "known_at"]], on=_FLIGHT, suffixes=("", "_entry"))
    minutes = events["delay_minutes"].clip(-60, 300).round()
    for kind, delay in (("departed", "departure_delay"), ("arrived", "arrival_delay")):
        happened = events["kind"] == kind
        events[kind] = happened.astype("int64")
        events[f"{kind}_late"] = (happened & (events["delay_minutes"] > 15)).astype("int64")
        events[delay] = minutes.where(happened, 0)
    events["cancelled"] = (events["kind"] == "cancelled").astype("int64")
    entered = events["known_at_entry"]
    events["known_at"] = events["known_at"].where(events["known_at"] >= entered, entered)
    return events.sort_values(["known_at", "kind", "scheduled_departure"], ignore_index=True)


def _rolling(
    events: pd.DataFrame, points: pd.DataFrame, key: Sequence[str], sums: Sequence[str], span: str
) -> pd.DataFrame:
    """The sums over the events that became known in the span that ends at each point."""
    asked = points[[*key, "prediction_time"]].rename(columns={"prediction_time": "known_at"})
    both = pd.concat([events[[*key, "known_at", *sums]].set_index(-1 - events.index), asked]).dropna(subset=[*key])
    both = both.fillna(dict.fromkeys(sums, 0)).sort_values([*key, "known_at"])  # of one moment: events first
    rolled = both.groupby([*key])[["known_at", *sums]].rolling(span, on="known_at", closed="both")[[*sums]].sum()
    return rolled.set_axis(both.index).reindex(points.index)


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
