"""What one feature shows by itself: each measure beside what it was in each partition of the past."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.monitor.broken.columns import Columns, Floats, Scale, Texts, logit, present

_FEWEST = 200  # values of a partition by which anything is said
_FAR = 2.2  # on the logit scale: nine times the odds of the worst partition
_EMPTIER, _EMPTIER_ROWS = 1.0, 0.05  # likewise, of what is missing: nearly three times the odds; a share of all rows
_STUCK, _MOST, _REPEATED = 0.7, 0.5, 0.9  # shares of the values that one has, that are new, that were there before
_FEW = 0.05  # a share of the values that happens
_WRITTEN = 0.02  # a share of texts
_SPANS = 3.0
_QUOTED = 40  # characters of a text
_UNITS: Mapping[str, tuple[float, float]] = {  # what it looks like -> factor and summand that undo it
    "degrees Celsius in place of Fahrenheit": (1.8, 32.0),
    "degrees Fahrenheit in place of Celsius": (1 / 1.8, -32 / 1.8),
    **{f"{n:g} times as large": (1 / n, 0.0) for n in (10, 24, 25.4, 60, 100, 1000, 3600)},
    **{f"{n:g} times too small": (n, 0.0) for n in (10, 24, 25.4, 60, 100, 1000, 3600)},
}
_EXPLAINED, _BETTER = 9.0, 20.0  # squared distances, in steps from partition to partition
_RECENT = 3


class Sign(StrEnum):
    """What no change of the world does to a feature."""

    STUCK = "stuck"
    NEW_VALUES = "new-values"
    FAR = "far"
    REPEATED = "repeated"
    DOUBLED = "doubled"
    EMPTIER = "emptier"
    JUMPED = "jumped"
    APART = "apart"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A sign of one feature, and in words what was seen."""

    feature: str
    sign: Sign
    seen: str


@dataclass(frozen=True)
class NumberPast:
    """A number in the partitions of the past, oldest first: values that are there [values] of each."""

    blocks: Sequence[Floats]

    @cached_property
    def scale(self) -> Scale:
        """By all of them."""
        return Scale.of(np.concatenate(self.blocks))

    @cached_property
    def _levels(self) -> Floats:
        """Mean and log spread of the normal scores of each [blocks, 2]."""
        return np.array([self._level(block) for block in self.blocks])

    @cached_property
    def _steps(self) -> Floats:
        """How far these go from one partition to the next [2]."""
        steps = np.diff(self._levels, axis=0)
        least: Floats = np.array([0.03, 0.05])
        far: Floats = np.maximum(np.maximum(np.sqrt((steps**2).mean(0)), np.abs(steps).max(0) / 2), least)
        return far

    @property
    def values(self) -> Floats:
        """Every one that was there, each once, in order."""
        return self._seen[0]

    @cached_property
    def _seen(self) -> tuple[Floats, NDArray[np.intp]]:
        """Every value, and in how many of the partitions."""
        values, counts = np.unique(np.concatenate([np.unique(block) for block in self.blocks]), return_counts=True)
        return values, counts

    @cached_property
    def new_share(self) -> float:
        """The largest share of a partition's values that no other one has."""
        values, counts = self._seen
        return max(float((counts[np.searchsorted(values, block)] == 1).mean()) for block in self.blocks)

    @cached_property
    def common_share(self) -> float:
        """The largest share of a partition's values that one of them has."""
        return max(_most_common(block)[1] for block in self.blocks)

    def keep_new(self, values: Floats) -> Floats:
        """Those that lie among the values of the past, and are none of them; beyond them is where a change leads."""
        inside = (values > self.values[0]) & (values < self.values[-1])
        new: Floats = values[inside & ~np.isin(values, self.values)]
        return new

    def far_share(self, values: Floats) -> float:
        """The share of values beyond those of the past by `_SPANS` times their span, or span of magnitudes."""
        least, most = self.values[0], self.values[-1]
        span = max(most - least, abs(most) * 1e-6, 1e-12)
        off = np.maximum(values - most, least - values) / span
        if least > 0:
            orders = max(np.log(most / least), 0.05)
            there = np.maximum(values, 1e-300)
            off = np.maximum(off, np.maximum(np.log(there / most), np.log(least / there)) / orders)
        return float((off > _SPANS).mean())

    def moved(self, values: Floats) -> float:
        """How far from the nearest of the latest partitions, in steps, squared."""
        apart = (self._level(values) - self._levels[-_RECENT:]) / self._steps
        return float((apart**2).sum(1).min())

    def _level(self, values: Floats) -> Floats:
        scores = self.scale.scores(values)
        return np.array([scores.mean(), np.log(scores.std() + 0.05)])


