"""Features that are known in time and yet give the target away: alone or by twos, better than the gate believes.

What a feature tells is learnt from the labels of one partition and measured on those of the other, each way, by the
metric of `gate.leak_alarm`: a value that comes again with its label tells it, a key that is new in each row nothing.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import FeatureSet
from features.windows import column_names
from models.metrics import to_loss
from pipeline.spec import LeakAlarm, UseCase
from tasks.check_use_case.mistakes import Mistake, in_file, in_params
from tasks.promote.bootstrap import Floats, compute_for_gate
from tasks.promote.gate_checks import describe_limit

_ROWS = 4_000  # of a partition are looked at
_FEW_LABELS = 10  # of a class, in a partition: they tell nothing
_BINS = 50  # of a number whose labels are noisy
_ROWS_A_BIN = 3  # of one that determines them
_PAIR_BINS = 32  # of each number of a pair

Codes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Labelled points of one partition [n]: features that are numbers, and codes of those that are texts."""

    label: Floats
    numbers: Mapping[str, Floats]
    texts: Mapping[str, Codes]


_CellsOf = Callable[[_Part, _Part], tuple[Codes, Codes]]  # of the points that are learnt from, and of those asked


def check_giveaways(
    use_case: UseCase, definition: FeatureSet, labelled: pa.Table, split: datetime
) -> Iterator[Mistake]:
    """Features, and pairs of those without a history, that tell the label better than a model may.

    Args:
        use_case: whose gate it is.
        definition: its features.
        labelled: the points of two partitions with their features and their last label, `label_last`.
        split: where the second partition begins.
    """
    alarm, file = use_case.gate.leak_alarm, f"features/{use_case.name}.py"
    parts = _read_parts(definition, labelled, split)
    if any(_tells_nothing(use_case, part) for part in parts):
        return
    if (value := _measure(alarm, parts, _one_cell)) is not None:
        yield in_params(
            "gate.leak_alarm",
            f"{alarm.metric} {describe_limit(alarm)}: always saying the mean of the labels comes to {value:.4f}, so"
            " every model would be refused as too good to be true",
            "a limit that only a model passes that knows too much",
        )
        return
    told = {name: _find_alone(alarm, parts, name) for name in (*definition.numeric, *definition.categorical)}
    given = {name: value for name, value in told.items() if value is not None}
    for name, value in given.items():
        yield _name_giveaway(file, use_case, name, "alone it gives the target away", value)
    for name, other in combinations(_list_without_history(definition), 2):
        if given.keys().isdisjoint((name, other)) and (value := _find_pair(alarm, parts, name, other)) is not None:
            given |= {name: value, other: value}
            yield _name_giveaway(file, use_case, name, f"with {other!r} it gives the target away", value)


def _name_giveaway(file: str, use_case: UseCase, name: str, what: str, value: float) -> Mistake:
    alarm = use_case.gate.leak_alarm
    return in_file(
        file,
        name,
        f"{what}: learnt from one partition, it comes to {alarm.metric} {value:.4f} on the other, and a model"
        f" {describe_limit(alarm)} is refused as too good to be true (gate.leak_alarm)",
        "no such feature, and no such field of the request, where it follows from the outcome; where it is truly known"
        f" {use_case.time.lead_minutes} minutes before the event, another gate.leak_alarm",
    )


def _read_parts(definition: FeatureSet, labelled: pa.Table, split: datetime) -> tuple[_Part, _Part]:
    rows = labelled.filter(pc.is_valid(labelled["label_last"]))
    rows = rows.sort_by([("prediction_time", "ascending"), ("entity_key", "ascending")])
    is_first = pc.less(rows["prediction_time"], pa.scalar(split, rows["prediction_time"].type))
    first, second = (_take_evenly(rows.filter(chosen)) for chosen in (is_first, pc.invert(is_first)))
    values = {name: pc.unique(rows[name]) for name in definition.categorical}
    return _read_part(definition, first, values), _read_part(definition, second, values)


