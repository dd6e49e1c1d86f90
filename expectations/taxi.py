"""What good data is for trip durations: trips as they begin, how they ended, and the calendar of holidays.

Bounds come from 360,000 trips of 2018 to 2020, with room to spare: for broken rows, not rare ones. A vendor and a
number of passengers may be missing: monitoring judges how many are, and pages where a feed broke.
"""

from expectations.vocabulary import DeclaredColumn, Suite, between, matching, not_before

_TEXT = DeclaredColumn(kind="text", nullable=False)
_INTEGER = DeclaredColumn(kind="integer", nullable=False)
_TIMESTAMP = DeclaredColumn(kind="timestamp", nullable=False)
_OPTIONAL_INTEGER = DeclaredColumn(kind="integer", nullable=True)
_IDENTITY = matching("trip_id", r"^\d{4}-\d{2}-\d{5}$", "a trip is called by its month and its place in it")

SUITES = {
    "trips": Suite(
        columns={
            "trip_id": _TEXT,
            "vendor_id": _OPTIONAL_INTEGER,
            "pickup_at": _TIMESTAMP,
            "pickup_zone": _INTEGER,
            "dropoff_zone": _INTEGER,
            "passenger_count": _OPTIONAL_INTEGER,
            "known_at": _TIMESTAMP,
        },
        expects=(
            _IDENTITY,
            between("vendor_id", 1, 9, "a vendor has a number of one digit"),  # 1, 2 and 4
            between("pickup_zone", 1, 265, "New York has 263 taxi zones; 264 and 265 are unknown and outside"),
            between("dropoff_zone", 1, 265, "New York has 263 taxi zones; 264 and 265 are unknown and outside"),
            between("passenger_count", 0, 9, "a cab takes nine at most"),  # 0 .. 9
        ),
        fresh_hours=24,
        plausible_hours={"pickup_at": (1, 1)},
    ),
    "dropoffs": Suite(
        columns={
            "trip_id": _TEXT,
            "pickup_at": _TIMESTAMP,
            "dropoff_at": _TIMESTAMP,
            "trip_minutes": DeclaredColumn(kind="float", nullable=False),
            "trip_miles": DeclaredColumn(kind="float", nullable=True),
            "known_at": _TIMESTAMP,
        },
        expects=(
            _IDENTITY,
            not_before("dropoff_at", "pickup_at", "a trip cannot end before it begins: a broken clock"),
            # A meter that was forgotten runs for a day; one that was touched by mistake, for seconds.
            between("trip_minutes", 1, 180, "a trip within reach of a cab takes a minute to three hours"),
            between("trip_miles", 0, 150, "a cab leaves the city by a hundred miles at most"),
        ),
        fresh_hours=24,
        plausible_hours={"pickup_at": (48, 1), "dropoff_at": (48, 1)},
    ),
    "holidays": Suite(
        columns={"day": DeclaredColumn(kind="date", nullable=False), "name": _TEXT, "known_at": _TIMESTAMP},
        expects=(),
        fresh_hours=None,
        plausible_hours={},
    ),
}
