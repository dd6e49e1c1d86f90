"""What is known two hours before a scheduled departure: the schedule, the weather, history, and live operations.

A tail number that is null and one that `planes` does not know look the same in every feature: in this source a null
tail is written only after a cancellation, so telling the two apart would be reading the outcome.
"""

from datetime import timedelta

from features.engine import FeatureSet
from features.request import RequestField
from features.vocabulary import (
    AsOf,
    Preceding,
    Window,
    declare_source,
    known_at_sql,
    local_time_sql,
    unique_or_repeated_sql,
    versions_sql,
)

_FLIGHT = "carrier, flight, origin, scheduled_departure"
_GRAIN = _FLIGHT.replace(",", "")
_LATE_MINUTES = 15

_SOURCES = {
    "flights": declare_source(
        varchar="carrier tailnum origin dest",
        bigint="flight",
        double="distance_miles",
        timestamp="scheduled_departure scheduled_arrival known_at",
        grain=_GRAIN,
    ),
    "movements": declare_source(
        varchar="carrier origin kind",
        bigint="flight",
        double="delay_minutes",
        timestamp="scheduled_departure known_at",
        grain=_GRAIN,
    ),
    "weather": declare_source(
        varchar="origin",
        double="temp_f dewpoint_f humidity wind_speed_mph precip_in pressure_mb visibility_miles",
        timestamp="observed_at known_at",
        grain="origin observed_at",
    ),
    "planes": declare_source(
        varchar="tailnum", bigint="year seats", timestamp="known_at", timeless=True, grain="tailnum"
    ),
    "airports": declare_source(varchar="faa tzone", timestamp="known_at", timeless=True),
}

_STEPS = {
    # A flight's entry may be changed (another plane): each version holds until the next one is known.
    "schedule": versions_sql("flights", _FLIGHT),
    "plane_versions": versions_sql("planes", "tailnum"),
    "airport_versions": versions_sql("airports", "faa"),
    # An entry is believed for a month.
    "asked": f"""
        select carrier, flight, origin, dest, tailnum, scheduled_departure, scheduled_arrival, prediction_time
        from (select *, scheduled_departure - {{lead}} as prediction_time from schedule) p
        where prediction_time >= {{start}} and prediction_time < {{end}} and {known_at_sql("p", "prediction_time")}
            and known_at >= prediction_time - interval 30 days
    """,
    # The same movement told again within three days is one movement.
    "told": unique_or_repeated_sql(
        "movements",
        f"{_FLIGHT}, kind",
        alone="false as is_retold",
        among=f"""
            coalesce(known_at <= lag(known_at) over (partition by {_FLIGHT}, kind order by known_at, delay_minutes)
                + interval 3 days, false) as is_retold
        """,
    ),
    # A movement is usable once both it and the schedule entry that says where it went are known.
    "tellings": f"""
        select s.carrier, s.flight, s.origin, s.dest, s.tailnum, s.scheduled_departure, m.kind, m.delay_minutes,
            greatest(m.known_at, s.known_at) as known_at, m.is_retold, airports.tzone
        from told m
        join schedule s on s.carrier = m.carrier and s.flight = m.flight and s.origin = m.origin
            and s.scheduled_departure = m.scheduled_departure and (s.known_until is null or m.known_at < s.known_until)
            and (s.is_first or s.known_at <= m.known_at)
        left join airport_versions airports on airports.faa = s.origin and {known_at_sql("airports", "s.known_at")}
        where m.known_at < {{end}} and (m.kind in ('cancelled', 'diverted') or m.delay_minutes is not null)
    """,
    # It counts once, from when it was first told.
    "outcomes": f"""
        select carrier, flight, origin, dest, tailnum, scheduled_departure, kind, known_at,
            hour({local_time_sql("tzone", "scheduled_departure")}) as local_hour,
            cast(kind = 'departed' as tinyint) as departed,
            cast(kind = 'arrived' as tinyint) as arrived,
            cast(kind = 'cancelled' as tinyint) as cancelled,
            cast(kind = 'departed' and delay_minutes > {_LATE_MINUTES} as tinyint) as departed_late,
            cast(kind = 'arrived' and delay_minutes > {_LATE_MINUTES} as tinyint) as arrived_late,
            case when kind = 'departed' then minutes else 0 end as departure_delay,
            case when kind = 'arrived' then minutes else 0 end as arrival_delay
        from (
            select *, cast(round(greatest(-60, least(300, delay_minutes))) as bigint) as minutes
            from tellings where not is_retold
        )
    """,
    # What should have left by now, against `departed`: the queue that no departure has told of yet.
    "due": """
        select greatest(scheduled_departure, known_at) as known_at, origin, 1 as due from schedule
        where is_first and scheduled_departure < {end}
    """,
    # Every telling, each from when it was told: which one counts depends on when one asks, not on how time is cut.
    "labels": f"""
        select carrier || flight || '-' || origin || '-' || dest as entity_key, scheduled_departure as event_time,
            cast(delay_minutes > {_LATE_MINUTES} as bigint) as label, known_at as label_time
        from (
            select *, row_number() over (partition by {_FLIGHT}, dest, known_at order by delay_minutes) as place
            from tellings where kind = 'arrived' and known_at >= {{start}} and known_at < {{end}}
        ) where place = 1
    """,
    # Every version of an entry, and a mark on the first: a flight is one flight however often its entry is changed.
    "entries": """
        select carrier, flight, origin, dest, scheduled_departure as event_time, distance_miles, known_at,
            date_trunc('hour', scheduled_departure) as departure_hour, cast(is_first as bigint) as entered
        from schedule where scheduled_departure >= {start}
    """,
    # A plane's flights, each as it was known from time to time: its entry, and what had been told of it by then.
    "legs": f"""
        select *, lead(known_at) over (partition by {_FLIGHT} order by known_at) as known_until
        from (
            select distinct t.known_at, s.carrier, s.flight, s.origin, s.scheduled_departure, s.scheduled_arrival,
                s.tailnum, max(t.departure_delay) over told as departure_delay,
                max(t.arrival_delay) over told as arrival_delay, max(t.cancelled) over told as cancelled
            from (
                select {_FLIGHT}, known_at, cast(null as bigint) as departure_delay,
                    cast(null as bigint) as arrival_delay, cast(0 as bigint) as cancelled from schedule
                union all
                select {_FLIGHT}, known_at, case when departed = 1 then departure_delay end,
                    case when arrived = 1 then arrival_delay end, cancelled from outcomes
            ) t
            join schedule s on s.carrier = t.carrier and s.flight = t.flight and s.origin = t.origin
                and s.scheduled_departure = t.scheduled_departure and {known_at_sql("s", "t.known_at")}
            where t.scheduled_departure >= {{start}} - interval 2 days
            window told as (
                partition by t.carrier, t.flight, t.origin, t.scheduled_departure order by t.known_at
                range between unbounded preceding and current row
            )
        )
    """,
}

