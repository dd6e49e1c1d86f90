"""Puts right what a kill between two steps has left: the route and the server follow the table of deployments."""

from dataclasses import dataclass

from adapters.connect import Outside
from adapters.errors import FencedOut
from adapters.gateway import Route
from adapters.warehouse import Fence
from pipeline.spec import UseCase
from tasks.deploy.deployments import DeploymentKind, find_ongoing_deployment, find_serving_deployment
from tasks.deploy.experiment.log import find_unsettled_experiment
from tasks.deploy.server import UseCaseServer, VersionRejected, require_gateway


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """What was put right, and what could not be, in words."""

    changed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def reconcile_server(use_case: UseCase, outside: Outside) -> Reconciliation:
    """Let the route be what the table says, unless somebody is deploying.

    A canary whose process is gone gets no more requests: nobody would notice if it failed. It goes on when the
    deployment is taken up again. A rollback under way, which takes no lock, is left alone.
    """
    with outside.warehouse.alone(f"deploy/{use_case.name}") as nobody_is_at_it:
        if not nobody_is_at_it or _is_rolling_back(use_case, outside):
            return Reconciliation()
        try:
            changed, failed = _load_versions(use_case, outside)
            return Reconciliation(changed=(*changed, *_correct_route(use_case, outside)), failed=tuple(failed))
        except FencedOut:
            return Reconciliation(changed=("somebody has begun to deploy meanwhile",))
        except ConnectionError as problem:  # which the watch tells itself
            return Reconciliation(changed=(str(problem),))
        except ValueError as problem:
            return Reconciliation(failed=(str(problem),))


def _is_rolling_back(use_case: UseCase, outside: Outside) -> bool:
    ongoing = find_ongoing_deployment(use_case, outside)
    return ongoing is not None and ongoing.kind is DeploymentKind.ROLLBACK


def _load_versions(use_case: UseCase, outside: Outside) -> tuple[list[str], list[str]]:
    """What answers, and what would come back, is loaded; what was, and what could not be."""
    serving = find_serving_deployment(use_case, outside)
    changed: list[str] = []
    failed: list[str] = []
    if serving is None:
        return changed, failed
    before = [(serving.previous_version, None)] if serving.previous_version else []
    for version, sha256 in ((serving.version, serving.archive_sha256), *before):
        try:
            if UseCaseServer(use_case, outside).ensure_loaded(version, sha256):
                changed.append(f"version {version} was loaded again")
        except VersionRejected as problem:
            failed.append(str(problem))
    try:
        UseCaseServer(use_case, outside).retire_others(serving)
    except ValueError as problem:  # the route matters more
        failed.append(str(problem))
    return changed, failed


def _correct_route(use_case: UseCase, outside: Outside) -> list[str]:
    rows = outside.warehouse.query("select epoch from fences where run_key = %s", (f"deploy/{use_case.name}",))
    if not rows:
        return []
    # Not a new epoch, which would throw out a rollback that begins now: this one's, so that it waits for us.
    with outside.warehouse.transaction(Fence(run_key=f"deploy/{use_case.name}", epoch=rows[0]["epoch"])):
        if _is_rolling_back(use_case, outside):
            return []  # it has begun since, and moves the route itself
        serving = find_serving_deployment(use_case, outside)
        experiment = find_unsettled_experiment(use_case, outside)
        if experiment is not None and serving is not None and experiment.control == serving.version:
            return []  # the candidate's place is the experiment's, which looks after it
        right, was = (
            Route(serving.version if serving else None, None, 0.0),
            require_gateway(outside).route(use_case.name),
        )
        UseCaseServer(use_case, outside).set_route(right.stable)
    return [] if was == right else [f"the route was {was}, and is {right} again"]
