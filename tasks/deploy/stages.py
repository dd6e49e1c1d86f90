"""The stages a version goes through on the server, each one idempotent: what it needs to know is in the database."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from adapters.errors import Corrupt, Missing
from pipeline.online import Endpoint
from pipeline.spec import UseCase
from tasks.common.ledger import current
from tasks.deploy import canary, deployments, golden, recompute, shadow
from tasks.deploy.deployments import Deployment
from tasks.deploy.judge import Step, after, judge_canary, judge_golden, judge_shadow
from tasks.deploy.server import Rejected, Server, gateway

if TYPE_CHECKING:
    from adapters.connect import Outside
    from adapters.gateway import Record
    from adapters.warehouse import Fence

POLL_SECONDS = 1.0
_UNSEEN = ("package", "golden")  # no request of a client has come near it
_OUTCOMES = {"hold": "held", "breach": "reverted"}
_LOG = logging.getLogger(__name__)


class Stages:
    """One process's work on the deployments of a use case, under its fence."""

    def __init__(self, use_case: UseCase, outside: "Outside", fence: "Fence") -> None:
        assert use_case.endpoint is not None
        self._use_case, self._outside, self._fence = use_case, outside, fence
        self._endpoint: Endpoint = use_case.endpoint
        self._server = Server(use_case, outside)

    def run(self, deployment: Deployment) -> Deployment:
        """Go on until it has ended."""
        while deployment.outcome is None:
            if self._is_stale(deployment):
                deployment = self.end(deployment, "superseded", "the champion has changed meanwhile")
                break
            _LOG.info("%s: %s", deployment.deployment_id, deployment.stage)
            try:
                deployment = getattr(self, f"_{deployment.stage}")(deployment)
            except (Corrupt, Missing) as problem:  # its bundle, which no retry mends
                outcome = "refused" if deployment.stage in _UNSEEN else "reverted"
                deployment = self.end(deployment, outcome, f"the stored bundle is not what was registered: {problem}")
        return deployment

    def end(
        self, deployment: Deployment, outcome: str, problem: str, evidence: Mapping[str, Any] | None = None
    ) -> Deployment:
        """Not this one: what answered goes on answering, alone, and the version leaves the server."""
        serving = deployments.serving(self._use_case, self._outside)
        with self._outside.warehouse.transaction(self._fence) as at:
            stage = {deployment.stage: evidence} if evidence else {}
            deployments.finish(at, deployment, outcome, self._outside, problem=problem, evidence=stage)
            self._server.route(serving.version if serving else None)
        self._server.retire_others(serving)
        return self._again(deployment)

    def _package(self, deployment: Deployment) -> Deployment:
        """The bundle becomes an archive, whose digest is kept before anybody loads it, and is registered."""
        try:
            archive = self._server.archive(deployment.version)
            with self._outside.warehouse.transaction(self._fence) as at:
                deployments.change(at, deployment, archive_sha256=archive.sha256)
            self._server.register(archive)
        except Rejected as problem:
            return self.end(deployment, "refused", str(problem))
        return self._go_on(deployment, {"archive_sha256": archive.sha256})

    def _golden(self, deployment: Deployment) -> Deployment:
        """Real rows through the real server get the batch's answers, in time."""
        try:
            self._server.ensure(deployment.version, deployment.archive_sha256)
            seen, example = golden.look(self._use_case, deployment.version, self._outside)
        except Rejected as problem:
            return self.end(deployment, "refused", str(problem))
        step = judge_golden(self._endpoint.rollout, seen)
        evidence = {**asdict(seen), "said": step.reason, "example": example}
        if step.answer != "pass":
            return self.end(deployment, "refused" if step.answer == "breach" else "held", step.reason, evidence)
        return self._go_on(deployment, evidence)

    def _shadow(self, deployment: Deployment) -> Deployment:
        """What is asked of the running version is asked of this one as well; nobody sees its answers."""
        checker = self._checker(deployment, shadow.SLOT)
        looks: list[shadow.Look] = []

        def judge(minutes: float) -> Step:
            looks.append(shadow.look(self._use_case, deployment, self._outside, fence=self._fence, checker=checker))
            return judge_shadow(self._endpoint.rollout, looks[-1].seen, minutes=minutes)

        step = self._until(deployment, judge)
        seen = looks[-1] if looks else None
        evidence = {**asdict(seen.seen), "versus_stable": seen.versus_stable, "said": step.reason} if seen else {}
        return self._follow(deployment, step, evidence)

    def _canary(self, deployment: Deployment) -> Deployment:
        """A share of the real requests is answered by this version."""
        self._move(deployment, share=self._endpoint.rollout.canary_share)
        checker = self._checker(deployment, "candidate")
        records: set[Record] = set()  # the gateway forgets the oldest, and all when it starts again
        tallies = []

        def judge(minutes: float) -> Step:
            found = gateway(self._outside).records(self._use_case.name, deployment.stage_since)
            records.update(r for r in found if (r.slot, r.version) == ("candidate", deployment.version))
            tallies.append(canary.tally(records, checker.check(), max_ms=self._endpoint.rollout.max_p99_ms))
            return judge_canary(self._endpoint.rollout, tallies[-1], minutes=minutes)

        step = self._until(deployment, judge)
        evidence = {**asdict(tallies[-1]), "said": step.reason} if tallies else {}
        return self._follow(deployment, step, evidence)

    def _full(self, deployment: Deployment) -> Deployment:
        """Everyone is answered by this version, which a request through the gateway proves; the one before is kept."""
        try:
            self._server.ensure(deployment.version, deployment.archive_sha256)
        except Rejected as problem:
            return self.end(deployment, "refused", str(problem))
        with self._outside.warehouse.transaction(self._fence):
            self._server.route(deployment.version)
        if wrong := self._server.proof(deployment.version):
            return self.end(deployment, "reverted", wrong)
        self._server.settle(deployment.version)
        with self._outside.warehouse.transaction(self._fence) as at:
            deployments.finish(at, deployment, "full", self._outside)
        done = self._again(deployment)
        self._server.retire_others(done)
        return done

    def _go_on(self, deployment: Deployment, evidence: Mapping[str, Any]) -> Deployment:
        stage = after(deployment.stage, first=deployment.previous_version is None)
        with self._outside.warehouse.transaction(self._fence) as at:
            deployments.change(at, deployment, stage=stage, evidence={deployment.stage: evidence})
        return self._again(deployment)

    def _follow(self, deployment: Deployment, step: Step, evidence: Mapping[str, Any]) -> Deployment:
        if step.answer == "pass":
            return self._go_on(deployment, evidence)
        if step.answer == "wait":
            return self.end(deployment, "superseded", step.reason, evidence)
        return self.end(deployment, _OUTCOMES[step.answer], step.reason, evidence)

    def _until(self, deployment: Deployment, judge: Callable[[float], Step]) -> Step:
        """Look again until it is decided. The time counts while somebody looks: none passes between two tries."""
        self._server.ensure(deployment.version, deployment.archive_sha256)
        began = time.monotonic()
        while (step := judge((time.monotonic() - began) / 60)).answer == "wait":
            if self._is_stale(deployment):
                return Step(answer="wait", reason="the champion has changed meanwhile")
            time.sleep(POLL_SECONDS)
        return step

    def _is_stale(self, deployment: Deployment) -> bool:
        """Whether the champion has changed since.

        Raises:
            FencedOut: somebody has taken over.
        """
        with self._outside.warehouse.transaction(self._fence):
            pass
        if deployments.is_taken_back(deployment):
            return False  # what does badly answers until it is done, whoever is champion by then
        champion = current(self._use_case, self._outside)
        return champion is None or champion.revision != deployment.revision

    def _move(self, deployment: Deployment, *, share: float) -> None:
        with self._outside.warehouse.transaction(self._fence):
            self._server.route(deployment.previous_version, deployment.version, share)

    def _checker(self, deployment: Deployment, slot: str) -> canary.Checker:
        batch = cache(lambda: recompute.predictor(self._use_case, deployment.version, self._outside))
        return canary.Checker(deployment, slot, self._outside, batch=batch)

    def _again(self, deployment: Deployment) -> Deployment:
        found = deployments.of_id(deployment.deployment_id, self._outside)
        assert found is not None
        return found
