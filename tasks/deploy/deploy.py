"""Bring a champion to the online server in stages, each of which can be killed and goes on when run again.

What is true is in `deployments`; the gateway's route and the server's registrations follow it. One process at a time
works on a use case (a lock that dies with it), and each of its steps is fenced: a rollback, which waits for nobody,
ends what is under way. The route is moved inside the transaction that says so, so that neither is without the other
for longer than a kill between the two, which the next run or the watch mends.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from adapters.errors import FencedOut
from pipeline.handoffs import Release
from pipeline.spec import UseCase
from tasks.common.ledger import current
from tasks.deploy import deployments
from tasks.deploy.deployments import Deployment
from tasks.deploy.experiment import log
from tasks.deploy.stages import Stages

if TYPE_CHECKING:
    from adapters.connect import Outside
    from adapters.warehouse import Fence

_WAIT_SECONDS, _POLL_SECONDS = 60.0, 0.5  # the watch has the lock for a moment, too


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which version is to be brought to the server, after which change of champion, by whom, and why."""

    deployment_id: str
    request_id: str
    version: str
    revision: int
    as_of: datetime
    actor: str
    reason: str


def deploy(use_case: UseCase, release: Release, outside: "Outside") -> str:
    """Follow a release: a promotion by stages, a rollback at once. One sentence that says what became of it.

    Asked again it goes on where it was, or says how it ended.

    Raises:
        ConnectionError: the server or the gateway is not there; what answers goes on answering.
    """
    if said := nothing_to_deploy_to(use_case, release.champion_version, outside):
        return _said(said)
    if release.champion_version is None:
        return _said(f"{use_case.name}: there is no champion to deploy")
    asked = Asked(
        deployment_id=f"{use_case.name}-{release.revision}-{release.champion_version}",
        request_id=f"release-{release.revision}",
        version=release.champion_version,
        revision=release.revision,
        as_of=release.as_of,
        actor=release.actor,
        reason=f"the champion was {release.outcome}",
    )
    if release.outcome == "rolled-back":
        from tasks.deploy.put_back import put_back

        return _said(put_back(use_case, asked, outside).sentence())
    return _said(bring(use_case, asked, outside))


