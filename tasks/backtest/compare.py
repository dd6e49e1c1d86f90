"""What two sides answered, compared by the gate: the branch is the candidate, today's code the champion."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.spec import UseCase
from tasks.backtest.side import ABOUT, ANSWERS, AboutSide
from tasks.promote.evaluate import frozen_rows
from tasks.promote.gate import Judgement, decide
from tasks.promote.gate_checks import Scored, Setting

_KEY = ["entity_key", "event_time"]
_TODAY, _BRANCH = "today", "branch"  # the champion's name, and the candidate's


@dataclass(frozen=True, kw_only=True)
class Side:
    """One commit's answers, and what it did."""

    commit: str
    about: AboutSide
    answers: pa.Table


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The gate's judgement of a branch on the rows that both sides answered; `differing` of them answer otherwise."""

    ours: Side
    theirs: Side
    rows: int
    only_ours: int
    only_theirs: int
    differing: int
    judgement: Judgement

    @property
    def is_the_same(self) -> bool:
        """Whether not a bit differs: features, rows, labels and answers."""
        same_rows = not (self.only_ours or self.only_theirs or self.differing)
        return same_rows and self.ours.about.features_digest == self.theirs.about.features_digest


def load_side(commit: str, folder: Path) -> Side:
    """What a side has written."""
    about = AboutSide(**json.loads((folder / ABOUT).read_text()))
    return Side(commit=commit, about=about, answers=pq.read_table(folder / ANSWERS))


def compare_sides(use_case: UseCase, theirs: Side, ours: Side, as_of: datetime) -> Comparison:
    """Judge a branch (`theirs`) against today's code (`ours`), both trained as of a moment, by today's thresholds.

    Raises:
        ValueError: there is no event that both answered.
    """
    places = [{key: place for place, key in enumerate(_keys(side.answers))} for side in (ours, theirs)]
    both = [key for key in places[0] if key in places[1]]
    if not both:
        raise ValueError(f"no event is a point of both {ours.commit[:12]} and {theirs.commit[:12]}")
    mine, other = (
        side.answers.take([place[key] for key in both]) for side, place in zip((ours, theirs), places, strict=True)
    )
    setting = Setting(
        gate=use_case.gate,
        kind=use_case.target.kind,
        block=use_case.gate_block,
        holdout_start=as_of,
        latency_ms=0.0,  # of one row alone; not measured
        seed=use_case.seed,
    )
    candidate, champion = _scored(_BRANCH, other, as_of), _scored(_TODAY, mine, as_of)
    differs = (candidate.scores != champion.scores) | (other["label"].to_numpy() != mine["label"].to_numpy())
    return Comparison(
        ours=ours,
        theirs=theirs,
        rows=len(both),
        only_ours=len(places[0]) - len(both),
        only_theirs=len(places[1]) - len(both),
        differing=int(np.count_nonzero(differs)),
        judgement=decide(setting, frozen_rows(use_case, mine), candidate, champion),
    )


def _scored(version: str, answers: pa.Table, as_of: datetime) -> Scored:
    members = [name for name in answers.column_names if name.startswith("member_")]
    return Scored(
        version=version,
        cutoff=as_of,
        scores=answers["score"].to_numpy(),
        members=np.array([answers[name].to_numpy() for name in members]),
    )


def _keys(table: pa.Table) -> list[tuple[str, datetime]]:
    return list(zip(*(table[name].to_pylist() for name in _KEY), strict=True))


def describe(use_case: UseCase, found: Comparison) -> list[str]:
    """The comparison in words, a line each."""
    metrics: Mapping[str, Any] = found.judgement.evidence.get("metrics", {})
    name = use_case.gate.metric
    values = [metrics.get(version, {}).get(name) for version in (_TODAY, _BRANCH)]
    told = [f"{value:.5f}" if value is not None else "none" for value in values]
    only = f"{found.only_ours:,} only by today's code, {found.only_theirs:,} only by the branch"
    lines = [
        f"rows       {found.rows:,} answered by both, {found.differing:,} of them otherwise; {only}",
        f"features   {found.ours.about.columns} and {found.theirs.about.columns}",
        f"{name:<10} {told[0]} by today's code, {told[1]} by the branch",
        *(_cost(label, side.about) for label, side in (("today", found.ours), ("branch", found.theirs))),
    ]
    if found.is_the_same:
        return [*lines, "verdict    the same: features, rows, labels and answers differ in no bit"]
    effect = found.judgement
    between = "" if effect.low is None else f", effect {effect.effect:+.5f} [{effect.low:+.5f}, {effect.high:+.5f}]"
    return [*lines, f"verdict    {effect.answer}{between}: {'; '.join(effect.reasons)}"]


def _cost(label: str, about: AboutSide) -> str:
    return (
        f"{label:<10} features {about.features_seconds:.1f} s, training {about.training_seconds:.1f} s on"
        f" {about.training_rows:,} rows"
    )
