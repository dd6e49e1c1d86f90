"""Bring a champion to the online server in stages, each of which can be killed and goes on when run again.

What is true is in `deployments`; the gateway's route and the server's registrations follow it. One process at a time
works on a use case (a lock that dies with it), and each of its steps is fenced: a rollback, which waits for nobody,
ends what is under way. The route is moved inside the transaction that says so, so that neither is without the other
for longer than a kill between the two, which the next run or the watch mends.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from enum import StrEnum

from adapters.connect import Outside
from adapters.errors import FencedOut
from adapters.retrying import wait_until
from adapters.warehouse import Fence
from pipeline.handoffs import Release
from pipeline.spec import UseCase
from tasks.common.command import print_sentence
from tasks.common.ledger import current, is_same_network, was_promoted
from tasks.deploy import deployments
from tasks.deploy.deployments import (
    Deployment,
    DeploymentKind,
    DeploymentOutcome,
    DeploymentRequest,
    DeploymentStage,
)
from tasks.deploy.experiment.log import find_unsettled_experiment
from tasks.deploy.rollback import roll_back_route
from tasks.deploy.stages import Stages

_WAIT_SECONDS, _POLL_SECONDS = 60.0, 0.5  # the watch has the lock for a moment, too


class Obstacle(StrEnum):
    """Why nothing is deployed, in words, with what is to be filled in."""

    NO_ENDPOINT = "no endpoint is configured, so nothing is deployed; {serves}"
    NO_GATEWAY = "this installation has no gateway, so nothing is deployed; {serves}"
    NO_CHAMPION = "there is no champion to deploy"
    OTHER_CHAMPION = "version {version} is not deployed: the champion has changed since"
    EXPERIMENT = "an experiment has the candidate's place; {use_case}.reconcile deploys after it"


def describe_obstacle(obstacle: Obstacle, use_case: UseCase, version: str | None) -> str:
    """The sentence for people."""
    serves = f"version {version} scores in batch" if version else "nothing serves"
    return f"{use_case.name}: {obstacle.format(serves=serves, version=version, use_case=use_case.name)}"


def find_missing_part(use_case: UseCase, outside: Outside) -> Obstacle | None:
    """What there would have to be first; None where there is an endpoint and a server to bring a version to."""
    if use_case.endpoint is None:
        return Obstacle.NO_ENDPOINT
    if outside.settings.gateway_url is None or outside.settings.management_url is None:
        return Obstacle.NO_GATEWAY
    return None


def deploy_release(use_case: UseCase, release: Release, outside: Outside) -> str:
    """Follow a release: a promotion by stages, a rollback at once. One sentence that says what became of it.

    Called again it goes on where it was, or says how it ended.

    Raises:
        ConnectionError: the server or the gateway is not there; what answers goes on answering.
    """
    version = release.champion_version
    if missing := find_missing_part(use_case, outside):
        return print_sentence(describe_obstacle(missing, use_case, version))
    if version is None:
        return print_sentence(describe_obstacle(Obstacle.NO_CHAMPION, use_case, version))
    request = DeploymentRequest(
        deployment_id=_name_deployment(use_case, release.revision, version),
        request_id=f"release-{release.revision}",
        version=version,
        revision=release.revision,
        as_of=release.as_of,
        actor=release.actor,
        reason=f"the champion was {release.outcome}",
    )
    if release.outcome == "rolled-back":
        return print_sentence(roll_back_route(use_case, request, outside).describe())
    return print_sentence(roll_out(use_case, request, outside))


def start_deployment(
    use_case: UseCase,
    outside: Outside,
    *,
    request_id: str,
    actor: str,
    reason: str,
    version: str | None = None,
    again: bool = False,
) -> str:
    """Deploy by hand, or what was left over: the champion, or a version that was champion once.

    Args:
        use_case: whose version it is.
        outside: the outside world.
        request_id: names the run, so that a retry of it is not a second deployment.
        actor: who wants it.
        reason: why.
        version: empty: the champion.
        again: also where this champion was refused, reverted or held before.

    Raises:
        ValueError: the version never was a champion.
        ConnectionError: the server or the gateway is not there.
    """
    champion = current(use_case, outside)
    if missing := find_missing_part(use_case, outside):
        return print_sentence(describe_obstacle(missing, use_case, champion.version if champion else None))
    if champion is None:
        return print_sentence(describe_obstacle(Obstacle.NO_CHAMPION, use_case, None))
    done = deployments.find_deployment_of_request(use_case, request_id, outside)
    if done is not None and done.outcome is not None:
        return print_sentence(done.describe())
    chosen = version or champion.version
    _require_promoted(use_case, chosen, outside)
    before = deployments.find_finished_deployment(use_case, champion.revision, chosen, outside)
    if before is not None and not again and version is None:
        advice = "" if before.outcome is DeploymentOutcome.FULL else "; set `again` to try it once more"
        return print_sentence(before.describe() + advice)
    by_release = _name_deployment(use_case, champion.revision, chosen)
    is_new = deployments.find_deployment(by_release, outside) is None
    request = DeploymentRequest(
        deployment_id=by_release if is_new else f"{use_case.name}-{request_id}",
        request_id=request_id,
        version=chosen,
        revision=champion.revision,
        as_of=champion.as_of,
        actor=actor,
        reason=reason,
    )
    return print_sentence(roll_out(use_case, request, outside))


def find_undeployed(use_case: UseCase, outside: Outside) -> list[str]:
    """The champion's version where it is not at the server and was not turned away there, and nobody is at it."""
    champion = current(use_case, outside)
    if champion is None or find_missing_part(use_case, outside):
        return []
    ongoing = deployments.find_ongoing_deployment(use_case, outside)
    if ongoing is not None and ongoing.is_auto_rollback:
        return []  # the watch goes on with it
    if ongoing is None and deployments.find_finished_deployment(use_case, champion.revision, champion.version, outside):
        return []
    if find_unsettled_experiment(use_case, outside) is not None:
        return []
    with outside.warehouse.alone(_name_lock(use_case)) as nobody_is_at_it:
        return [champion.version] if nobody_is_at_it else []


