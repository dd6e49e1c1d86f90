"""Start, look at, and stop an experiment: two versions answer a share of the entities each, and their costs decide.

What is true is in `experiments` and `experiment_looks`; the gateway's route follows them. Every step is fenced, and the
route is moved under the fence, after the commit that says so: a kill in between is mended by the next look. The
candidate's place at the gateway is either a deployment's or an experiment's: `start` refuses while a deployment is
under way, and a deployment asks `running`. Whoever changes the route meanwhile (a rollback) ends the experiment.

An experiment never promotes: it says what it saw. Ending it gives the stable version everyone back.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from psycopg2.extensions import cursor

from pipeline.online import Costs, Experiment
from pipeline.spec import UseCase
from tasks.deploy.experiment import log
from tasks.deploy.experiment.log import Seen, Trial
from tasks.deploy.experiment.sequential import Health, decide, estimate, next_share

if TYPE_CHECKING:
    from adapters.connect import Outside
    from adapters.gateway import Gateway, Route
    from adapters.warehouse import Fence


def running(use_case: UseCase, outside: "Outside") -> bool:
    """Whether an experiment has the candidate's place at the gateway."""
    return log.unsettled(use_case, outside) is not None


def start(use_case: UseCase, treatment: str, outside: "Outside", *, actor: str, request_id: str) -> str:
    """Give a version its declared share, beside the stable one. One sentence that says how it stands.

    Asked again with the same `request_id` it starts nothing.

    Raises:
        ValueError: nothing is declared, the version cannot be the treatment, or the candidate's place is taken.
        ConnectionError: the gateway or the server is not there; the same call may succeed later.
    """
    settings, costs, gateway = _declared(use_case, outside)
    experiment_id = f"{use_case.name}-experiment-{request_id}"
    fence = outside.warehouse.begin(_key(use_case))
    if log.of_id(experiment_id, outside) is None:
        with outside.warehouse.alone(f"deploy/{use_case.name}") as mine:  # no deployment begins meanwhile
            _require_free(use_case, outside, mine=mine)
            route = gateway.route(use_case.name)
            control = _require_comparable(use_case, treatment, route, outside)
            let_in(use_case, treatment, outside)
            trial = Trial(
                experiment_id=experiment_id, use_case=use_case.name, control=control, treatment=treatment,
                settings=settings, costs=costs, started_at=datetime.now(UTC), outcome=None, reason=None,
                settled_at=None,
            )  # fmt: skip
            with outside.warehouse.transaction(fence) as at:
                log.write_start(at, trial, outside, use_case, actor=actor)
    return _settled(use_case, experiment_id, outside, fence)


def look(use_case: UseCase, outside: "Outside", *, actor: str = "experiment") -> str | None:
    """Judge the running experiment by what is known now; None where there is none.

    Looking again at the same data writes nothing.

    Raises:
        ConnectionError: the gateway is not there; the same call may succeed later.
    """
    trial = log.unsettled(use_case, outside)
    if trial is None:
        return None
    fence = outside.warehouse.begin(_key(use_case))
    if trial.outcome is None:
        _look(use_case, trial, outside, fence, actor=actor)
    return _settled(use_case, trial.experiment_id, outside, fence)


def stop(use_case: UseCase, outside: "Outside", *, actor: str, reason: str) -> str | None:
    """End the running experiment without a conclusion; None where there is none."""
    if not reason.strip():
        raise ValueError("say why the experiment is stopped: the ledger keeps it")
    trial = log.unsettled(use_case, outside)
    if trial is None:
        return None
    fence = outside.warehouse.begin(_key(use_case))
    if trial.outcome is None:
        with outside.warehouse.transaction(fence) as at:
            log.write_end(at, trial, outside, use_case, outcome="stopped", reason=reason, actor=actor)
    return _settled(use_case, trial.experiment_id, outside, fence)


def let_in(use_case: UseCase, version: str, outside: "Outside") -> None:
    """Register a version at the server, and see that it answers real rows there as it does in batch.

    Raises:
        ValueError: it does not start, or does not answer like the batch, in time.
    """
    from tasks.deploy import golden
    from tasks.deploy.judge import judge_golden
    from tasks.deploy.server import Server

    assert use_case.endpoint is not None
    Server(use_case, outside).ensure(version, None)
    seen, _ = golden.look(use_case, version, outside)
    step = judge_golden(use_case.endpoint.rollout, seen)
    if step.answer != "pass":
        raise ValueError(f"version {version} may not answer anyone: {step.reason}")


def _declared(use_case: UseCase, outside: "Outside") -> tuple[Experiment, Costs, "Gateway"]:
    if use_case.experiment is None or use_case.endpoint is None or use_case.endpoint.costs is None:
        raise ValueError(f"declare {use_case.name}.experiment and endpoint.costs in params.yaml first")
    if outside.gateway is None:
        raise ValueError("an experiment needs the gateway, and this installation has none")
    return use_case.experiment, use_case.endpoint.costs, outside.gateway


def _require_free(use_case: UseCase, outside: "Outside", *, mine: bool) -> None:
    from tasks.deploy import deployments

    if not mine or deployments.in_flight(use_case, outside) is not None:
        raise ValueError(f"a deployment of {use_case.name} is under way: start the experiment once it has ended")
    other = log.unsettled(use_case, outside)
    if other is not None:
        raise ValueError(f"one experiment at a time: version {other.treatment} is under one, stop it first")


