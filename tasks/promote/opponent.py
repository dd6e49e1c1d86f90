"""Whom a candidate is judged against: the champion, by the version of it that has learnt of none of these rows.

A champion that was fitted on all that was known has learnt rows of a later holdout, too. It is compared by its judged
twin, the version that it was before: same recipe, cut off before its own holdout, as the candidate is before this one.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from adapters.connect import Outside
from pipeline.handoffs import Candidate
from pipeline.spec import UseCase
from tasks.build_features.learnt_features import (
    UncomputableFeatures,
    find_learnt_definition,
    is_made_by,
    load_learnt_points,
)
from tasks.common.ledger import current, find_judged_version, find_network
from tasks.promote.gate import Judgement


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """Whom a candidate is judged against: the champion, and the version of it that answers: itself or its twin.

    A recalibrated champion is named by what was trained; how it was recalibrated by then is measured (`evaluate`).
    """

    champion: str
    answering: str


def find_opponent(use_case: UseCase, candidate: Candidate, outside: Outside) -> Opponent | None:
    """Whom to judge against: the champion or, where that was this candidate, the one before it."""
    champion = current(use_case, outside)
    version = champion.network_version if champion else None
    if version and candidate.model_version in {version, find_judged_version(use_case, version, outside)}:
        version = _champion_before(use_case, candidate, version, outside)
    if version is None:
        return None
    return Opponent(champion=version, answering=find_judged_version(use_case, version, outside))


def _champion_before(use_case: UseCase, candidate: Candidate, champion: str, outside: Outside) -> str | None:
    """Whom a champion was judged against when it was this candidate; None: nobody."""
    promoted = outside.warehouse.query(
        "select champion_version, verdict_id from ledger where use_case = %s and action = 'promote'"
        " and model_version = %s order by entry desc limit 1",
        (use_case.name, champion),
    )
    version = promoted[0]["champion_version"] if promoted else None
    before = find_network(use_case, version, outside) if version else None
    if not promoted or promoted[0]["verdict_id"] != name_comparison(use_case, candidate, before):
        raise ValueError(f"version {champion} is the champion: judging it against itself says nothing")
    return before


def name_comparison(use_case: UseCase, candidate: Candidate, champion: str | None) -> str:
    """Names a comparison: which models, on which data and until when, by which thresholds."""
    data = [candidate.snapshot_version, candidate.holdout_end.isoformat()]
    what = [candidate.model_version, champion, *data, use_case.gate.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return f"{use_case.name}-{candidate.model_version}-vs-{champion or 'none'}-{digest}"


def explain_opponent(judgement: Judgement, opponent: Opponent | None, *, foreign: bool) -> Judgement:
    """The judgement, saying where the champion could not be asked, or its twin was."""
    if opponent is None:
        return judgement
    if foreign:
        return _add_reason(
            judgement,
            "champion-of-other-features",
            f"champion {opponent.champion} learnt other features than are defined now, which cannot be had for these"
            " rows: judged against the best constant, so a person must approve",
            "champion_unusable",
        )
    if opponent.answering == opponent.champion:
        return judgement
    text = f"champion {opponent.champion} was compared by its judged twin, version {opponent.answering}"
    return _add_reason(judgement, "champion-by-its-twin", text, "champion_twin")


def _add_reason(judgement: Judgement, code: str, text: str, told_as: str) -> Judgement:
    codes, reasons = [*judgement.codes, code], [*judgement.reasons, text]
    evidence = {**judgement.evidence, "codes": codes, "reasons": reasons, told_as: text}
    return replace(judgement, codes=codes, reasons=reasons, evidence=evidence)


def load_as_learnt(
    use_case: UseCase, version: str, candidate: Candidate, table: pa.Table, outside: Outside
) -> pa.Table | None:
    """The rows of a table with the features that a version learnt; None where they cannot be had for each of them."""
    definition = find_learnt_definition(use_case, version, outside)
    if definition is None or is_made_by(definition, candidate.snapshot_version, use_case, outside):
        return None if definition is None else table
    try:
        points = load_learnt_points(
            definition,
            candidate.snapshot_version,
            use_case,
            outside,
            start=candidate.holdout_start,
            end=candidate.holdout_end,
        )
    except UncomputableFeatures:
        return None
    places = {key: place for place, key in enumerate(_keys(points))}
    chosen = [places.get(key) for key in _keys(table)]
    return None if None in chosen else points.take(chosen)


def _keys(table: pa.Table) -> list[tuple[str, datetime]]:
    return list(zip(table.column("entity_key").to_pylist(), table.column("event_time").to_pylist(), strict=True))