def _take_evenly(rows: pa.Table) -> pa.Table:
    return rows.take(np.arange(0, rows.num_rows, max(1, -(-rows.num_rows // _ROWS))))


def _read_part(definition: FeatureSet, rows: pa.Table, values: Mapping[str, pa.Array]) -> _Part:
    return _Part(
        label=rows["label_last"].to_numpy().astype(np.float64),
        numbers={name: rows[name].to_numpy().astype(np.float64) for name in definition.numeric},
        texts={
            name: pc.index_in(rows[name], value_set=values[name]).to_numpy().astype(np.int64)
            for name in definition.categorical
        },
    )


def _tells_nothing(use_case: UseCase, part: _Part) -> bool:
    """Whether there are too few labels, or labels of another kind, which is a mistake of its own."""
    if use_case.target.kind == "regression":
        return len(part.label) < _FEW_LABELS
    ones, zeros = (np.count_nonzero(part.label == value) for value in (1, 0))
    return bool(ones + zeros < len(part.label) or min(ones, zeros) < _FEW_LABELS)


def _list_without_history(definition: FeatureSet) -> list[str]:
    """Features of what a client tells, and of what was looked up: how others ended determines no outcome."""
    windows = {name for window in definition.windows for name in column_names(window)}
    history = windows | {joined.prefix for joined in definition.joined}
    told = {**definition.numeric_sql, **definition.categorical_sql}
    return [name for name, sql in told.items() if history.isdisjoint(re.findall(r"\w+", sql))]


def _find_alone(alarm: LeakAlarm, parts: tuple[_Part, _Part], name: str) -> float | None:
    if name in parts[0].texts:
        return _measure(alarm, parts, lambda known, asked: (known.texts[name], asked.texts[name]))
    return _find_in_number(alarm, parts, lambda part: part.numbers[name])


def _find_pair(alarm: LeakAlarm, parts: tuple[_Part, _Part], name: str, other: str) -> float | None:
    """By the values of both; of two numbers by their difference, too."""

    def both(known: _Part, asked: _Part) -> tuple[Codes, Codes]:
        some, others = (_cut(known, asked, each) for each in (name, other))
        width = 2 + max(codes.max() for codes in others)
        return (some[0] * width + others[0], some[1] * width + others[1])

    if (value := _measure(alarm, parts, both)) is not None or not {name, other} <= parts[0].numbers.keys():
        return value
    return _find_in_number(alarm, parts, lambda part: part.numbers[name] - part.numbers[other])


def _find_in_number(alarm: LeakAlarm, parts: tuple[_Part, _Part], read: Callable[[_Part], Floats]) -> float | None:
    for bins in (_BINS, len(parts[0].label) // _ROWS_A_BIN):
        if (value := _measure(alarm, parts, _cells_of_number(read, bins))) is not None:
            return value
    return None


def _cells_of_number(read: Callable[[_Part], Floats], bins: int) -> _CellsOf:
    return lambda known, asked: _cut_number(read(known), read(asked), bins)


def _measure(alarm: LeakAlarm, parts: tuple[_Part, _Part], cells_of: _CellsOf) -> float | None:
    """What the labels of one part's cells come to on the other, the less good way; None: it is not beyond the alarm."""
    values = []
    for known, asked in (parts, parts[::-1]):
        cells, asked_cells = cells_of(known, asked)
        value = compute_for_gate(alarm.metric, _answer(cells, known.label, asked_cells), asked.label)
        if not alarm.is_beyond(value):
            return None
        values.append(value)
    return max(values, key=lambda value: to_loss(alarm.metric, value))


def _answer(cells: Codes, label: Floats, asked: Codes) -> Floats:
    """The mean label of the cell that each is in; of one that was never seen, that of all."""
    known, place = np.unique(cells, return_inverse=True)
    means = np.bincount(place, label) / np.bincount(place)
    at = np.searchsorted(known, asked).clip(max=len(known) - 1)
    return np.asarray(np.where(known[at] == asked, means[at], label.mean()), np.float64)


def _one_cell(known: _Part, asked: _Part) -> tuple[Codes, Codes]:
    return np.zeros(len(known.label), np.int64), np.zeros(len(asked.label), np.int64)


def _cut(known: _Part, asked: _Part, name: str) -> tuple[Codes, Codes]:
    if name in known.texts:
        return known.texts[name], asked.texts[name]
    return _cut_number(known.numbers[name], asked.numbers[name], _PAIR_BINS)


def _cut_number(known: Floats, asked: Floats, bins: int) -> tuple[Codes, Codes]:
    """Codes of intervals that hold as many each, of single values where there are few; where there is none, -1."""
    there = known[np.isfinite(known)]
    edges = np.unique(there)
    if len(edges) > bins:
        edges = np.unique(np.quantile(there, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    some, others = (np.where(np.isnan(v), -1, np.searchsorted(edges, v, side="right")) for v in (known, asked))
    return some, others