_LOOKUPS = {
    "planes": AsOf(stream="plane_versions", on={"tailnum": "tailnum"}, absent="unknown plane {tailnum}"),
    "airports": AsOf(stream="airport_versions", on={"faa": "origin"}, absent="unknown origin {origin}"),
}

_POINT = {
    "entity_key": "asked.carrier || asked.flight || '-' || asked.origin || '-' || asked.dest",
    "event_time": "asked.scheduled_departure",
    "prediction_time": "asked.prediction_time",
    "scheduled_arrival": "asked.scheduled_arrival",
    "carrier": "asked.carrier",
    "flight": "asked.flight",
    "origin": "asked.origin",
    "dest": "asked.dest",
    "tailnum": "planes.tailnum",
    "year": "planes.year",
    "seats": "planes.seats",
    "departure_hour": "date_trunc('hour', asked.scheduled_departure)",
    "local_departure": local_time_sql("airports.tzone", "asked.scheduled_departure"),
    "local_hour": f"hour({local_time_sql('airports.tzone', 'asked.scheduled_departure')})",
}

_HISTORY = ("arrived", "arrived_late", "arrival_delay")
_LIVE = ("departed", "departed_late", "departure_delay", "cancelled")
_WEATHER = ("observed_at", "temp_f", "dewpoint_f", "humidity", "wind_speed_mph", "precip_in", "pressure_mb",
            "visibility_miles")  # fmt: skip
_LAST = ("known_at", "kind", "scheduled_departure", "departure_delay", "arrival_delay", "origin", "dest")
_ENTRY = ("known_at", "distance_miles")


def _history(
    prefix: str,
    *key: str,
    spans: tuple[str, ...] = ("30 days",),
    more: tuple[str, ...] = (),
    absent: str | None = None,
) -> Window:
    return Window(prefix=prefix, stream="outcomes", key=key, spans=spans, sums=(*_HISTORY, *more), absent=absent)


def _live(prefix: str, *key: str, spans: tuple[str, ...] = ("3 hours",), sums: tuple[str, ...] = _LIVE) -> Window:
    return Window(prefix=prefix, stream="outcomes", key=key, spans=spans, sums=sums)


