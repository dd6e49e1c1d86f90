"""What is known as a taxi trip begins: where from and to, the clock and the calendar, and how trips went lately.

Where it is to go is what the passenger says. How far it went, what it cost and how it was paid are known at its end
only: of this trip they are no features, of trips that have ended they make the pace.
"""

from datetime import timedelta

from features.engine import FeatureSet
from features.request import RequestField
from features.vocabulary import Window, declare_source, known_at_sql, local_time_sql, versions_sql

_CLOCK = "'America/New_York'"
_LONGEST_MINUTES = 180  # a meter that ran for longer was forgotten, and says nothing of the trip
_LEAST_MILES, _MOST_MILES = 0.1, 60  # what is counted as a distance driven

_SOURCES = {
    "trips": declare_source(
        varchar="trip_id",
        bigint="vendor_id pickup_zone dropoff_zone passenger_count",
        timestamp="pickup_at known_at",
        grain="trip_id",
    ),
    "dropoffs": declare_source(
        varchar="trip_id", double="trip_minutes trip_miles", timestamp="known_at", grain="trip_id"
    ),
    "holidays": declare_source(varchar="name", date="day", timestamp="known_at", grain="day"),
}

_STEPS = {
    # A trip that is told again is a version: each holds until the next becomes known.
    "entries": versions_sql("trips", "trip_id"),
    "asked": f"""
        select trip_id, vendor_id, pickup_at, pickup_zone, dropoff_zone, passenger_count, prediction_time
        from (select *, pickup_at - {{lead}} as prediction_time from entries) p
        where prediction_time >= {{start}} and prediction_time < {{end}} and {known_at_sql("p", "prediction_time")}
            and known_at >= prediction_time - interval 7 days
    """,
    # How a trip went, from when it had ended and its entry was known. A broken meter has no outcome.
    "tellings": f"""
        select e.trip_id, e.pickup_zone, e.dropoff_zone, e.pickup_at, d.trip_minutes, d.trip_miles,
            d.known_at as told_at, greatest(d.known_at, e.known_at) as known_at
        from dropoffs d
        join entries e on e.trip_id = d.trip_id and (e.known_until is null or d.known_at < e.known_until)
            and (e.is_first or e.known_at <= d.known_at)
        where d.known_at < {{end}} and d.trip_minutes >= 1 and d.trip_minutes <= {_LONGEST_MINUTES}
    """,
    # It counts once, from when it was first told.
    "counted": """
        select *, row_number() over (partition by trip_id order by known_at, told_at, trip_minutes, trip_miles) as place
        from tellings
    """,
    # Sums are of whole numbers: seconds, and hundredths of a mile. `paced` trips have a distance that can be believed.
    "outcomes": f"""
        select pickup_zone, dropoff_zone, least(pickup_zone, dropoff_zone) as zone_low,
            greatest(pickup_zone, dropoff_zone) as zone_high, known_at,
            hour({local_time_sql(_CLOCK, "pickup_at")}) as local_hour,
            dayname({local_time_sql(_CLOCK, "pickup_at")}) as weekday,
            cast(1 as bigint) as seen, cast(round(trip_minutes * 60) as bigint) as seconds,
            cast(is_paced as bigint) as paced,
            case when is_paced then cast(round(trip_minutes * 60) as bigint) else 0 end as paced_seconds,
            case when is_paced then cast(round(trip_miles * 100) as bigint) else 0 end as hundredths
        from (
            select *, coalesce(trip_miles between {_LEAST_MILES} and {_MOST_MILES}, false) as is_paced
            from counted where place = 1
        )
    """,
    "calendar": "select day as local_day, known_at, cast(1 as bigint) as named from holidays",
    "labels": """
        select trip_id as entity_key, pickup_at as event_time, trip_minutes as label, known_at as label_time
        from (
            select *, row_number() over (partition by trip_id, known_at order by told_at desc, trip_minutes) as place
            from tellings where known_at >= {start} and known_at < {end}
        ) where place = 1
    """,
}

_LOCAL = local_time_sql(_CLOCK, "asked.pickup_at")
_POINT = {
    "entity_key": "asked.trip_id",
    "event_time": "asked.pickup_at",
    "prediction_time": "asked.prediction_time",
    "vendor_id": "asked.vendor_id",
    "passenger_count": "asked.passenger_count",
    "pickup_zone": "asked.pickup_zone",
    "dropoff_zone": "asked.dropoff_zone",
    "zone_low": "least(asked.pickup_zone, asked.dropoff_zone)",
    "zone_high": "greatest(asked.pickup_zone, asked.dropoff_zone)",
    "local_pickup": _LOCAL,
    "local_hour": f"hour({_LOCAL})",
    "weekday": f"dayname({_LOCAL})",
    "local_day": f"date_trunc('day', {_LOCAL})",
}

_SUMS = ("seen", "seconds", "paced", "paced_seconds", "hundredths")


def _history(prefix: str, *key: str, spans: tuple[str, ...], absent: str | None = None) -> Window:
    return Window(prefix=prefix, stream="outcomes", key=key, spans=spans, sums=_SUMS, absent=absent)


