"""The stages a version goes through on the server, each one idempotent: what it needs to know is in the database.

A rollback goes to the last one at once: it asks nobody and waits for nobody, and a request proves it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from math import inf
from typing import Any

from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from adapters.gateway import GatewayRecord
from adapters.retrying import wait_until
from adapters.warehouse import Fence
from pipeline.spec import UseCase
from tasks.common.ledger import current, is_same_network
from tasks.deploy import deployments, shadow
from tasks.deploy.canary import AnswerChecker, tally_traffic
from tasks.deploy.deployments import Deployment, DeploymentOutcome, DeploymentStage
from tasks.deploy.golden import ask_golden_rows
from tasks.deploy.judge import StageJudgement, StageResult, judge_canary, judge_golden, judge_shadow
from tasks.deploy.server import UseCaseServer, VersionRejected, WrongAnswer, require_gateway
from tasks.score import load_batch_predictor

POLL_SECONDS = 1.0
_NEW_CHAMPION = "the champion has changed meanwhile"
_UNSEEN = (DeploymentStage.PACKAGE, DeploymentStage.GOLDEN)  # no request of a client has come near it
# The first version has nothing to be compared with, and of a recalibration it is known by how much its answers differ.
_SHORT_STAGES = (DeploymentStage.PACKAGE, DeploymentStage.GOLDEN, DeploymentStage.FULL, DeploymentStage.DONE)
_OUTCOMES = {
    StageResult.WAIT: DeploymentOutcome.SUPERSEDED,
    StageResult.HOLD: DeploymentOutcome.HELD,
    StageResult.BREACH: DeploymentOutcome.REVERTED,
}
_LOG = logging.getLogger(__name__)


def next_stage(stage: DeploymentStage, *, is_short: bool) -> DeploymentStage:
    """The stage that follows; without those that ask what clients ask, where the rollout is a short one."""
    stages = _SHORT_STAGES if is_short else tuple(DeploymentStage)
    return stages[stages.index(stage) + 1]


class Stages:
    """One process's work on the deployments of a use case, under its fence."""

    def __init__(self, use_case: UseCase, outside: Outside, fence: Fence) -> None:
        assert use_case.endpoint is not None
        self._use_case, self._outside, self._fence = use_case, outside, fence
        self._rollout = use_case.endpoint.rollout
        self._server = UseCaseServer(use_case, outside)
        self._steps = {
            DeploymentStage.PACKAGE: self._package_bundle,
            DeploymentStage.GOLDEN: self._ask_golden_rows,
            DeploymentStage.SHADOW: self._mirror_requests,
            DeploymentStage.CANARY: self._share_requests,
            DeploymentStage.FULL: self._answer_everyone,
        }

    def run(self, deployment: Deployment) -> Deployment:
        """Go on until it has ended."""
        while deployment.outcome is None:
            if self._is_stale(deployment):
                return self.end(deployment, DeploymentOutcome.SUPERSEDED, _NEW_CHAMPION)
            _LOG.info("%s: %s", deployment.deployment_id, deployment.stage)
            try:
                deployment = self._steps[deployment.stage](deployment)
            except (Corrupt, Missing) as problem:  # its bundle, which no retry mends
                outcome = DeploymentOutcome.REFUSED if deployment.stage in _UNSEEN else DeploymentOutcome.REVERTED
                deployment = self.end(deployment, outcome, f"the stored bundle is not what was registered: {problem}")
        return deployment

    def end(
        self,
        deployment: Deployment,
        outcome: DeploymentOutcome,
        problem: str,
        evidence: Mapping[str, Any] | None = None,
    ) -> Deployment:
        """Not this one: what answered goes on answering, alone, and the version leaves the server."""
        serving = deployments.find_serving_deployment(self._use_case, self._outside)
        with self._outside.warehouse.transaction(self._fence) as at:
            deployments.finish_deployment(
                at,
                deployment,
                outcome,
                self._outside,
                problem=problem,
                evidence={str(deployment.stage): evidence} if evidence else {},
            )
            self._server.set_route(serving.version if serving else None)
        self._server.retire_others(serving)
        return self._read_again(deployment)

    def _package_bundle(self, deployment: Deployment) -> Deployment:
        """The bundle becomes an archive, whose digest is kept before anybody loads it, and is registered."""
        try:
            archive = self._server.make_archive(deployment.version)
            with self._outside.warehouse.transaction(self._fence) as at:
                deployments.update_deployment(at, deployment, archive_sha256=archive.sha256)
            self._server.register(archive)
        except VersionRejected as problem:
            return self.end(deployment, DeploymentOutcome.REFUSED, str(problem))
        return self._go_on(deployment, {"archive_sha256": archive.sha256})

    def _ask_golden_rows(self, deployment: Deployment) -> Deployment:
        """Real rows through the real server get the batch's answers, in time."""
        try:
            self._server.ensure_loaded(deployment.version, deployment.archive_sha256)
            tally, example = ask_golden_rows(self._use_case, deployment.version, self._outside)
        except VersionRejected as problem:
            return self.end(deployment, DeploymentOutcome.REFUSED, str(problem))
        judgement = judge_golden(self._rollout, tally)
        evidence = {**asdict(tally), "said": judgement.reason, "example": example}
        if judgement.result is StageResult.BREACH:
            return self.end(deployment, DeploymentOutcome.REFUSED, judgement.reason, evidence)
        return self._follow(deployment, judgement, evidence)

    def _mirror_requests(self, deployment: Deployment) -> Deployment:
        """What is asked of the running version is asked of this one as well; nobody sees its answers."""
        checker = self._make_checker(deployment, shadow.SLOT)
        evidence: dict[str, Any] = {}

        def judge(minutes: float) -> StageJudgement:
            tally, versus_stable = shadow.mirror_requests(
                self._use_case, deployment, self._outside, fence=self._fence, checker=checker
            )
            evidence.update(asdict(tally), versus_stable=versus_stable)
            return judge_shadow(self._rollout, tally, minutes=minutes)

        judgement = self._wait_for_judgement(deployment, judge)
        return self._follow(deployment, judgement, {**evidence, "said": judgement.reason})

    def _share_requests(self, deployment: Deployment) -> Deployment:
        """A share of the real requests is answered by this version."""
        self._give_share(deployment)
        checker = self._make_checker(deployment, "candidate")
        records: set[GatewayRecord] = set()  # the gateway forgets the oldest, and all when it starts again
        evidence: dict[str, Any] = {}

        def judge(minutes: float) -> StageJudgement:
            latest = require_gateway(self._outside).records(self._use_case.name, deployment.stage_since)
            records.update(r for r in latest if (r.slot, r.version) == ("candidate", deployment.version))
            tally = tally_traffic(records, checker.check(), max_ms=self._rollout.max_p99_ms)
            evidence.update(asdict(tally))
            return judge_canary(self._rollout, tally, minutes=minutes)

        judgement = self._wait_for_judgement(deployment, judge)
        return self._follow(deployment, judgement, {**evidence, "said": judgement.reason})

    def _answer_everyone(self, deployment: Deployment) -> Deployment:
        """Everyone is answered by this version, which a request through the gateway proves; the one before is kept."""
        try:
            self._server.ensure_loaded(deployment.version, deployment.archive_sha256)
        except VersionRejected as problem:
            return self.end(deployment, DeploymentOutcome.REFUSED, str(problem))
        with self._outside.warehouse.transaction(self._fence):
            self._server.set_route(deployment.version)
        try:
            self._server.prove_version(deployment.version)
        except WrongAnswer as problem:
            return self.end(deployment, DeploymentOutcome.REVERTED, str(problem))
        self._server.publish(deployment.version)
        with self._outside.warehouse.transaction(self._fence) as at:
            deployments.finish_deployment(at, deployment, DeploymentOutcome.FULL, self._outside)
        done = self._read_again(deployment)
        self._server.retire_others(done)
        return done

    def _go_on(self, deployment: Deployment, evidence: Mapping[str, Any]) -> Deployment:
        stage = next_stage(deployment.stage, is_short=self._is_short(deployment))
        with self._outside.warehouse.transaction(self._fence) as at:
            deployments.update_deployment(at, deployment, stage=stage, evidence={deployment.stage: evidence})
        return self._read_again(deployment)

    def _is_short(self, deployment: Deployment) -> bool:
        """Whether nothing answers, or what answers has the same network."""
        serving = deployments.find_serving_deployment(self._use_case, self._outside)
        if serving is None:
            return True
        return is_same_network(self._use_case, deployment.version, serving.version, self._outside)

    def _follow(self, deployment: Deployment, judgement: StageJudgement, evidence: Mapping[str, Any]) -> Deployment:
        if judgement.result is StageResult.PASS:
            return self._go_on(deployment, evidence)
        return self.end(deployment, _OUTCOMES[judgement.result], judgement.reason, evidence)

    def _wait_for_judgement(self, deployment: Deployment, judge: Callable[[float], StageJudgement]) -> StageJudgement:
        """Look again until it is decided. The time counts while somebody looks: none passes between two tries."""
        self._server.ensure_loaded(deployment.version, deployment.archive_sha256)
        began = time.monotonic()

        def judge_now() -> StageJudgement | None:
            judgement = judge((time.monotonic() - began) / 60)
            if judgement.result is not StageResult.WAIT:
                return judgement
            return StageJudgement(StageResult.WAIT, _NEW_CHAMPION) if self._is_stale(deployment) else None

        judgement = wait_until(judge_now, within_seconds=inf, every_seconds=POLL_SECONDS)
        assert judgement is not None
        return judgement

    def _is_stale(self, deployment: Deployment) -> bool:
        """Whether the champion has changed since.

        Raises:
            FencedOut: somebody has taken over.
        """
        with self._outside.warehouse.transaction(self._fence):
            pass
        if deployment.is_auto_rollback:
            return False  # what does badly answers until it is done, whoever is champion by then
        champion = current(self._use_case, self._outside)
        return champion is None or champion.revision != deployment.revision

    def _give_share(self, deployment: Deployment) -> None:
        with self._outside.warehouse.transaction(self._fence):
            self._server.set_route(deployment.previous_version, deployment.version, self._rollout.canary_share)

    def _make_checker(self, deployment: Deployment, slot: str) -> AnswerChecker:
        return AnswerChecker(
            deployment,
            slot,
            self._outside,
            load_predictor=cache(lambda: load_batch_predictor(self._use_case, deployment.version, self._outside)),
        )

    def _read_again(self, deployment: Deployment) -> Deployment:
        return deployments.require_deployment(deployment.deployment_id, self._outside)
