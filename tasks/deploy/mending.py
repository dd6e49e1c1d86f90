"""Puts right what a kill between two steps has left: the route and the server follow the table of deployments."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.errors import FencedOut
from adapters.warehouse import Fence
from pipeline.spec import UseCase
from tasks.deploy import deployments
from tasks.deploy.experiment import log
from tasks.deploy.server import Rejected, Server, gateway

if TYPE_CHECKING:
    from adapters.connect import Outside


@dataclass(frozen=True, kw_only=True)
class Mended:
    """What was found, and what could not be put right, in words."""

    changed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def mend(use_case: UseCase, outside: "Outside") -> Mended:
    """Let the route be what the table says, unless somebody is deploying.

    A canary whose process is gone gets no more requests: nobody would notice if it failed. It goes on when the
    deployment is taken up again. A rollback under way, which takes no lock, is left alone.
    """
    with outside.warehouse.alone(f"deploy/{use_case.name}") as nobody_is_at_it:
        if not nobody_is_at_it or _going_back(use_case, outside):
            return Mended()
        try:
            changed, failed = _versions(use_case, outside)
            return Mended(changed=(*changed, *_route(use_case, outside)), failed=tuple(failed))
        except FencedOut:
            return Mended(changed=("somebody has begun to deploy meanwhile",))
        except ConnectionError as problem:  # which the look tells itself
            return Mended(changed=(str(problem),))
        except ValueError as problem:
            return Mended(failed=(str(problem),))


def _going_back(use_case: UseCase, outside: "Outside") -> bool:
    ongoing = deployments.in_flight(use_case, outside)
    return ongoing is not None and ongoing.kind == "rollback"


def _versions(use_case: UseCase, outside: "Outside") -> tuple[list[str], list[str]]:
    """What answers, and what would come back, is loaded; what was, and what could not be."""
    serving = deployments.serving(use_case, outside)
    changed: list[str] = []
    failed: list[str] = []
    if serving is None:
        return changed, failed
    for version, sha256 in ((serving.version, serving.archive_sha256), (serving.previous_version, None)):
        if version is None:
            continue
        try:
            if Server(use_case, outside).ensure(version, sha256):
                changed.append(f"version {version} was loaded again")
        except Rejected as problem:
            failed.append(str(problem))
    try:
        Server(use_case, outside).retire_others(serving)
    except ValueError as problem:  # the route matters more
        failed.append(str(problem))
    return changed, failed


def _route(use_case: UseCase, outside: "Outside") -> list[str]:
    from adapters.gateway import Route

    rows = outside.warehouse.query("select epoch from fences where run_key = %s", (f"deploy/{use_case.name}",))
    if not rows:
        return []
    # Not a new epoch, which would throw out a rollback that begins now: this one's, so that it waits for us.
    fence = Fence(run_key=f"deploy/{use_case.name}", epoch=rows[0]["epoch"])
    with outside.warehouse.transaction(fence):
        if _going_back(use_case, outside):
            return []  # it has begun since, and moves the route itself
        serving = deployments.serving(use_case, outside)
        trial = log.unsettled(use_case, outside)
        if trial is not None and serving is not None and trial.control == serving.version:
            return []  # the candidate's place is the experiment's, which looks after it
        wanted, found = Route(serving.version if serving else None, None, 0.0), gateway(outside).route(use_case.name)
        Server(use_case, outside).route(wanted.stable)
    return [] if found == wanted else [f"the route was {found}, and is {wanted} again"]