_WINDOWS = (
    _history("all", spans=("3 hours", "7 days", "28 days", "182 days")),
    _history("hour", "local_hour", spans=("14 days",)),
    _history("hour_of_week", "local_hour", "weekday", spans=("56 days",)),
    _history("pickup", "pickup_zone", spans=("28 days", "91 days"), absent="no trips from zone {pickup_zone}"),
    _history("dropoff", "dropoff_zone", spans=("28 days", "91 days"), absent="no trips to zone {dropoff_zone}"),
    _history("pair", "pickup_zone", "dropoff_zone", spans=("28 days", "91 days", "182 days")),
    # As far as it is there, it is back.
    _history("lane", "zone_low", "zone_high", spans=("182 days",)),
    # Entered four weeks before the day; a day later it is known for 29 days.
    Window(prefix="holiday", stream="calendar", key=("local_day",), spans=("31 days",), sums=("named",)),
)


def _minutes(prefix: str, span: str) -> str:
    """Mean minutes of a trip."""
    return f"{prefix}_seconds_{span} / nullif({prefix}_seen_{span}, 0) / 60.0"


def _miles(prefix: str, span: str) -> str:
    """Mean miles of a trip."""
    return f"{prefix}_hundredths_{span} / nullif({prefix}_paced_{span}, 0) / 100.0"


def _pace(prefix: str, span: str) -> str:
    """Minutes a mile."""
    return f"{prefix}_paced_seconds_{span} / nullif({prefix}_hundredths_{span}, 0) * 100.0 / 60.0"


_NUMERIC = {
    "pickup_minute_of_day": "hour(local_pickup) * 60 + minute(local_pickup)",
    "is_holiday": "least(holiday_named_31d, 1.0)",
    # Nobody rides without a passenger: 0 is what a driver leaves who does not count.
    "passenger_count": "nullif(passenger_count, 0)",
    "all_minutes_7d": _minutes("all", "7d"),
    "all_pace_3h": _pace("all", "3h"),
    "all_pace_7d": _pace("all", "7d"),
    "all_pace_28d": _pace("all", "28d"),
    "hour_pace_14d": _pace("hour", "14d"),
    "hour_of_week_pace_56d": _pace("hour_of_week", "56d"),
    "pickup_minutes_28d": _minutes("pickup", "28d"),
    "pickup_miles_91d": _miles("pickup", "91d"),
    "pickup_pace_28d": _pace("pickup", "28d"),
    "dropoff_minutes_28d": _minutes("dropoff", "28d"),
    "dropoff_miles_91d": _miles("dropoff", "91d"),
    "dropoff_pace_28d": _pace("dropoff", "28d"),
    "pair_minutes_28d": _minutes("pair", "28d"),
    "pair_minutes_91d": _minutes("pair", "91d"),
    "pair_trips_91d": "pair_seen_91d",
    "lane_miles_182d": _miles("lane", "182d"),
    # What the way took on average, at the pace of the last week; and its length, at the pace of the hour.
    "pair_minutes_at_recent_pace": f"{_minutes('pair', '182d')} * ({_pace('all', '7d')}) / ({_pace('all', '182d')})",
    "lane_minutes_at_hours_pace": f"{_miles('lane', '182d')} * ({_pace('hour', '14d')})",
    "lane_minutes_at_hour_of_weeks_pace": f"{_miles('lane', '182d')} * ({_pace('hour_of_week', '56d')})",
}

_REQUEST = (
    RequestField(
        name="trip_id", kind="varchar", pattern="[A-Za-z0-9-]{1,40}", meaning="What the trip is called.",
        example="2019-03-00042",
    ),
    RequestField(
        name="vendor_id", kind="bigint", required=False, minimum=1, maximum=99,
        meaning="Whose meter it is.", example=2,
    ),
    RequestField(
        name="pickup_at", kind="timestamp", meaning="When the trip begins; the prediction is made for that moment.",
        example="2019-03-01T13:15:00Z",
    ),
    RequestField(
        name="pickup_zone", kind="bigint", minimum=1, maximum=999, meaning="Taxi zone it begins in.", example=161
    ),
    RequestField(
        name="dropoff_zone", kind="bigint", minimum=1, maximum=999, meaning="Taxi zone it is to go to.", example=237
    ),
    RequestField(
        name="passenger_count", kind="bigint", required=False, minimum=0, maximum=99,
        meaning="Passengers, as the driver enters them.", example=1,
    ),
)  # fmt: skip

TAXI = FeatureSet(
    name="taxi",
    sources=_SOURCES,
    # Half a year of outcomes, and a week for what was told late.
    look_back=timedelta(days=182 + 7),
    request=_REQUEST,
    steps=_STEPS,
    lookups={},
    point_sql=_POINT,
    windows=_WINDOWS,
    joined=(),
    numeric_sql=_NUMERIC,
    categorical_sql={
        "pickup_zone": "cast(pickup_zone as varchar)",
        "dropoff_zone": "cast(dropoff_zone as varchar)",
        "vendor": "cast(vendor_id as varchar)",
        "weekday": "weekday",
    },
)
