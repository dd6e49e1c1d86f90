"""Whether a feed is broken, from all signs together.

A feature that is apart from the others says that it is broken where the others are not apart from each other: a change
of the world moves features that go together, together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tasks.monitor.broken.columns import Columns, present
from tasks.monitor.broken.relations import Relations, Strain, few_partitions
from tasks.monitor.broken.signs import Fault, Sign, find_number_signs, find_text_signs, name_unit

FEWEST_PARTITIONS = 12  # of fewer nobody can tell how far healthy ones differ
MOST_PARTITIONS = 26  # older ones say little of today
_FEWEST_ROWS = 500
_APART = Strain(slope=2.5, level=6.5, scatter=5.0, emptier=2.5)
_QUIET = 3.0  # the strain on all others, once those that are apart are left out
_CONFINED = 2  # so many features may be apart; more are a change
_JUMPED, _STILL = 5.0, 2.5  # of the mean, times as far as ever from one partition to the next; all others
_FEWEST_JUMPS = 3  # such numbers: of fewer nobody can tell whether others jump
_SAME = 1.0  # standard deviations within a partition by that of the means of all
_ROWS_MOVED = 1.5  # times as far as in any partition of the past
_LEAST_MOVED = 0.1  # of the log of the rows


def find_faults(past: Sequence[Columns], now: Columns) -> list[Fault] | None:
    """What is broken in a partition, by healthy ones of the past, oldest first; None where nobody can tell."""
    past = [columns for columns in past if columns.rows >= _FEWEST_ROWS][-MOST_PARTITIONS:]
    if len(past) < FEWEST_PARTITIONS or now.rows < _FEWEST_ROWS:
        return None
    *past, now = _keep_common([*past, now])
    faults = [fault for name in now.numbers for fault in find_number_signs(name, past, now)]
    faults += [fault for name in now.texts for fault in find_text_signs(name, past, now)]
    moved = _has_moved(past, now)
    faults += _find_apart(past, now, known={fault.feature for fault in faults}, moved=moved)
    return faults if moved else [*faults, *_find_jumped(past, now, known={fault.feature for fault in faults})]


def _keep_common(every: Sequence[Columns]) -> list[Columns]:
    """Of each partition the features that all have, and have as one kind: a column of nulls alone has none."""
    numbers = set.intersection(*({*columns.numbers} for columns in every))
    texts = set.intersection(*({*columns.texts} for columns in every))
    return [
        replace(
            columns,
            numbers={name: values for name, values in columns.numbers.items() if name in numbers},
            texts={name: values for name, values in columns.texts.items() if name in texts},
        )
        for columns in every
    ]


def _find_jumped(past: Sequence[Columns], now: Columns, known: set[str]) -> Iterator[Fault]:
    """Numbers that are the same all week, such as an overall rate: one that jumps alone, by its mean."""
    jumps = {}
    for name in now.numbers.keys() - known:
        blocks = [present(columns.numbers[name]) for columns in [*past, now]]
        if min(map(len, blocks)) < _FEWEST_ROWS:
            continue
        means = np.array([block.mean() for block in blocks])
        steps = np.abs(np.diff(means))
        is_same = np.median([block.std() for block in blocks[:-1]]) <= _SAME * means[:-1].std()
        if is_same and steps[:-1].max() > 0:
            jumps[name] = float(steps[-1] / (few_partitions(len(past)) * steps[:-1].max()))
    if len(jumps) < _FEWEST_JUMPS:
        return
    jumped = [name for name, jump in jumps.items() if jump >= _JUMPED]
    if len(jumped) > _CONFINED or any(jump >= _STILL for name, jump in jumps.items() if name not in jumped):
        return
    for name in sorted(jumped):
        far = f"{jumps[name]:.1f} times as far as ever from one partition to the next"
        yield Fault(feature=name, sign=Sign.JUMPED, seen=f"its mean went {far}, and no other did")


def _find_apart(past: Sequence[Columns], now: Columns, known: set[str], *, moved: bool) -> list[Fault]:
    """Features that are apart from the others, without those that are known to be broken: these tell nothing."""
    relations = Relations(past)
    apart: dict[str, Strain] = {}
    at_first: dict[str, Strain] = {}
    while len(apart) <= _CONFINED:
        strains = relations.measure(now, (*sorted(known), *apart))
        name = max(strains, key=lambda each: _excess(strains[each], moved=moved), default=None)
        if name is None:
            return []
        at_first = at_first or {each: s for each, s in strains.items() if _excess(s, moved=moved) >= 1}
        if _excess(strains[name], moved=moved) < 1:
            loud = {each: at_first.get(each) for each, strain in strains.items() if apart and strain.most >= _QUIET}
            if None in loud.values() or len(apart) + len(loud) > _CONFINED:
                return []
            return [
                _describe(each, strain, past, now, moved=moved) for each, strain in (apart | loud).items() if strain
            ]
        apart[name] = strains[name]
    return []


def _excess(strain: Strain, *, moved: bool) -> float:
    """As a multiple of what is apart. Where there are more or fewer rows than ever, levels and slopes follow."""
    follows = 0.0 if moved else max(strain.slope / _APART.slope, strain.level / _APART.level)
    return max(follows, strain.scatter / _APART.scatter, strain.emptier / _APART.emptier)


def _has_moved(past: Sequence[Columns], now: Columns) -> bool:
    rows = np.log([columns.partition_rows for columns in past])
    usual = float(np.median(rows))
    worst = max(float(np.abs(rows - usual).max()), _LEAST_MOVED)
    return bool(abs(np.log(now.partition_rows) - usual) > _ROWS_MOVED * worst)


def _describe(name: str, strain: Strain, past: Sequence[Columns], now: Columns, *, moved: bool) -> Fault:
    unit = ""
    if name in now.numbers:
        blocks = [present(columns.numbers[name]) for columns in past]
        unit = name_unit(blocks, present(now.numbers[name])) or ""
    shown = {
        "it rises otherwise with them": 0.0 if moved else strain.slope / _APART.slope,
        "it lies elsewhere": 0.0 if moved else strain.level / _APART.level,
        "it scatters": strain.scatter / _APART.scatter,
        "it is missing oftener": strain.emptier / _APART.emptier,
    }
    how = max(shown, key=lambda each: shown[each])
    seen = f"it no longer goes with the other features: {how}, {shown[how]:.1f} times what no healthy partition does"
    return Fault(feature=name, sign=Sign.APART, seen=f"{seen}; it {unit}" if unit else seen)
