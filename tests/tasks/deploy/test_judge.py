"""What a stage concludes from what was answered, case by case."""

import math
from dataclasses import replace

import pytest

from pipeline.online import Rollout
from tasks.deploy.deployments import DeploymentStage
from tasks.deploy.judge import (
    GoldenTally,
    ShadowTally,
    TrafficTally,
    compute_p99,
    judge_canary,
    judge_golden,
    judge_shadow,
    judge_stable,
)
from tasks.deploy.stages import next_stage

RULES = Rollout(
    golden_rows=32, tolerance=1e-5, max_p99_ms=100, max_error_share=0.02, shadow_requests=20, canary_share=0.1,
    canary_requests=50, hold_minutes=30,
)  # fmt: skip
GOLDEN = GoldenTally(rows=32, wanted=32, max_difference=0.0, worst="AA1", p99_ms=20)
MIRRORED = ShadowTally(requests=20, unanswered=0, problem=None, checked=20, max_difference=0.0)
WELL = TrafficTally(requests=50, errors=0, p99_ms=20, timed=50, slow=0, checked=50, max_difference=0.0)


def test_a_version_that_replaces_none_is_compared_with_none():
    ways = {}
    for first in (True, False):
        stage, ways[first] = DeploymentStage.PACKAGE, [DeploymentStage.PACKAGE]
        while stage != "done":
            stage = next_stage(stage, is_short=first)
            ways[first].append(stage)
    assert ways[True] == ["package", "golden", "full", "done"]
    assert ways[False] == ["package", "golden", "shadow", "canary", "full", "done"]


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({}, "pass"),
        ({"max_difference": 1e-5}, "pass"),
        ({"max_difference": 1.1e-5}, "breach"),
        ({"max_difference": math.nan}, "breach"),
        ({"max_difference": math.inf}, "breach"),
        ({"p99_ms": 101.0}, "breach"),
        ({"rows": 31}, "hold"),
    ],
)
def test_golden_rows_must_be_answered_as_in_batch_and_in_time(change, result):
    assert judge_golden(RULES, replace(GOLDEN, **change)).result == result


@pytest.mark.parametrize(
    ("change", "minutes", "result"),
    [
        ({}, 0, "pass"),
        ({"requests": 19}, 29.9, "wait"),
        ({"requests": 19}, 30, "hold"),
        ({"requests": 0, "checked": 0, "max_difference": None}, 30, "hold"),
        ({"checked": 19}, 1, "wait"),
        ({"checked": 19}, 30, "hold"),
        ({"unanswered": 1, "problem": "500"}, 0, "breach"),
        ({"requests": 3, "checked": 3, "max_difference": 2e-5}, 0, "breach"),
    ],
)
def test_mirrored_requests_are_counted_not_timed(change, minutes, result):
    assert judge_shadow(RULES, replace(MIRRORED, **change), minutes=minutes).result == result


@pytest.mark.parametrize(
    ("change", "minutes", "result"),
    [
        ({}, 0, "pass"),
        ({"errors": 1}, 0, "pass"),
        ({"errors": 2}, 0, "breach"),
        ({"requests": 10, "checked": 10, "errors": 2}, 0, "breach"),
        ({"requests": 10, "checked": 10, "errors": 1}, 0, "wait"),
        ({"requests": 49, "checked": 49}, 29, "wait"),
        ({"requests": 49, "checked": 49}, 30, "hold"),
        ({"requests": 0, "checked": 0, "max_difference": None, "p99_ms": None}, 30, "hold"),
        ({"checked": 0, "max_difference": None}, 30, "hold"),
        ({"max_difference": 2e-5}, 0, "breach"),
        ({"requests": 5, "checked": 5, "max_difference": 0.1}, 0, "breach"),
        ({"slow": 1, "p99_ms": 900}, 0, "pass"),
        ({"slow": 5}, 0, "breach"),
        ({"timed": 0, "p99_ms": None}, 0, "pass"),
        ({"requests": 10_000, "checked": 5000, "errors": 200}, 0, "pass"),
        ({"requests": 10_000, "checked": 5000, "errors": 201}, 0, "breach"),
    ],
)
def test_a_canary_goes_on_only_by_requests_that_went_well(change, minutes, result):
    assert judge_canary(RULES, replace(WELL, **change), minutes=minutes).result == result


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({}, "pass"),
        ({"requests": 49, "errors": 49}, "wait"),
        ({"errors": 2}, "breach"),
        ({"requests": 3, "checked": 3, "max_difference": 2e-5}, "breach"),
        ({"slow": 1, "p99_ms": 900}, "pass"),
        ({"requests": 60, "timed": 60, "slow": 1, "p99_ms": 900}, "pass"),
        ({"requests": 98, "timed": 98, "slow": 3, "p99_ms": 900}, "pass"),
        ({"requests": 60, "timed": 60, "slow": 6, "p99_ms": 900}, "breach"),
        ({"requests": 10_000, "timed": 10_000, "slow": 100}, "pass"),
        ({"requests": 10_000, "timed": 10_000, "slow": 200}, "breach"),
        ({"timed": 0, "p99_ms": None}, "pass"),
        ({"requests": 0, "p99_ms": None, "timed": 0, "checked": 0, "max_difference": None}, "wait"),
    ],
)
def test_what_answers_everyone_is_judged_by_enough_requests_and_any_wrong_score(change, result):
    assert judge_stable(RULES, replace(WELL, **change)).result == result


def test_p99_is_a_time_that_a_request_took():
    assert compute_p99([]) is None
    assert compute_p99([5.0]) == 5.0
    assert compute_p99([float(i) for i in range(1, 101)]) == 99.0
    assert compute_p99([1.0] * 98 + [50.0, 60.0]) == 50.0
