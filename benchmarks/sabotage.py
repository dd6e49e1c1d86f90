"""Made-up faults of a feed, done to one feature of a real partition, or to every feature that comes from one table."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import FeatureSet
from features.step_tables import list_sources_read
from tasks.monitor.broken.columns import Columns

Floats = NDArray[np.float64]
Random = np.random.Generator

_LEAST_CHANGED = 0.05  # of a feature's values
_LOST, _ENCODED = 0.25, 0.25  # shares of the rows
# What a feature's name says of its unit, and what another unit makes of it.
_UNITS: Mapping[str, tuple[float, float]] = {
    "spread_f": (5 / 9, 0.0),
    "temp_f": (5 / 9, -160 / 9),
    "mph": (0.44704, 0.0),
    "precip_in": (25.4, 0.0),
    "_mb": (1 / 33.8639, 0.0),
    "miles": (1.609344, 0.0),
    "_km": (1 / 1.609344, 0.0),
    "minute": (60.0, 0.0),
    "pace": (1 / 1.609344, 0.0),
    "hours": (60.0, 0.0),
    "years": (12.0, 0.0),
    "rate": (100.0, 0.0),
    "share": (100.0, 0.0),
    "humidity": (0.01, 0.0),
}
_SCALES = (10.0, 0.1, 100.0, 0.01, 1000.0, 0.001)


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """A fault that was done, to which features, and the partition as it is then."""

    kind: str
    target: str
    columns: Columns


def find_tables(definition: FeatureSet) -> dict[str, frozenset[str]]:
    """Feature -> the tables that it comes from, but for those that say of which event it is."""
    reads = {name: made_of & definition.sources.keys() for name, made_of in list_sources_read(definition).items()}
    windows = {f"{window.prefix}_": window.stream for window in definition.windows}
    streams = windows | {joined.prefix: joined.stream for joined in definition.joined}
    points: dict[str, set[str]] = {}
    for column, sql in definition.point_sql.items():
        used = [lookup for name, lookup in definition.lookups.items() if f"{name}." in sql]
        points[column] = {table for lookup in used for table in reads[lookup.stream]}
    found = {}
    for name, sql in {**definition.numeric_sql, **definition.categorical_sql}.items():
        tables: set[str] = set()
        for word in re.findall(r"\w+", sql):
            prefixes = [p for p in streams if word == p or (p in windows and word.startswith(p))]
            tables |= reads[streams[max(prefixes, key=len)]] if prefixes else points.get(word, set())
        found[name] = frozenset(tables - reads["asked"] or reads["asked"])
    return found


def _set(columns: Columns, name: str, values: NDArray[Any]) -> Columns:
    if name in columns.numbers:
        return replace(columns, numbers={**columns.numbers, name: np.asarray(values, np.float64)})
    return replace(columns, texts={**columns.texts, name: np.asarray(values, np.object_)})


def _get(columns: Columns, name: str) -> NDArray[Any]:
    return columns.numbers[name] if name in columns.numbers else columns.texts[name]


def _freeze(now: Columns, before: Columns, name: str, _rng: Random) -> Columns:
    """The last value of the partition before, again and again."""
    there = _get(before, name)[~before.missing(name)]
    return _set(now, name, np.full(now.rows, there[-1]))


def _lag(now: Columns, before: Columns, name: str, rng: Random) -> Columns:
    """The values of a seventh, half or all of a partition before."""
    rows = int(rng.choice([now.rows // 7, now.rows // 2, min(now.rows, before.rows)]))
    both = np.concatenate([_get(before, name), _get(now, name)])
    return _set(now, name, both[before.rows - rows :][: now.rows])


def _lose(now: Columns, _before: Columns, name: str, rng: Random) -> Columns:
    """A quarter of the values."""
    left = _get(now, name).copy()
    left[rng.random(now.rows) < _LOST] = np.nan if name in now.numbers else None
    return _set(now, name, left)


def _convert(now: Columns, _before: Columns, name: str, _rng: Random) -> Columns:
    """Another unit."""
    factor, summand = next((unit for word, unit in _UNITS.items() if word in name), (100.0, 0.0))
    return _set(now, name, now.numbers[name] * factor + summand)


def _scale(now: Columns, _before: Columns, name: str, rng: Random) -> Columns:
    """A power of ten off."""
    return _set(now, name, now.numbers[name] * rng.choice(_SCALES))


def _double(now: Columns, _before: Columns, name: str, _rng: Random) -> Columns:
    """Everything counted twice."""
    return _set(now, name, now.numbers[name] * 2)


def _swap(now: Columns, _before: Columns, name: str, rng: Random) -> Columns:
    """Two columns mistaken for each other."""
    alike = now.numbers if name in now.numbers else now.texts
    other = str(rng.choice([each for each in alike if each != name]))
    return _set(_set(now, name, _get(now, other)), other, _get(now, name))


def _encode(now: Columns, _before: Columns, name: str, rng: Random) -> Columns:
    """Texts written otherwise, or permuted; numbers of the other sign, or with a value for what is not known."""
    if name in now.texts:
        values = now.texts[name]
        names = sorted({value for value in values if value is not None})
        others: dict[str, Sequence[str]] = {
            "lower": [value.lower() for value in names],
            "blank": [f"{value} " for value in names],
            "number": [str(number) for number in range(len(names))],
            "permuted": [*names[1:], names[0]],
        }
        written = dict(zip(names, others[str(rng.choice([*others]))], strict=True))
        return _set(now, name, np.array([written.get(value) for value in values], np.object_))
    how = str(rng.choice(["sign", "-1", "-999", "0"]))
    numbers = now.numbers[name]
    changed = -numbers if how == "sign" else np.where(rng.random(now.rows) < _ENCODED, float(how), numbers)
    return _set(now, name, changed)


Fault = Callable[[Columns, Columns, str, Random], Columns]
FAULTS: Mapping[str, Fault] = {
    "frozen": _freeze, "unit": _convert, "scale": _scale, "swapped": _swap, "lagged": _lag, "partly lost": _lose,
    "doubled": _double, "encoded": _encode,
}  # fmt: skip
_OF_NUMBERS = frozenset({"unit", "scale", "doubled"})
_OF_TABLES = ("frozen", "lagged", "partly lost")


def sabotage_features(now: Columns, before: Columns, each: int, rng: Random) -> Iterator[Sabotage]:
    """So many faults of every kind, each of one feature that is drawn."""
    for kind, fault in FAULTS.items():
        names = [*now.numbers, *(() if kind in _OF_NUMBERS else now.texts)]
        for name in rng.choice(names, min(each, len(names)), replace=False):
            columns = fault(now, before, str(name), rng)
            if _has_changed(now, columns):
                yield Sabotage(kind=kind, target=str(name), columns=columns)


def sabotage_tables(
    now: Columns, before: Columns, tables: Mapping[str, frozenset[str]], rng: Random
) -> Iterator[Sabotage]:
    """Every feature of one table frozen, lagged, or lost in the same rows."""
    for table in sorted({table for some in tables.values() for table in some}):
        names = [name for name, some in tables.items() if table in some]
        for kind in _OF_TABLES:
            columns, seed = now, int(rng.integers(1 << 30))
            for name in names:
                columns = FAULTS[kind](columns, before, name, np.random.default_rng(seed))
            if _has_changed(now, columns):
                yield Sabotage(kind=kind, target=f"table {table}", columns=columns)


def _has_changed(before: Columns, after: Columns) -> bool:
    """Whether a twentieth of some feature's values are others: else nothing was done to speak of."""
    shares = [
        float((~((a == b) | ((a != a) & (b != b)))).mean())  # noqa: PLR0124  # NaN
        for a, b in ((_get(before, name), _get(after, name)) for name in (*before.numbers, *before.texts))
    ]
    return max(shares) >= _LEAST_CHANGED
