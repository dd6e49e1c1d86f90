"""Verdicts as rows: what the candidates before this one showed, and how often a champion's holdout was used."""

from datetime import timedelta

from adapters.connect import Outside
from pipeline.handoffs import Candidate, Verdict
from pipeline.spec import UseCase
from tasks.promote.expected_effect import MeasuredEffect

_MOST_VERDICTS = 100  # the latest: what a retraining gains changes with the world, too
# Of a candidate the latest data time that it was judged at, for its holdout grows. Of a data time the first: askings
# again, by other seeds or thresholds, had the luck of the same days.
_PAST = """
select distinct on (as_of) effect, standard_error from (
    select distinct on (candidate_version) * from verdicts
    where use_case = %s and metric = %s and as_of < %s and candidate_version <> %s and champion_version is not null
        and effect is not null and standard_error is not null
    order by candidate_version, as_of desc, judged_at, verdict_id
) as of_each order by as_of desc, judged_at, verdict_id limit %s
"""
_USES = """
select count(*) as n from verdicts
where use_case = %s and champion_version = %s and verdict_id <> %s and effect is not null
    and (as_of > %s and as_of < %s or candidate_version = %s and as_of < %s)
"""
_INSERT = """
insert into verdicts (verdict_id, use_case, candidate_version, champion_version, as_of, answer, metric, effect,
    standard_error, evidence_uri) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing
"""


def load_past_effects(use_case: UseCase, candidate: Candidate, outside: Outside) -> tuple[MeasuredEffect, ...]:
    """What other candidates, of earlier data times, showed against the champion of their time, whatever was decided."""
    params = (use_case.name, use_case.gate.metric, candidate.as_of, candidate.model_version, _MOST_VERDICTS)
    rows = outside.warehouse.query(_PAST, params)
    return tuple(MeasuredEffect(row["effect"], row["standard_error"]) for row in rows)


def count_holdout_uses(
    use_case: UseCase, candidate: Candidate, champion: str | None, verdict_id: str, outside: Outside
) -> int:
    """How often a champion was judged on days more than half of which are these, this time included.

    All looks at a standing challenger are of these: its days are those of before, and more.
    """
    half = timedelta(days=use_case.train.holdout_days) / 2
    near = (candidate.as_of - half, candidate.as_of + half)
    params = (use_case.name, champion, verdict_id, *near, candidate.model_version, candidate.as_of)
    [row] = outside.warehouse.query(_USES, params)
    return 1 + int(row["n"])


def write_verdict(use_case: UseCase, verdict: Verdict, outside: Outside) -> None:
    """Keep a verdict's row, once."""
    outside.warehouse.execute(
        _INSERT,
        (verdict.verdict_id, verdict.use_case, verdict.candidate_version, verdict.champion_version, verdict.as_of,
         verdict.answer, use_case.gate.metric, verdict.effect, verdict.effect_error, verdict.evidence_uri),
    )  # fmt: skip