_WINDOWS = (
    _history("all", spans=("7 days", "30 days")),
    _history("carrier", "carrier", spans=("7 days", "30 days"), absent="unknown carrier {carrier}"),
    _history("origin", "origin", spans=("7 days",), more=("cancelled",)),
    _history("dest", "dest", spans=("7 days", "30 days"), absent="unknown dest {dest}"),
    _history("route", "origin", "dest"),
    _history("carrier_origin", "carrier", "origin", spans=("7 days", "30 days")),
    _history("hour", "origin", "local_hour"),
    _history("number", "carrier", "flight", "origin", "dest"),
    _history("tail", "tailnum", spans=("7 days", "30 days"), absent="no history for tail {tailnum}"),
    _live("all_now", sums=(*_HISTORY, *_LIVE)),
    _live("carrier_now", "carrier"),
    _live("origin_now", "origin", spans=("1 hours", "3 hours"), sums=(*_HISTORY, *_LIVE)),
    _live("carrier_origin_now", "carrier", "origin"),
    _live("dest_now", "dest", spans=("6 hours",), sums=_HISTORY),
    Window(prefix="due", stream="due", key=("origin",), spans=("3 hours",), sums=("due",)),
    Window(prefix="plane", stream="outcomes", key=("tailnum",), spans=("3 days",), latest={"last": _LAST}),
    Window(
        prefix="weather",
        stream="weather",
        key=("origin",),
        spans=("4 hours",),
        latest={"last": _WEATHER},
        earliest={"first": _WEATHER},
        absent="no weather for {origin}",
    ),
    Window(
        prefix="own",
        stream="entries",
        key=("carrier", "flight", "origin", "event_time"),
        spans=("30 days",),
        sums=("entered",),
        latest={"entry": _ENTRY},
    ),
    Window(prefix="route_last", stream="entries", key=("origin", "dest"), spans=("30 days",), latest={"entry": _ENTRY}),
    Window(
        prefix="same_hour", stream="entries", key=("origin", "departure_hour"), spans=("30 days",), sums=("entered",)
    ),
)


def _mean(prefix: str, total: str, count: str, span: str) -> str:
    return f"{prefix}_{total}_{span} / nullif({prefix}_{count}_{span}, 0)"


def _rate(prefix: str, span: str, weight: int = 20) -> str:
    # Few events say little: drawn towards the rate of all flights, as if `weight` more had come in at that rate.
    overall = "(all_arrived_late_30d / nullif(all_arrived_30d, 0))"
    late, count = f"{prefix}_arrived_late_{span}", f"{prefix}_arrived_{span}"
    return f"case when {count} > 0 then ({late} + {weight} * {overall}) / ({count} + {weight}) end"


def _hours(later: str, earlier: str) -> str:
    return f"date_diff('second', {earlier}, {later}) / 3600.0"


def _trend(column: str) -> str:
    hours = _hours("weather_last.observed_at", "weather_first.observed_at")
    return f"(weather_last.{column} - weather_first.{column}) / nullif({hours}, 0)"