def roll_out(use_case: UseCase, request: DeploymentRequest, outside: Outside) -> str:
    """Take a version through its stages, or go on with the one that is on its way.

    Raises:
        ConnectionError: the server or the gateway is not there, or somebody else is at it for longer than we wait.
    """
    with _wait_for_lock(use_case, outside) as is_ours:
        if not is_ours:
            ongoing = deployments.find_ongoing_deployment(use_case, outside)
            if ongoing is not None and ongoing.is_for(request):
                return ongoing.describe()
            raise ConnectionError(f"{use_case.name}: somebody else is deploying; version {request.version} comes after")
        fence = outside.warehouse.begin(_name_lock(use_case))
        try:
            sentence = _advance(use_case, request, outside, fence)
        except FencedOut:  # a rollback, or a process that believes this one dead: it does the rest
            ended = deployments.find_deployment_of_request(use_case, request.request_id, outside)
            taken_over = f"{use_case.name}: somebody else has taken over the deployment of version {request.version}"
            sentence = ended.describe() if ended is not None and ended.outcome is not None else taken_over
    outside.alerts.flush()
    return sentence


@contextmanager
def _wait_for_lock(use_case: UseCase, outside: Outside) -> Iterator[bool]:
    """The lock, waited for a while; whether we have it."""

    def try_lock() -> ExitStack | None:
        with ExitStack() as attempt:
            is_ours = attempt.enter_context(outside.warehouse.alone(_name_lock(use_case)))
            return attempt.pop_all() if is_ours else None

    with wait_until(try_lock, within_seconds=_WAIT_SECONDS, every_seconds=_POLL_SECONDS) or nullcontext() as held:
        yield held is not None


def _advance(use_case: UseCase, request: DeploymentRequest, outside: Outside, fence: Fence) -> str:
    """Run the stages that are left, if it is this version's turn."""
    done = deployments.find_deployment(request.deployment_id, outside)
    if done is not None and done.outcome is not None:
        return done.describe()
    if obstacle := _find_obstacle(use_case, request, outside):
        return describe_obstacle(obstacle, use_case, request.version)
    stages = Stages(use_case, outside, fence)
    return stages.run(_take_up(use_case, request, outside, fence, stages)).describe()


def _find_obstacle(use_case: UseCase, request: DeploymentRequest, outside: Outside) -> Obstacle | None:
    champion = current(use_case, outside)
    if champion is None or champion.revision != request.revision:
        return Obstacle.OTHER_CHAMPION
    if find_unsettled_experiment(use_case, outside) is not None:
        return Obstacle.EXPERIMENT
    return None


def _take_up(
    use_case: UseCase, request: DeploymentRequest, outside: Outside, fence: Fence, stages: Stages
) -> Deployment:
    """The deployment to go on with, or a new one in the place of what nobody goes on with."""
    ongoing = deployments.find_ongoing_deployment(use_case, outside)
    if ongoing is not None and ongoing.is_auto_rollback:  # it takes no lock
        raise ConnectionError(f"{use_case.name}: a version is being taken back, which {use_case.name}.watch ends first")
    if ongoing is not None and ongoing.is_for(request):
        with outside.warehouse.transaction(fence) as at:
            deployments.update_deployment(at, ongoing, request_id=request.request_id)
        return deployments.require_deployment(ongoing.deployment_id, outside)
    if ongoing is not None:  # its process is gone, or we would not have the lock
        stages.end(ongoing, DeploymentOutcome.SUPERSEDED, f"version {request.version} is to be deployed")
    serving = deployments.find_serving_deployment(use_case, outside)
    before = deployments.find_version_before(serving, request.version)
    if before is not None and serving is not None and is_same_network(use_case, before, request.version, outside):
        before = serving.previous_version or before  # back is to another network, where there was one
    # Where it became champion again nothing is left but the proof.
    is_serving = serving is not None and serving.version == request.version
    row = {
        **asdict(request),
        "use_case": use_case.name,
        "kind": DeploymentKind.ROLLOUT,
        "stage": DeploymentStage.FULL if is_serving else DeploymentStage.PACKAGE,
        "previous_version": before,
    }
    with outside.warehouse.transaction(fence) as at:
        deployments.insert_deployment(at, row)
    return deployments.require_deployment(request.deployment_id, outside)


def _require_promoted(use_case: UseCase, version: str, outside: Outside) -> None:
    if not was_promoted(use_case, version, outside):
        raise ValueError(
            f"version {version} of {use_case.name} was never promoted, so the gate has not let it in: run"
            f" {use_case.name}.train, or name a version that was champion"
        )


def _name_deployment(use_case: UseCase, revision: int, version: str) -> str:
    return f"{use_case.name}-{revision}-{version}"


def _name_lock(use_case: UseCase) -> str:
    return f"deploy/{use_case.name}"