def start(
    use_case: UseCase,
    outside: "Outside",
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
        actor: who asks.
        reason: why.
        version: empty: the champion.
        again: also where this champion was refused, reverted or held before.

    Raises:
        ValueError: the version never was a champion.
        ConnectionError: the server or the gateway is not there.
    """
    champion = current(use_case, outside)
    if said := nothing_to_deploy_to(use_case, champion.version if champion else None, outside):
        return _said(said)
    if champion is None:
        return _said(f"{use_case.name}: there is no champion to deploy")
    done = deployments.of_request(use_case, request_id, outside)
    if done is not None and done.outcome is not None:
        return _said(done.sentence())
    wanted = version or champion.version
    _require_judged(use_case, wanted, outside)
    before = deployments.answered(use_case, champion.revision, wanted, outside)
    if before is not None and not again and version is None:
        hint = "" if before.outcome == "full" else "; set `again` to try it once more"
        return _said(before.sentence() + hint)
    by_release = f"{use_case.name}-{champion.revision}-{wanted}"
    asked = Asked(
        deployment_id=by_release if deployments.of_id(by_release, outside) is None else f"{use_case.name}-{request_id}",
        request_id=request_id,
        version=wanted,
        revision=champion.revision,
        as_of=champion.as_of,
        actor=actor,
        reason=reason,
    )
    return _said(bring(use_case, asked, outside))


def pending(use_case: UseCase, outside: "Outside") -> list[str]:
    """The champion's version where it is not at the server and was not turned away there, and nobody is at it."""
    champion = current(use_case, outside)
    if champion is None or nothing_to_deploy_to(use_case, champion.version, outside):
        return []
    ongoing = deployments.in_flight(use_case, outside)
    if deployments.is_taken_back(ongoing):
        return []  # the watch goes on with it
    if ongoing is None and deployments.answered(use_case, champion.revision, champion.version, outside):
        return []
    if log.unsettled(use_case, outside) is not None:
        return []
    with outside.warehouse.alone(_lock(use_case)) as nobody_is_at_it:
        return [champion.version] if nobody_is_at_it else []


def nothing_to_deploy_to(use_case: UseCase, version: str | None, outside: "Outside") -> str | None:
    """The sentence that says so; None where there is an endpoint and a server to bring it to."""
    serves = f"version {version} scores in batch" if version else "nothing serves"
    if use_case.endpoint is None:
        return f"{use_case.name}: no endpoint is configured, so nothing is deployed; {serves}"
    if outside.settings.gateway_url is None or outside.settings.management_url is None:
        return f"{use_case.name}: this installation has no gateway, so nothing is deployed; {serves}"
    return None


def bring(use_case: UseCase, asked: Asked, outside: "Outside") -> str:
    """Take a version through its stages, or go on with the one that is on its way.

    Raises:
        ConnectionError: the server or the gateway is not there, or somebody else is at it for longer than we wait.
    """
    with _alone(use_case, outside) as mine:
        if not mine:
            ongoing = deployments.in_flight(use_case, outside)
            if ongoing is not None and (ongoing.version, ongoing.revision) == (asked.version, asked.revision):
                return ongoing.sentence()
            raise ConnectionError(f"{use_case.name}: somebody else is deploying; version {asked.version} comes after")
        fence = outside.warehouse.begin(_lock(use_case))
        try:
            taken = _taken_up(use_case, asked, outside, fence)
            said = taken if isinstance(taken, str) else Stages(use_case, outside, fence).run(taken).sentence()
        except FencedOut:  # a rollback, or a process that believes this one dead: it does the rest
            ended = deployments.of_request(use_case, asked.request_id, outside)
            taken_over = f"{use_case.name}: somebody else has taken over the deployment of version {asked.version}"
            said = ended.sentence() if ended is not None and ended.outcome is not None else taken_over
    outside.alerts.flush()
    return said


@contextmanager
def _alone(use_case: UseCase, outside: "Outside") -> Iterator[bool]:
    """The lock, waited for a while; whether we have it."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        with outside.warehouse.alone(_lock(use_case)) as mine:
            if mine or time.monotonic() >= deadline:
                yield mine
                return
        time.sleep(_POLL_SECONDS)


def _taken_up(use_case: UseCase, asked: Asked, outside: "Outside", fence: "Fence") -> Deployment | str:
    """The deployment to go on with, or why there is none."""
    done = deployments.of_id(asked.deployment_id, outside)
    if done is not None and done.outcome is not None:
        return done.sentence()
    champion = current(use_case, outside)
    if champion is None or champion.revision != asked.revision:
        return f"{use_case.name}: version {asked.version} is not deployed: the champion has changed since"
    if log.unsettled(use_case, outside) is not None:
        return f"{use_case.name}: an experiment has the candidate's place; {use_case.name}.reconcile deploys after it"
    ongoing = deployments.in_flight(use_case, outside)
    if deployments.is_taken_back(ongoing):  # it takes no lock
        raise ConnectionError(f"{use_case.name}: a version is being taken back, which {use_case.name}.watch ends first")
    if ongoing is not None and (ongoing.version, ongoing.revision) == (asked.version, asked.revision):
        with outside.warehouse.transaction(fence) as at:
            deployments.change(at, ongoing, request_id=asked.request_id)
        return _fresh(ongoing, outside)
    if ongoing is not None:  # its process is gone, or we would not have the lock
        Stages(use_case, outside, fence).end(ongoing, "superseded", f"version {asked.version} is to be deployed")
    serving = deployments.serving(use_case, outside)
    row = {**asdict(asked), "use_case": use_case.name, "kind": "rollout", "stage": "package"}
    row["previous_version"] = deployments.before(serving, asked.version)
    if serving is not None and serving.version == asked.version:  # it became champion again: nothing but the proof
        row["stage"] = "full"
    with outside.warehouse.transaction(fence) as at:
        deployments.open_row(at, row)
    opened = deployments.of_id(asked.deployment_id, outside)
    assert opened is not None
    return opened


def _fresh(deployment: Deployment, outside: "Outside") -> Deployment:
    found = deployments.of_id(deployment.deployment_id, outside)
    assert found is not None
    return found


def _require_judged(use_case: UseCase, version: str, outside: "Outside") -> None:
    found = outside.warehouse.query(
        "select 1 from ledger where use_case = %s and action = 'promote' and model_version = %s limit 1",
        (use_case.name, version),
    )
    if not found:
        raise ValueError(
            f"version {version} of {use_case.name} was never promoted, so the gate has not let it in: run"
            f" {use_case.name}.train, or name a version that was champion"
        )


def _lock(use_case: UseCase) -> str:
    return f"deploy/{use_case.name}"


def _said(sentence: str) -> str:
    print(sentence)  # a task's log is its standard output
    return sentence
