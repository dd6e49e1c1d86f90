"""Mirrored traffic: what the running version was asked since, the new one is asked too, and both answers are kept."""

from itertools import groupby
from typing import Any

from psycopg2.extras import execute_values

from adapters.connect import Outside
from adapters.warehouse import Fence
from pipeline.spec import UseCase
from tasks.deploy.canary import AnswerChecker
from tasks.deploy.deployments import Deployment
from tasks.deploy.judge import ShadowTally
from tasks.deploy.server import VersionRejected, ask_version, read_score

SLOT = "shadow"
# Whole requests, oldest first, that were answered to somebody and not mirrored yet. Of a client that uses one id again
# and again the first event at each position: all of them together are no request that anybody sent.
_NEW = """
select distinct on (request_id, position) request_id, position, entity_key, event_time, score, request
from online_answers o
where use_case = %(use_case)s and model_version = %(stable)s and slot = 'stable' and answered_at >= %(since)s
    and request_id in (
        select request_id from online_answers n
        where use_case = %(use_case)s and model_version = %(stable)s and slot = 'stable' and answered_at >= %(since)s
            and not exists (select from shadow_pairs p
                where p.deployment_id = %(deployment)s and p.request_id = n.request_id)
        group by request_id order by min(answered_at), request_id limit %(most)s)
order by request_id, position, answered_at, entity_key, event_time
"""
_PAIR = """
insert into shadow_pairs (deployment_id, request_id, position, entity_key, event_time, stable_version, stable_score,
    candidate_version, candidate_score) values %s on conflict do nothing
"""
_SUMMARY = """
select count(distinct request_id) as requests, count(*) filter (where candidate_score is null) as unanswered,
    avg(abs(candidate_score - stable_score)) as mean_difference,
    max(abs(candidate_score - stable_score)) as max_difference,
    avg(candidate_score - stable_score) as mean_shift
from shadow_pairs where deployment_id = %s
"""


def mirror_requests(
    use_case: UseCase,
    deployment: Deployment,
    outside: Outside,
    *,
    fence: Fence,
    checker: AnswerChecker,
) -> tuple[ShadowTally, dict[str, Any]]:
    """Mirror what is new, up to what is wanted, and say how it stands, and how the two versions differ.

    The latter is evidence, not a limit: they are to differ.

    Raises:
        ConnectionError: the server is not there; nothing is known about the version.
        FencedOut: somebody else has taken over.
    """
    problem = _mirror(use_case, deployment, outside, fence)
    [summary] = outside.warehouse.query(_SUMMARY, (deployment.deployment_id,))
    checked = checker.check()
    tally = ShadowTally(
        requests=summary["requests"],
        unanswered=summary["unanswered"],
        problem=problem,
        checked=checked.requests,
        max_difference=checked.max_difference,
    )
    return tally, summary


def _mirror(use_case: UseCase, deployment: Deployment, outside: Outside, fence: Fence) -> str | None:
    """Ask the new version the same; the first reason it gave for not answering."""
    assert use_case.endpoint is not None
    params = {
        "use_case": use_case.name,
        "stable": deployment.previous_version,
        "since": deployment.stage_since,
        "deployment": deployment.deployment_id,
        "most": use_case.endpoint.rollout.shadow_requests,
    }
    rows, problem = [], None
    for request_id, group in groupby(outside.warehouse.query(_NEW, params), key=lambda row: row["request_id"]):
        events = list(group)
        try:
            requests = [event["request"] for event in events]
            answers = ask_version(use_case, deployment.version, requests, outside, request_id=request_id, slot=SLOT)
            scores: list[float | None] = [read_score(answer) for answer in answers]
        except VersionRejected as error:
            scores, problem = [None] * len(events), problem or str(error)
        rows += [
            (deployment.deployment_id, request_id, e["position"], e["entity_key"], e["event_time"],
             deployment.previous_version, e["score"], deployment.version, score)
            for e, score in zip(events, scores, strict=True)
        ]  # fmt: skip
    if rows:
        with outside.warehouse.transaction(fence) as at:
            execute_values(at, _PAIR, rows)
    return problem