def find_number_signs(name: str, past: Sequence[Columns], now: Columns) -> Iterator[Fault]:
    """What a number shows, beside partitions of the past, oldest first."""
    yield from _find_emptier(name, past, now)
    blocks = [values for columns in past if len(values := present(columns.numbers[name])) >= _FEWEST]
    values = present(now.numbers[name])
    if len(blocks) < len(past) or len(values) < _FEWEST:
        return
    known = NumberPast(blocks)
    new_values, worst = known.keep_new(values), known.new_share
    new = len(new_values) / len(values)
    newest, often = _most_common(new_values) if len(new_values) else (np.nan, 0.0)
    common, share = _most_common(values)
    was = max(float((block == common).mean()) for block in blocks)
    if share > _STUCK and logit(share) - logit(max(was, known.common_share)) > _FAR:
        yield Fault(feature=name, sign=Sign.STUCK, seen=f"{share:.0%} of it is {common:g}, at most {was:.0%} before")
    elif new > _MOST and logit(new) - logit(worst) > _FAR:
        seen = f"{new:.0%} of its values never were before, as {newest:g}; at most {worst:.0%} before"
        yield Fault(feature=name, sign=Sign.NEW_VALUES, seen=seen)
    elif worst < _FEW and new * often > 4 * _FEW:
        seen = f"{new * often:.0%} of it is {newest:g}, which never was before"
        yield Fault(feature=name, sign=Sign.NEW_VALUES, seen=seen)
    elif share > 3 * max(known.common_share, _FEW) and logit(share) - logit(was) > _FAR:
        yield Fault(feature=name, sign=Sign.STUCK, seen=f"{share:.0%} of it is {common:g}, at most {was:.0%} before")
    elif known.common_share <= _STUCK and (far := known.far_share(values)) > _REPEATED:
        seen = f"{far:.0%} of it lies farther than ever by {_SPANS:g} times all that it spanned before"
        yield Fault(feature=name, sign=Sign.FAR, seen=seen)
    repeats = float(np.isin(values, past[-1].values_of(name)).mean())
    worst = max(repeated_shares(name, past))
    if repeats > _REPEATED and logit(repeats) - logit(worst) > _FAR:
        seen = f"{repeats:.0%} of its values are those of the partition before, at most {worst:.0%} else"
        yield Fault(feature=name, sign=Sign.REPEATED, seen=seen)
    if _is_doubled(known, values):
        yield Fault(feature=name, sign=Sign.DOUBLED, seen="every value is even, which never was before")


def repeated_shares(name: str, past: Sequence[Columns]) -> list[float]:
    """Of each partition but the first the share of a number's values that the one before has."""
    return [float(np.isin(present(b.numbers[name]), a.values_of(name)).mean()) for a, b in pairwise(past)]


def find_text_signs(name: str, past: Sequence[Columns], now: Columns) -> Iterator[Fault]:
    """What a text shows, likewise."""
    yield from _find_emptier(name, past, now)
    blocks = [[value for value in columns.texts[name] if value is not None] for columns in past]
    values = [value for value in now.texts[name] if value is not None]
    if min(map(len, blocks)) < _FEWEST or len(values) < _FEWEST:
        return
    counted = Counter(value for block in blocks for value in {*block})
    known = {value for block in blocks for value in block}
    new = [value for value in values if value not in known]
    worst = max(sum(counted[value] == 1 for value in block) / len(block) for block in blocks)
    common, share = _most_common(np.array(values, np.object_))
    was = max(block.count(common) / len(block) for block in blocks)
    if len(new) > _MOST * len(values):
        if logit(len(new) / len(values)) - logit(worst) > _FAR:
            seen = f"{len(new) / len(values):.0%} of its values never were before, as {_quote(new[0])}"
            yield Fault(feature=name, sign=Sign.NEW_VALUES, seen=seen)
    elif worst < _WRITTEN and (written := _written_otherwise(new, known)) and len(written) > _WRITTEN * len(values):
        seen = f"{len(written) / len(values):.0%} of its values are known ones written otherwise, as"
        yield Fault(feature=name, sign=Sign.NEW_VALUES, seen=f"{seen} {_quote(written[0])}")
    elif share > _REPEATED and logit(share) - logit(was) > _FAR and len(known) > 1:
        seen = f"{share:.0%} of it is {_quote(common)}, at most {was:.0%} before"
        yield Fault(feature=name, sign=Sign.STUCK, seen=seen)


def _quote(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}...")


def _written_otherwise(new: Sequence[str], known: Collection[str]) -> list[str]:
    alike = {_simplify(value) for value in known}
    return [value for value in new if _simplify(value) in alike]


def _find_emptier(name: str, past: Sequence[Columns], now: Columns) -> Iterator[Fault]:
    share, worst = float(now.missing(name).mean()), max(float(columns.missing(name).mean()) for columns in past)
    if share - worst > _EMPTIER_ROWS and logit(share) - logit(worst) > _EMPTIER:
        yield Fault(feature=name, sign=Sign.EMPTIER, seen=f"{share:.0%} of it is missing, at most {worst:.0%} before")


def _most_common(values: Floats | Texts) -> tuple[float, float]:
    different, counts = np.unique(values, return_counts=True)
    place = counts.argmax()
    return different[place], float(counts[place] / len(values))


def name_unit(blocks: Sequence[Floats], values: Floats) -> str | None:
    """What unit values look like in place of that of the past: where undoing it explains all of how far they moved."""
    if min(map(len, [*blocks, values])) < _FEWEST:
        return None
    known = NumberPast(blocks)
    moved = known.moved(values)
    name, rest = min(((name, known.moved(values * a + b)) for name, (a, b) in _UNITS.items()), key=lambda one: one[1])
    if rest >= _EXPLAINED or moved - rest <= _BETTER:
        return None
    return f"looks {name}" if "times" in name else f"looks like {name}"


def _is_doubled(known: NumberPast, values: Floats) -> bool:
    """A whole number that was odd as often as not, and never is now."""
    if not all((block == np.round(block)).all() for block in known.blocks) or not (values == np.round(values)).all():
        return False
    odd = min(float((block % 2 == 1).mean()) for block in known.blocks)
    return odd > 0.15 and float((values % 2 == 1).mean()) < 0.02 and known.moved(values / 2) < known.moved(values)


def _simplify(value: str) -> str:
    """A text without what writers differ in: case, blanks, dashes, leading zeros, decimals that say nothing."""
    simple = re.sub(r"[\s_-]", "", re.sub(r"\.0+$", "", value.strip().casefold()))
    return simple.lstrip("0") or simple
