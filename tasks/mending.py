"""Puts right what a kill between two steps has left: the route and the server follow the table of deployments."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from adapters.warehouse import Fence
from pipeline.spec import UseCase
from tasks import deployments, experiment_log
from tasks.server import Rejected, Server, gateway

if TYPE_CHECKING:
    from adapters.connect import Outside

_AT_ONCE = timedelta(minutes=2)  # a rollback takes no longer


def mend(use_case: UseCase, outside: "Outside") -> list[str]:
    """Let the route be what the table says, unless somebody is deploying; what had to be changed, in words.

    A canary whose process is gone gets no more requests: nobody would notice if it failed. It goes on when the
    deployment is taken up again.
    """
    with outside.warehouse.alone(f"deploy/{use_case.name}") as nobody_is_at_it:
        if not nobody_is_at_it:
            return []
        ongoing = deployments.in_flight(use_case, outside)
        if ongoing and ongoing.kind == "rollback" and datetime.now(UTC) - ongoing.started_at < _AT_ONCE:
            return []  # it takes no lock
        try:
            return [*_versions(use_case, outside), *_route(use_case, outside)]
        except ConnectionError as problem:
            return [str(problem)]


def _versions(use_case: UseCase, outside: "Outside") -> list[str]:
    """What answers, and what would come back, is loaded."""
    serving = deployments.serving(use_case, outside)
    if serving is None:
        return []
    found = []
    for version, sha256 in ((serving.version, serving.archive_sha256), (serving.previous_version, None)):
        if version is None:
            continue
        try:
            if Server(use_case, outside).ensure(version, sha256):
                found.append(f"version {version} was loaded again")
        except Rejected as problem:
            found.append(str(problem))
    Server(use_case, outside).retire_others(serving)
    return found


def _route(use_case: UseCase, outside: "Outside") -> list[str]:
    from adapters.gateway import Route

    rows = outside.warehouse.fetch("select epoch from fences where run_key = %s", (f"deploy/{use_case.name}",))
    if not rows:
        return []
    # Not a new epoch, which would throw out a rollback that begins now: this one's, so that it waits for us.
    fence = Fence(run_key=f"deploy/{use_case.name}", epoch=rows[0]["epoch"])
    with outside.warehouse.transaction(fence):
        serving = deployments.serving(use_case, outside)
        trial = experiment_log.unsettled(use_case, outside)
        if trial is not None and serving is not None and trial.control == serving.version:
            return []  # the candidate's place is the experiment's, which looks after it
        wanted, found = Route(serving.version if serving else None, None, 0.0), gateway(outside).route(use_case.name)
        Server(use_case, outside).route(wanted.stable)
    return [] if found == wanted else [f"the route was {found}, and is {wanted} again"]