_NUMERIC = {
    # The schedule.
    "departure_minute_of_day": "hour(local_departure) * 60 + minute(local_departure)",
    # Of a flight that nobody has entered yet, the distance is that of its route's latest entry.
    "distance_km": "case when own_entry is not null then own_entry.distance_miles "
    "else route_last_entry.distance_miles end * 1.609344",
    "planned_minutes": f"{_hours('scheduled_arrival', 'event_time')} * 60",
    # The others and this one, which counts once whether or not it has been entered.
    "scheduled_same_hour": "same_hour_entered_30d - own_entered_30d + 1",
    "plane_age_years": "year(event_time) - year",
    "plane_seats": "seats",
    # The weather now.
    "temp_f": "weather_last.temp_f",
    "dewpoint_spread_f": "weather_last.temp_f - weather_last.dewpoint_f",
    "humidity": "weather_last.humidity",
    "wind_speed_mph": "weather_last.wind_speed_mph",
    "precip_in": "weather_last.precip_in",
    "pressure_mb": "weather_last.pressure_mb",
    "visibility_miles": "weather_last.visibility_miles",
    "pressure_trend_mb_per_hour": _trend("pressure_mb"),
    # The history of each entity.
    "all_late_rate_7d": _mean("all", "arrived_late", "arrived", "7d"),
    "carrier_late_rate_7d": _rate("carrier", "7d"),
    "carrier_late_rate_30d": _rate("carrier", "30d"),
    "carrier_arrival_delay_minutes_7d": _mean("carrier", "arrival_delay", "arrived", "7d"),
    "origin_late_rate_7d": _rate("origin", "7d"),
    "origin_cancel_rate_7d": "origin_cancelled_7d / nullif(origin_arrived_7d + origin_cancelled_7d, 0)",
    "dest_late_rate_7d": _rate("dest", "7d"),
    "dest_late_rate_30d": _rate("dest", "30d"),
    "route_late_rate_30d": _rate("route", "30d"),
    "route_arrival_delay_minutes_30d": _mean("route", "arrival_delay", "arrived", "30d"),
    "route_flights_30d": "route_arrived_30d",
    "carrier_origin_late_rate_7d": _rate("carrier_origin", "7d"),
    "carrier_origin_late_rate_30d": _rate("carrier_origin", "30d"),
    "hour_late_rate_30d": _rate("hour", "30d"),
    "number_late_rate_30d": _rate("number", "30d", 5),
    "number_arrival_delay_minutes_30d": _mean("number", "arrival_delay", "arrived", "30d"),
    "tail_late_rate_30d": _rate("tail", "30d", 10),
    "tail_arrival_delay_minutes_7d": _mean("tail", "arrival_delay", "arrived", "7d"),
    "tail_flights_7d": "tail_arrived_7d",
    # Live operations.
    "origin_departure_delay_minutes_1h": _mean("origin_now", "departure_delay", "departed", "1h"),
    "origin_departure_delay_minutes_3h": _mean("origin_now", "departure_delay", "departed", "3h"),
    "origin_departed_late_share_3h": _mean("origin_now", "departed_late", "departed", "3h"),
    "origin_cancelled_3h": "origin_now_cancelled_3h",
    "origin_overdue_3h": "due_due_3h - origin_now_departed_3h - origin_now_cancelled_3h",
    "origin_arrival_delay_minutes_3h": _mean("origin_now", "arrival_delay", "arrived", "3h"),
    "all_arrival_delay_minutes_3h": _mean("all_now", "arrival_delay", "arrived", "3h"),
    "all_departed_late_share_3h": _mean("all_now", "departed_late", "departed", "3h"),
    "carrier_departure_delay_minutes_3h": _mean("carrier_now", "departure_delay", "departed", "3h"),
    "carrier_origin_departure_delay_minutes_3h": _mean("carrier_origin_now", "departure_delay", "departed", "3h"),
    "dest_arrival_delay_minutes_6h": _mean("dest_now", "arrival_delay", "arrived", "6h"),
    # The plane.
    "tail_last_delay_minutes": "case plane_last.kind when 'arrived' then plane_last.arrival_delay "
    "when 'departed' then plane_last.departure_delay end",
    "tail_hours_since_last_movement": _hours("prediction_time", "plane_last.known_at"),
    "tail_last_from_here": "cast(plane_last.origin = origin as bigint)",
    "tail_in_the_air": "cast(plane_last.kind = 'departed' as bigint)",
    "previous_leg_gap_hours": _hours("event_time", "leg.scheduled_arrival"),
    "previous_leg_delay_minutes": "coalesce(leg.arrival_delay, leg.departure_delay)",
    "previous_leg_overdue_hours": "case when leg.departure_delay is null and leg.cancelled = 0 "
    f"then greatest(0, {_hours('prediction_time', 'leg.scheduled_departure')}) "
    "when leg is not null then 0 end",
}

_REQUEST = (
    RequestField(
        name="carrier", kind="varchar", pattern="[A-Z0-9]{2}", meaning="IATA code of the airline.", example="UA"
    ),
    RequestField(
        name="flight",
        kind="bigint",
        minimum=1,
        maximum=9999,
        meaning="Flight number, without its carrier.",
        example=1545,
    ),
    RequestField(
        name="tailnum",
        kind="varchar",
        required=False,
        pattern="[A-Z0-9]{2,10}",
        meaning="Registration of the plane that is to fly; without it nothing is known of the plane.",
        example="N14228",
    ),
    RequestField(name="origin", kind="varchar", pattern="[A-Z]{3}", meaning="IATA code it leaves from.", example="EWR"),
    RequestField(name="dest", kind="varchar", pattern="[A-Z]{3}", meaning="IATA code it goes to.", example="IAH"),
    RequestField(
        name="scheduled_departure",
        kind="timestamp",
        meaning="When it is to leave; the prediction is made for two hours before.",
        example="2013-03-01T10:15:00Z",
    ),
    RequestField(
        name="scheduled_arrival", kind="timestamp", meaning="When it is to arrive.", example="2013-03-01T14:19:00Z"
    ),
)

FLIGHTS = FeatureSet(
    name="flights",
    sources=_SOURCES,
    # A month of movements, a day for those told late, and two for those of flights entered days before they left.
    look_back=timedelta(days=33),
    request=_REQUEST,
    steps=_STEPS,
    lookups=_LOOKUPS,
    point_sql=_POINT,
    windows=_WINDOWS,
    joined=(
        Preceding(
            prefix="leg",
            stream="legs",
            key=("tailnum",),
            span="24 hours",
            fields=(
                "scheduled_departure",
                "scheduled_arrival",
                "carrier",
                "flight",
                "origin",
                "departure_delay",
                "arrival_delay",
                "cancelled",
            ),
        ),
    ),
    numeric_sql=_NUMERIC,
    categorical_sql={"carrier": "carrier", "origin": "origin", "dest": "dest", "weekday": "dayname(local_departure)"},
)
