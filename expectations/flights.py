"""What good data is for late arrivals: schedules, movements, weather, planes, airports and airlines.

Bounds come from the year 2013 (in comments: the extremes seen), with room to spare: for broken rows, not rare ones.
"""

from expectations.vocabulary import DeclaredColumn, Suite, between, expect_rows, matching, not_before

TEXT = DeclaredColumn(kind="text", nullable=False)
INTEGER = DeclaredColumn(kind="integer", nullable=False)
FLOAT = DeclaredColumn(kind="float", nullable=False)
TIMESTAMP = DeclaredColumn(kind="timestamp", nullable=False)
OPTIONAL_TEXT = DeclaredColumn(kind="text", nullable=True)
OPTIONAL_INTEGER = DeclaredColumn(kind="integer", nullable=True)
OPTIONAL_FLOAT = DeclaredColumn(kind="float", nullable=True)

AIRPORT = r"^[A-Z]{3}$"
CARRIER = r"^[A-Z0-9]{2}$"
TAIL = r"^[A-Z][A-Z0-9]{1,5}$"  # N10156; also D942DN

FLIGHT_KEY = (
    matching("carrier", CARRIER, "a carrier is a two-character IATA code"),
    between("flight", 1, 9999, "a flight number has one to four digits"),  # 1 .. 8500
    matching("origin", AIRPORT, "an airport is a three-letter IATA code"),
)

