"""Back to a version that answered before, at once: it asks nobody and waits for nobody, and a request proves it."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.spec import UseCase
from tasks.deploy import deployments
from tasks.deploy.deployments import Deployment
from tasks.deploy.stages import Stages

if TYPE_CHECKING:
    from adapters.connect import Outside
    from tasks.deploy.deploy import Asked


def put_back(use_case: UseCase, asked: "Asked", outside: "Outside") -> Deployment:
    """Route everyone to a version, whatever is under way, which ends as superseded.

    It was kept registered; where the server has forgotten it, it is registered again first. If it does not answer, what
    answered before stays.

    Raises:
        ConnectionError: the server or the gateway is not there.
        FencedOut: somebody else has taken over.
    """
    done = deployments.of_id(asked.deployment_id, outside)
    if done is not None and done.outcome is not None:
        return done
    fence = outside.warehouse.begin(f"deploy/{use_case.name}")  # who is at it may write no more
    ongoing, serving = deployments.in_flight(use_case, outside), deployments.serving(use_case, outside)
    if done is None:
        with outside.warehouse.transaction(fence) as at:
            if ongoing is not None:
                problem = f"version {asked.version} was put back: {asked.reason}"
                deployments.finish(at, ongoing, "superseded", outside, problem=problem)
            row = {"use_case": use_case.name, "kind": "rollback", "stage": "full"}
            before = deployments.before(serving, asked.version)
            deployments.open_row(at, {**asdict(asked), **row, "previous_version": before})
    opened = deployments.of_id(asked.deployment_id, outside)
    assert opened is not None
    ended = Stages(use_case, outside, fence).run(opened)
    outside.alerts.flush()
    return ended
