"""Whether features still go with each other as they did: each beside what the others, and the clock, say of it.

Numbers as normal scores, whether they are missing, and the common values of texts are told from all others by one
ridge regression. Of each partition of the past, by what its other partitions taught, and of the one that is looked at:
by how much a feature rises with what is told of it (a slope, which no change in how often each kind of event happens
alters), how far it lies off on average, and how far it scatters. What differs between partitions of the past says how
much these may.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tasks.monitor.broken.columns import Columns, Floats, Scale, present

_RIDGE = 0.01
_VALUES = 12  # of a text that are told apart
_LEAST_SHARE = 0.01  # of a value, or of what is missing
_LEAST_SPREAD = 0.1  # of slopes, levels (in standard deviations) and log scatters: below it differences say nothing
_LEAST_TOLD = 0.05  # standard deviations
_FEW_PARTITIONS = 6
_FEWEST = 200  # rows


class _Kind(StrEnum):
    CLOCK = "clock"
    NUMBER = "number"
    MISSING = "missing"
    VALUE = "value"


# Of a variable that is the same nearly always: it is not far off for what seldom happens.
_LEAST_DEVIATIONS = {_Kind.CLOCK: 1e-3, _Kind.NUMBER: 0.2, _Kind.MISSING: 0.15, _Kind.VALUE: 1e-3}


@dataclass(frozen=True)
class _Variable:
    kind: _Kind
    feature: str = ""
    value: object = None  # of a text
    place: int = 0  # in the clock


@dataclass(frozen=True, kw_only=True)
class Strain:
    """How far a feature is from what the others say, as multiples of the farthest that it was in the past.

    Of a text the middle one of its values counts. `emptier` is how much oftener it is missing than the others say.
    """

    slope: float = 0.0
    level: float = 0.0
    scatter: float = 0.0
    emptier: float = 0.0

    @property
    def most(self) -> float:
        """The farthest of them."""
        return max(self.slope, self.level, self.scatter, self.emptier)


@dataclass(frozen=True)
class _Learnt:
    """What the past taught about the variables that are kept: their places, and of each [3] what is usual."""

    kept: NDArray[np.intp]
    coefficients: Floats
    usual: Floats
    spread: Floats


@dataclass
class Relations:
    """What the past says of how features go together."""

    past: Sequence[Columns]
    _scales: Mapping[str, Scale] = field(init=False)
    _known: Mapping[str, frozenset[object]] = field(init=False)
    _variables: Sequence[_Variable] = field(init=False)
    _learnt: dict[tuple[str, ...], _Learnt] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        first = self.past[0]
        every = {
            name: np.concatenate([present(columns.numbers[name]) for columns in self.past]) for name in first.numbers
        }
        self._scales = {name: Scale.of(values) for name, values in every.items() if len(values)}
        self._known = {name: frozenset().union(*(columns.texts[name] for columns in self.past)) for name in first.texts}
        self._variables = [*self._list_numbers(), *self._list_values()]
        encoded = [self._encode(columns) for columns in self.past]
        together = np.concatenate(encoded)
        self._mean, deviation = together.mean(0), together.std(0)
        least = np.array([_LEAST_DEVIATIONS[variable.kind] for variable in self._variables])
        self._deviation, self._varies = np.maximum(deviation, least), deviation >= least / 2
        self._blocks = [(block - self._mean) / self._deviation for block in encoded]
        self._products = [block.T @ block for block in self._blocks]

    def measure(self, now: Columns, without: tuple[str, ...] = ()) -> dict[str, Strain]:
        """The strain on each feature, but those `without`, which are not to be believed: neither told nor told by.

        Rows with a text that never was before say nothing of how others go together.
        """
        learnt = self._learn(without)
        rows = self._have_known_texts(now)
        block = ((self._encode(now) - self._mean) / self._deviation)[rows][:, learnt.kept]
        off = (_compare(block, learnt.coefficients) - learnt.usual) / learnt.spread
        off *= self._varies[learnt.kept]  # what is the same nearly always says nothing when it is not
        found: dict[str, Strain] = {}
        slopes: dict[str, list[float]] = {}
        for place, (slope, level, scatter) in zip(learnt.kept, off.T.tolist(), strict=True):
            variable = self._variables[place]
            if variable.kind == _Kind.NUMBER:
                found[variable.feature] = Strain(slope=abs(slope), level=abs(level), scatter=max(scatter, 0.0))
            elif variable.kind == _Kind.MISSING:  # after the number itself
                found[variable.feature] = replace(found[variable.feature], emptier=max(level, 0.0))
            elif variable.kind == _Kind.VALUE:
                slopes.setdefault(variable.feature, []).append(abs(slope))
        return found | {name: Strain(slope=float(np.median(each))) for name, each in slopes.items()}

    def _learn(self, without: tuple[str, ...]) -> _Learnt:
        if without not in self._learnt:
            kept = np.array([n for n, variable in enumerate(self._variables) if variable.feature not in without])
            products = [product[np.ix_(kept, kept)] for product in self._products]
            total, count = np.sum(products, axis=0), sum(map(len, self._blocks))
            healthy = np.array(
                [
                    _compare(block[:, kept], _solve((total - product) / (count - len(block))))
                    for block, product in zip(self._blocks, products, strict=True)
                ]
            )  # [partitions, 3, variables]
            coefficients = _solve(total / count)
            # What the others hardly tell of rises with them as it happens to, and may move alone.
            told = np.sqrt(np.maximum((coefficients * (total / count @ coefficients)).sum(axis=0), 0.0))
            least = np.full_like(healthy[0], _LEAST_SPREAD)
            least[:2] /= np.maximum(told, _LEAST_TOLD)
            usual = np.median(healthy, axis=0)
            spread = np.maximum(few_partitions(len(healthy)) * np.abs(healthy - usual).max(axis=0), least)
            self._learnt[without] = _Learnt(kept, coefficients, usual, spread)
        return self._learnt[without]

    def _list_numbers(self) -> list[_Variable]:
        clock = [_Variable(_Kind.CLOCK, place=number) for number in range(self.past[0].clock.shape[1])]
        numbers = [_Variable(_Kind.NUMBER, name) for name in self._scales]
        shares = {name: float(np.mean([c.missing(name).mean() for c in self.past])) for name in self._scales}
        gaps = [name for name, share in shares.items() if _LEAST_SHARE / 10 < share < 1 - _LEAST_SHARE / 10]
        return [*clock, *numbers, *(_Variable(_Kind.MISSING, name) for name in gaps)]

    def _list_values(self) -> list[_Variable]:
        variables = []
        for name in self.past[0].texts:
            values = [value for columns in self.past for value in columns.texts[name] if value is not None]
            different, counts = np.unique(np.array(values, np.object_), return_counts=True)
            common = np.argsort(-counts, kind="stable")[:_VALUES]
            often = [different[n] for n in common if counts[n] >= _LEAST_SHARE * len(values)]
            variables += [_Variable(_Kind.VALUE, name, value) for value in often]
        return variables

    def _encode(self, columns: Columns) -> Floats:
        """Every variable [rows, variables]; a number that is missing is at the middle."""
        encoded = np.zeros((columns.rows, len(self._variables)))
        for place, variable in enumerate(self._variables):
            if variable.kind == _Kind.CLOCK:
                encoded[:, place] = columns.clock[:, variable.place]
            elif variable.kind == _Kind.VALUE:
                encoded[:, place] = columns.texts[variable.feature] == variable.value
            elif variable.kind == _Kind.MISSING:
                encoded[:, place] = columns.missing(variable.feature)
            else:
                there = ~columns.missing(variable.feature)
                values = columns.numbers[variable.feature][there]
                encoded[there, place] = self._scales[variable.feature].scores(values)
        return encoded

    def _have_known_texts(self, now: Columns) -> NDArray[np.bool_]:
        known = np.ones(now.rows, np.bool_)
        for name, values in now.texts.items():
            known &= np.array([value in self._known[name] for value in values], np.bool_)
        return known if known.sum() >= _FEWEST else np.ones(now.rows, np.bool_)


def few_partitions(partitions: int) -> float:
    """How much farther than the worst of so many partitions the worst may be that there is."""
    return 1 + _FEW_PARTITIONS / partitions


def _solve(products: Floats) -> Floats:
    """Coefficients [told by, told] of the regression of each variable on all the others, from the inverse of all."""
    inverse = np.linalg.inv(products + _RIDGE * np.eye(len(products)))
    coefficients: Floats = -inverse / np.diag(inverse)
    np.fill_diagonal(coefficients, 0.0)
    return coefficients


def _compare(block: Floats, coefficients: Floats) -> NDArray[np.float64]:
    """Slope, level and log scatter of each variable beside what is told of it: [3, variables]."""
    told = block @ coefficients
    own, others = block - block.mean(0), told - told.mean(0)
    slope = (own * others).mean(0) / np.maximum((others**2).mean(0), 1e-4)
    scatter = np.log(np.sqrt(((own - others) ** 2).mean(0)) + 0.02)
    return np.stack([slope, (block - told).mean(0), scatter])
