"""Taxi trips for tests: the real ones where `make taxi-data` was run, and a made sample of the same columns."""

from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from infra.replay.fetch_taxi import FOLDER, load_trips, read_kept
from infra.replay.taxi_source import make_tables

FIRST = datetime(2018, 1, 1, tzinfo=UTC)
needs_trips = pytest.mark.skipif(
    read_kept(FOLDER) is None, reason="the taxi trips are not on this machine: `make taxi-data` fetches them once"
)


@cache
def made_tables(trips: int = 4000, days: int = 42) -> dict[str, pa.Table]:
    """Made trips among a few zones, on roads that are slow in the afternoon; some without vendor or passengers."""
    draw = np.random.default_rng(7)
    pickup = np.sort(draw.integers(5 * 3600, days * 86400, trips)) * 1_000_000
    zones = draw.integers(1, 9, (2, trips))
    miles = np.round(np.abs(zones[0] - zones[1]) * 0.8 + draw.gamma(4, 0.2, trips), 2)
    hour = pickup // 3_600_000_000 % 24
    minutes = miles * np.where(hour >= 19, 6.0, 4.0) * draw.lognormal(0, 0.2, trips)
    minutes[::97] = 1400  # a meter that was forgotten
    start = int(FIRST.timestamp() * 1e6)
    seconds = np.round(minutes * 60).astype(np.int64)
    missing = draw.random(trips) < 0.03
    return make_tables(
        pa.table(
            {
                "trip_id": [f"2018-01-{number:05}" for number in range(trips)],
                "vendor_id": pa.array(draw.integers(1, 3, trips), mask=missing),
                "pickup_at": pa.array(start + pickup).cast(pa.timestamp("us", "UTC")),
                "dropoff_at": pa.array(start + pickup + seconds * 1_000_000).cast(pa.timestamp("us", "UTC")),
                "pickup_zone": zones[0],
                "dropoff_zone": zones[1],
                "passenger_count": pa.array(draw.integers(0, 5, trips), mask=missing),
                "trip_miles": miles,
            }
        )
    )


@cache
def real_tables() -> dict[str, pa.Table]:
    """All of the real ones."""
    return make_tables(load_trips())


def day(number: int) -> datetime:
    """The midnight with which a day begins, counted from 0."""
    return FIRST + timedelta(days=number)
