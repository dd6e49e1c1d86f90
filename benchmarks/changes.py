"""Fifty made-up changes of the world of flights, each by a stated mechanism, done to the features of one partition.

What a feature can take stays what it can take: values are moved among those that were there before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.monitor.broken.columns import Columns

Floats = NDArray[np.float64]
Random = np.random.Generator
Mechanism = Callable[[Columns, Random, float], Columns]

_DELAYS = ("delay_minutes",)
_LATE = ("late_rate", "late_share", "cancel_rate")
_COUNTS = ("flights_30d", "flights_7d", "scheduled_same_hour", "cancelled_3h", "overdue")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mechanism at a strength, and what is right to do about it; a block never is."""

    name: str
    strength: float
    mechanism: Mechanism
    right: frozenset[str]


def apply(change: Change, now: Columns, past: Sequence[Columns], rng: Random) -> Columns:
    """The partition as it is after the change."""
    changed = change.mechanism(now, rng, change.strength)
    return replace(changed, numbers={name: _snap(values, name, past) for name, values in changed.numbers.items()})


def _snap(values: Floats, name: str, past: Sequence[Columns]) -> Floats:
    seen = np.unique(np.concatenate([columns.numbers[name] for columns in past]))
    seen = seen[~np.isnan(seen)]
    above = np.clip(np.searchsorted(seen, values), 1, len(seen) - 1)
    nearest = np.where(np.abs(seen[above] - values) < np.abs(seen[above - 1] - values), seen[above], seen[above - 1])
    return np.where(np.isnan(values), np.nan, np.where((values < seen[0]) | (values > seen[-1]), values, nearest))