SUITES = {
    "flights": Suite(
        columns={
            "carrier": TEXT,
            "flight": INTEGER,
            "tailnum": OPTIONAL_TEXT,  # null for many that were cancelled later: a leak, which the features neutralise
            "origin": TEXT,
            "dest": TEXT,
            "scheduled_departure": TIMESTAMP,
            "scheduled_arrival": TIMESTAMP,
            "distance_miles": FLOAT,
            "known_at": TIMESTAMP,
        },
        expects=(
            *FLIGHT_KEY,
            matching("dest", AIRPORT, "an airport is a three-letter IATA code"),
            matching("tailnum", TAIL, "a tail number is a letter and up to five letters or digits"),
            between(
                "distance_miles", 1, 6000, "a flight covers a positive distance within reach of an airliner"
            ),  # 17 .. 4983
            not_before("scheduled_arrival", "scheduled_departure", "a flight cannot be due before it leaves"),
            not_before(
                "scheduled_departure",
                "known_at",
                "a schedule known only after its departure is of no use to a forecast",
            ),
        ),
        fresh_hours=6,
        plausible_hours={"scheduled_departure": (0, 7 * 24), "scheduled_arrival": (0, 8 * 24)},
    ),
    "movements": Suite(
        columns={
            "carrier": TEXT,
            "flight": INTEGER,
            "origin": TEXT,
            "scheduled_departure": TIMESTAMP,
            "kind": TEXT,
            "occurred_at": TIMESTAMP,
            "delay_minutes": OPTIONAL_FLOAT,
            "known_at": TIMESTAMP,
        },
        expects=(
            *FLIGHT_KEY,
            expect_rows(
                "ExpectColumnValuesToBeInSet",
                "a movement is a departure, an arrival, a cancellation or a diversion",
                column="kind",
                value_set=["departed", "arrived", "cancelled", "diverted"],
            ),
            between(
                "delay_minutes", -180, 2880, "a delay lies between three hours early and two days late"
            ),  # -86 .. 1301
            not_before(
                "known_at", "occurred_at", "a movement cannot be known before it happened: a timestamp in the future"
            ),
        ),
        fresh_hours=6,
        plausible_hours={"occurred_at": (48, 0), "scheduled_departure": (72, 24)},
    ),
    "weather": Suite(
        # Measurements may be missing: weather is optional, and monitoring judges how much of it is.
        columns={
            "origin": TEXT,
            "observed_at": TIMESTAMP,
            "temp_f": OPTIONAL_FLOAT,
            "dewpoint_f": OPTIONAL_FLOAT,
            "humidity": OPTIONAL_FLOAT,
            "wind_dir_deg": OPTIONAL_FLOAT,
            "wind_speed_mph": OPTIONAL_FLOAT,
            "wind_gust_mph": OPTIONAL_FLOAT,
            "precip_in": OPTIONAL_FLOAT,
            "pressure_mb": OPTIONAL_FLOAT,
            "visibility_miles": OPTIONAL_FLOAT,
            "known_at": TIMESTAMP,
        },
        expects=(
            matching("origin", AIRPORT, "an airport is a three-letter IATA code"),
            between("temp_f", -60, 130, "no airport is colder than -60 or hotter than 130 F"),  # 10.94 .. 100.04
            between("dewpoint_f", -90, 100, "a dew point lies between -90 and 100 F"),  # -9.94 .. 78.08
            between("humidity", 0, 100, "relative humidity is a percentage"),  # 12.74 .. 100
            between("wind_dir_deg", 0, 360, "a direction lies on the compass"),
            between(
                "wind_speed_mph", 0, 200, "no sustained wind above 200 mph was ever measured at an airport"
            ),  # .. 1048: broken
            between("wind_gust_mph", 0, 260, "the strongest gust ever measured was 253 mph"),  # 16.1 .. 66.7
            between("precip_in", 0, 15, "no hour of rain ever exceeded 15 inches"),  # 0 .. 1.21
            between("pressure_mb", 850, 1100, "sea-level pressure has never left 870 .. 1085 mb"),  # 983.8 .. 1042.1
            between("visibility_miles", 0, 100, "visibility lies between 0 and 100 miles"),  # 0 .. 10
            not_before(
                "known_at",
                "observed_at",
                "an observation cannot be known before it was made: a timestamp in the future",
            ),
        ),
        fresh_hours=6,
        plausible_hours={"observed_at": (24, 0)},
    ),
    "planes": Suite(
        columns={
            "tailnum": TEXT,
            "year": OPTIONAL_INTEGER,
            "type": TEXT,
            "manufacturer": TEXT,
            "model": TEXT,
            "engines": INTEGER,
            "seats": INTEGER,
            "speed": OPTIONAL_FLOAT,
            "engine": TEXT,
            "known_at": TIMESTAMP,
        },
        expects=(
            matching("tailnum", TAIL, "a tail number is a letter and up to five letters or digits"),
            between("year", 1920, 2100, "no airliner in service was built before 1920"),  # 1956 .. 2013
            between("engines", 1, 8, "an airplane has one to eight engines"),  # 1 .. 4
            between("seats", 1, 900, "an airplane seats 1 to 900"),  # 2 .. 450
            between("speed", 1, 2000, "a cruising speed lies between 1 and 2000 mph"),  # 90 .. 432
        ),
        fresh_hours=None,
        plausible_hours={},
    ),
    "airports": Suite(
        columns={
            "faa": TEXT,
            "name": TEXT,
            "lat": FLOAT,
            "lon": FLOAT,
            "alt_ft": INTEGER,
            "tz_offset": INTEGER,
            "dst": TEXT,
            "tzone": OPTIONAL_TEXT,
            "known_at": TIMESTAMP,
        },
        expects=(
            matching("faa", r"^[A-Z0-9]{3,4}$", "an FAA location identifier has three or four letters or digits"),
            between("lat", -90, 90, "a latitude lies on the globe"),
            between("lon", -180, 180, "a longitude lies on the globe"),
            between("alt_ft", -1500, 20000, "an airport lies between the Dead Sea and the Himalaya"),  # -54 .. 9078
            between("tz_offset", -12, 14, "time zones run from UTC-12 to UTC+14"),  # -10 .. 8
            expect_rows(
                "ExpectColumnValuesToBeInSet", "daylight saving is A, U or N", column="dst", value_set=["A", "U", "N"]
            ),
        ),
        fresh_hours=None,
        plausible_hours={},
    ),
    "airlines": Suite(
        columns={"carrier": TEXT, "name": TEXT, "known_at": TIMESTAMP},
        expects=(matching("carrier", CARRIER, "a carrier is a two-character IATA code"),),
        fresh_hours=None,
        plausible_hours={},
    ),
}
