"""Back to a version that answered before, at once: it asks nobody and waits for nobody, and a request proves it."""

from dataclasses import asdict

from adapters.connect import Outside
from pipeline.spec import UseCase
from tasks.deploy import deployments
from tasks.deploy.deployments import Deployment, DeploymentKind, DeploymentOutcome, DeploymentRequest, DeploymentStage
from tasks.deploy.stages import Stages


def roll_back_route(use_case: UseCase, request: DeploymentRequest, outside: Outside) -> Deployment:
    """Route everyone to a version, whatever is under way, which ends as superseded.

    It was kept registered; where the server has forgotten it, it is registered again first. If it does not answer, what
    answered before stays.

    Raises:
        ConnectionError: the server or the gateway is not there.
        FencedOut: somebody else has taken over.
    """
    done = deployments.find_deployment(request.deployment_id, outside)
    if done is not None and done.outcome is not None:
        return done
    fence = outside.warehouse.begin(f"deploy/{use_case.name}")  # who is at it may write no more
    ongoing = deployments.find_ongoing_deployment(use_case, outside)
    if done is None:
        serving = deployments.find_serving_deployment(use_case, outside)
        row = {
            **asdict(request),
            "use_case": use_case.name,
            "kind": DeploymentKind.ROLLBACK,
            "stage": DeploymentStage.FULL,
            "previous_version": deployments.find_version_before(serving, request.version),
        }
        with outside.warehouse.transaction(fence) as at:
            if ongoing is not None:
                problem = f"version {request.version} was put back: {request.reason}"
                deployments.finish_deployment(at, ongoing, DeploymentOutcome.SUPERSEDED, outside, problem=problem)
            deployments.insert_deployment(at, row)
    ended = Stages(use_case, outside, fence).run(deployments.require_deployment(request.deployment_id, outside))
    outside.alerts.flush()
    return ended