def _named(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def _numbers(now: Columns, of: Mapping[str, Floats]) -> Columns:
    return replace(now, numbers={**now.numbers, **of})


def _take(now: Columns, rows: NDArray[np.intp], partition_rows: int) -> Columns:
    return Columns(
        numbers={name: values[rows] for name, values in now.numbers.items()},
        texts={name: values[rows] for name, values in now.texts.items()},
        clock=now.clock[rows],
        partition_rows=partition_rows,
    )


def _weigh(now: Columns, rng: Random, weights: Floats) -> Columns:
    """Some kinds of flights oftener, others more seldom."""
    rows = np.sort(rng.choice(now.rows, now.rows, p=weights / weights.sum()))
    return _take(now, rows, now.partition_rows)


def disrupt(now: Columns, rng: Random, factor: float) -> Columns:
    """Delays grow by a factor, another each day; what is late or cancelled by its odds."""
    days = rng.lognormal(0, 0.15, 7)
    grown = factor * days[np.arange(now.rows) * 7 // now.rows] * rng.lognormal(0, 0.1, now.rows)
    found: dict[str, Floats] = {}
    for name, values in now.numbers.items():
        if _named(name, _DELAYS):
            found[name] = np.where(values > 0, values * grown, values + 3 * (grown - 1))
        elif _named(name, _LATE):
            share = np.clip(values, 1e-4, 0.995)
            odds = share / (1 - share) * grown
            found[name] = odds / (1 + odds)
        elif _named(name, ("cancelled_3h", "overdue")):
            found[name] = np.where(values > 0, rng.poisson(np.maximum(np.nan_to_num(values), 0) * grown), values)
    return _numbers(now, found)


def thin(now: Columns, rng: Random, share: float) -> Columns:
    """Only a share of the flights is flown."""
    rows = np.sort(rng.choice(now.rows, int(now.rows * share), replace=False))
    fewer = _take(now, rows, int(now.partition_rows * share))
    found = {}
    for name, values in fewer.numbers.items():
        if _named(name, _COUNTS):
            there = ~np.isnan(values)
            found[name] = values.copy()
            found[name][there] = rng.binomial(np.maximum(values[there], 0).astype(int), share)
    return _numbers(fewer, found)


def without(column: str, value: str) -> Mechanism:
    """Hardly any flights of a carrier, or from an airport."""

    def close(now: Columns, rng: Random, left: float) -> Columns:
        return _weigh(now, rng, np.where(now.texts[column] == value, left, 1.0))

    return close


def lengthen(now: Columns, rng: Random, strength: float) -> Columns:
    """More long flights, or more short ones."""
    return _weigh(now, rng, np.exp(strength * (np.nan_to_num(now.numbers["distance_km"], nan=1000.0) - 1500) / 1000))


def shift_hours(now: Columns, rng: Random, strength: float) -> Columns:
    """More flights in the evening, or in the morning."""
    minutes = np.nan_to_num(now.numbers["departure_minute_of_day"], nan=700.0)
    return _weigh(now, rng, np.exp(strength * (minutes - 800) / 300))


def add_carrier(now: Columns, rng: Random, share: float) -> Columns:
    """Another carrier takes over a share of the flights, with planes of its own."""
    taken = rng.random(now.rows) < share
    texts = {**now.texts, "carrier": np.where(taken, "ZZ", now.texts["carrier"])}
    own = {
        "plane_age_years": rng.poisson(4, now.rows).astype(np.float64),
        "plane_seats": rng.choice([100.0, 149.0, 178.0, 189.0], now.rows),
    }
    changed = {name: np.where(taken, values, now.numbers[name]) for name, values in own.items()}
    return replace(_numbers(now, changed), texts=texts)


def warm(now: Columns, rng: Random, degrees: float) -> Columns:
    """Another season: temperature, and with it dryness."""
    return _numbers(
        now,
        {
            "temp_f": now.numbers["temp_f"] + degrees + rng.normal(0, 1, now.rows),
            "dewpoint_spread_f": now.numbers["dewpoint_spread_f"] * (1 + 0.02 * degrees),
            "humidity": np.clip(now.numbers["humidity"] - 0.4 * degrees, 10, 100),
        },
    )


def renew(now: Columns, rng: Random, years: float) -> Columns:
    """Younger and larger planes fly half of all flights."""
    renewed = rng.random(now.rows) < 0.5
    age, seats = now.numbers["plane_age_years"], now.numbers["plane_seats"]
    return _numbers(
        now,
        {
            "plane_age_years": np.where(renewed, np.maximum(age - years, 0), age),
            "plane_seats": np.where(renewed, seats * 1.1, seats),
        },
    )


def pad(now: Columns, rng: Random, factor: float) -> Columns:
    """Schedules are given more time, and delays become fewer."""
    gained = (factor - 1) * 100 * rng.uniform(0.7, 1.3, now.rows)
    found = {"planned_minutes": np.round(now.numbers["planned_minutes"] * factor / 5) * 5}
    for name, values in now.numbers.items():
        if _named(name, _DELAYS):
            found[name] = values - gained
        elif _named(name, _LATE):
            found[name] = values * (1 - 2 * (factor - 1))
    return _numbers(now, found)


_RETRAIN, _EITHER, _IGNORE = frozenset({"retrain"}), frozenset({"retrain", "ignore"}), frozenset({"ignore"})


def _at(name: str, mechanism: Mechanism, strengths: Mapping[float, frozenset[str]]) -> list[Change]:
    return [Change(name=name, strength=s, mechanism=mechanism, right=right) for s, right in strengths.items()]


CHANGES = (
    *_at("disrupted", disrupt, {1.3: _IGNORE, 1.6: _EITHER, 2.0: _EITHER, 2.5: _RETRAIN, 3.0: _RETRAIN, 4.0: _RETRAIN}),
    *_at("calm", disrupt, {0.7: _IGNORE, 0.5: _EITHER, 0.35: _RETRAIN, 0.25: _RETRAIN}),
    *_at("fewer flights", thin, {0.8: _IGNORE, 0.6: _EITHER, 0.5: _EITHER, 0.4: _EITHER, 0.3: _EITHER, 0.2: _EITHER}),
    *(c for v in ("UA", "B6", "EV", "DL", "AA") for c in _at(f"without {v}", without("carrier", v), {0.01: _RETRAIN})),
    *(c for v in ("EWR", "JFK", "LGA") for c in _at(f"without {v}", without("origin", v), {0.03: _RETRAIN})),
    *_at(
        "other lengths",
        lengthen,
        {-1.5: _RETRAIN, -1.0: _RETRAIN, -0.5: _EITHER, 0.3: _IGNORE, 0.6: _EITHER, 0.8: _RETRAIN},
    ),
    *_at("other hours", shift_hours, {-1.5: _EITHER, -1.0: _EITHER, -0.5: _IGNORE, 0.5: _IGNORE, 1.0: _EITHER}),
    *_at("another carrier", add_carrier, {0.1: _EITHER, 0.2: _RETRAIN, 0.3: _RETRAIN, 0.45: _RETRAIN}),
    *_at("another season", warm, {-15.0: _EITHER, -10.0: _EITHER, 8.0: _EITHER, 15.0: _EITHER}),
    *_at("another fleet", renew, {2.0: _IGNORE, 4.0: _EITHER, 6.0: _EITHER}),
    *_at("more time", pad, {1.06: _EITHER, 1.1: _EITHER, 1.15: _EITHER, 1.2: _EITHER}),
)