def _require_comparable(use_case: UseCase, treatment: str, route: "Route", outside: "Outside") -> str:
    """The control: the version that answers everyone."""
    if route.stable is None:
        raise ValueError(f"nothing answers for {use_case.name} yet: deploy a champion first")
    if treatment == route.stable:
        raise ValueError(f"version {treatment} answers everyone already: name another one as the treatment")
    if route.candidate is not None:
        raise ValueError(f"version {route.candidate} has the candidate's place at the gateway")
    if use_case.risk == "high" and not outside.warehouse.query(
        "select 1 from ledger where use_case = %s and model_version = %s and action = 'promote' limit 1",
        (use_case.name, treatment),
    ):
        raise ValueError(f"{use_case.name} is high risk: version {treatment} was never approved, so it answers nobody")
    return route.stable


def _look(use_case: UseCase, trial: Trial, outside: "Outside", fence: "Fence", *, actor: str) -> None:
    assert outside.gateway is not None
    last, route = log.last_look(trial, outside), outside.gateway.route(use_case.name)
    was_told = last["look"] > 0 or last["routed_at"] is not None
    if route.stable != trial.control or (was_told and route.candidate != trial.treatment):
        reason = f"somebody else changed the route: stable {route.stable}, candidate {route.candidate}"
        with outside.warehouse.transaction(fence) as at:
            log.write_end(at, trial, outside, use_case, outcome="interrupted", reason=reason, actor=actor)
        return
    if last["routed_at"] is None:  # killed before the gateway was told
        _settled(use_case, trial.experiment_id, outside, fence)
        last = log.last_look(trial, outside)
    seen = _seen(trial, last["requests_until"], last["requests"], last["errors"], outside)
    if all(last[name] == value for name, value in seen.facts().items()):
        return
    verdict = decide(trial.settings, seen.found, seen.health)
    share = next_share(trial.settings, seen.found, share=last["share"], greatest_cost=trial.greatest_cost)
    with outside.warehouse.transaction(fence) as at:
        log.write_look(
            at, trial, number=last["look"] + 1, seen=seen, verdict=verdict, share=share, routed=share == last["share"]
        )
        if verdict.decision != "continue":
            log.write_end(at, trial, outside, use_case, outcome=verdict.decision, reason=verdict.reason, actor=actor)


def _seen(trial: Trial, until: datetime, requests: int, errors: int, outside: "Outside") -> Seen:
    """What is known now; the gateway keeps only its latest records, so its counts go on from the look before."""
    assert outside.gateway is not None
    new = [
        record
        for record in outside.gateway.records(trial.use_case, until)
        if record.at > until and record.slot == "candidate" and record.version == trial.treatment
    ]
    answers, degraded = log.answers(trial, outside)
    return Seen(
        requests_until=max((record.at for record in new), default=until),
        health=Health(
            requests=requests + len(new),
            errors=errors + sum(record.status >= 500 or record.static for record in new),
            answers=answers,
            degraded=degraded,
        ),
        found=estimate(log.events(trial, outside), greatest_cost=trial.greatest_cost),
    )


def _settled(use_case: UseCase, experiment_id: str, outside: "Outside", fence: "Fence") -> str:
    """Make the gateway's route what the tables say, and tell people."""
    trial = log.of_id(experiment_id, outside)
    assert trial is not None
    assert outside.gateway is not None
    if trial.settled_at is None:
        with outside.warehouse.transaction(fence) as at:
            if trial.outcome is None:
                _give(at, trial, outside, outside.gateway)
            else:
                _take_back(at, trial, outside.gateway)
        if trial.outcome is not None:
            _unload(use_case, outside)
        outside.alerts.flush()
    said = trial.sentence()
    print(said)  # a task's log is its standard output
    return said


def _give(at: cursor, trial: Trial, outside: "Outside", gateway: "Gateway") -> None:
    """Tell the gateway the share, also where it is said to have it: its file may know it, and its memory not."""
    last, route = log.last_look(trial, outside), gateway.route(trial.use_case)
    if route.stable != trial.control:
        return  # the next look ends it
    gateway.set_route(trial.use_case, replace(route, candidate=trial.treatment, share=last["share"]))
    at.execute(
        "update experiment_looks set routed_at = clock_timestamp()"
        " where experiment_id = %s and look = %s and routed_at is null",
        (trial.experiment_id, last["look"]),
    )


def _take_back(at: cursor, trial: Trial, gateway: "Gateway") -> None:
    """Give the stable version everyone, whichever it is by now, and the candidate's place to whoever wants it."""
    route = gateway.route(trial.use_case)
    if route.candidate in {None, trial.treatment}:
        gateway.set_route(trial.use_case, replace(route, candidate=None, share=0.0))
    at.execute("update experiments set settled_at = clock_timestamp() where experiment_id = %s", (trial.experiment_id,))


def _unload(use_case: UseCase, outside: "Outside") -> None:
    """What answers nobody any more leaves the server, except what a rollback would bring back."""
    from tasks.deploy import deployments
    from tasks.deploy.server import Server

    serving = deployments.serving(use_case, outside)
    if serving is not None and outside.endpoint is not None:
        Server(use_case, outside).retire_others(serving)


def _key(use_case: UseCase) -> str:
    return f"experiment/{use_case.name}"
