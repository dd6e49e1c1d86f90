"""Start, judge and stop an experiment: two versions answer a share of the entities each, and their costs decide.

What is true is in `experiments` and `experiment_looks`; the gateway's route follows them. Every step is fenced, and the
route is moved under the fence, after the commit that says so: a kill in between is mended by the next look. The
candidate's place at the gateway is either a deployment's or an experiment's: an experiment does not start while a
deployment is under way, and no deployment starts while an experiment is unsettled. Whoever changes the route meanwhile
(a rollback) ends the experiment.

An experiment never promotes: it says what it saw. Ending it gives the stable version everyone back.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.gateway import Gateway, Route
from adapters.warehouse import Fence
from pipeline.online import Costs, ExperimentSettings
from pipeline.spec import UseCase
from tasks.common.command import print_sentence
from tasks.common.ledger import was_promoted
from tasks.deploy.deployments import find_ongoing_deployment, find_serving_deployment
from tasks.deploy.experiment import answers, log
from tasks.deploy.experiment.log import Experiment, Observation
from tasks.deploy.experiment.sample_ratio import find_mismatch
from tasks.deploy.experiment.sequential import (
    ExperimentOutcome,
    TreatmentHealth,
    choose_next_share,
    conclude,
    estimate_difference,
)
from tasks.deploy.golden import ask_golden_rows
from tasks.deploy.judge import StageResult, judge_golden
from tasks.deploy.server import UseCaseServer


def start_experiment(use_case: UseCase, treatment: str, outside: Outside, *, actor: str, request_id: str) -> str:
    """Give a version its declared share, beside the stable one. One sentence that says how it stands.

    Asked again with the same `request_id` it starts nothing.

    Raises:
        ValueError: nothing is declared, the version cannot be the treatment, or the candidate's place is taken.
        ConnectionError: the gateway or the server is not there; the same call may succeed later.
    """
    settings, costs, gateway = _require_declared(use_case, outside)
    experiment_id = f"{use_case.name}-experiment-{request_id}"
    fence = outside.warehouse.begin(_name_fence(use_case))
    if log.find_experiment(experiment_id, outside) is None:
        with outside.warehouse.alone(f"deploy/{use_case.name}") as mine:  # no deployment begins meanwhile
            _require_free(use_case, outside, mine=mine)
            control = _require_comparable(use_case, treatment, gateway.route(use_case.name), outside)
            admit_version(use_case, treatment, outside)
            experiment = Experiment(
                experiment_id=experiment_id, use_case=use_case.name, control=control, treatment=treatment,
                settings=settings, costs=costs, started_at=datetime.now(UTC), outcome=None, reason=None,
                settled_at=None,
            )  # fmt: skip
            with outside.warehouse.transaction(fence) as at:
                log.write_start(at, experiment, outside, use_case, actor=actor)
    return _settle(use_case, experiment_id, outside, fence)


def judge_experiment(use_case: UseCase, outside: Outside, *, actor: str = "experiment") -> str | None:
    """Judge the running experiment by what is known now; None where there is none.

    Looking again at the same data writes nothing.

    Raises:
        ConnectionError: the gateway is not there; the same call may succeed later.
    """
    experiment = log.find_unsettled_experiment(use_case, outside)
    if experiment is None:
        return None
    fence = outside.warehouse.begin(_name_fence(use_case))
    if experiment.outcome is None:
        _judge_once(use_case, experiment, outside, fence, actor=actor)
    return _settle(use_case, experiment.experiment_id, outside, fence)


def stop_experiment(use_case: UseCase, outside: Outside, *, actor: str, reason: str) -> str | None:
    """End the running experiment without a conclusion; None where there is none."""
    if not reason.strip():
        raise ValueError("say why the experiment is stopped: the ledger keeps it")
    experiment = log.find_unsettled_experiment(use_case, outside)
    if experiment is None:
        return None
    fence = outside.warehouse.begin(_name_fence(use_case))
    if experiment.outcome is None:
        with outside.warehouse.transaction(fence) as at:
            log.write_end(
                at, experiment, outside, use_case, outcome=ExperimentOutcome.STOPPED, reason=reason, actor=actor
            )
    return _settle(use_case, experiment.experiment_id, outside, fence)


def admit_version(use_case: UseCase, version: str, outside: Outside) -> None:
    """Register a version at the server, and see that it answers real rows there as it does in batch.

    Raises:
        ValueError: it does not start, or does not answer like the batch, in time.
    """
    assert use_case.endpoint is not None
    UseCaseServer(use_case, outside).ensure_loaded(version, None)
    tally, _ = ask_golden_rows(use_case, version, outside)
    judgement = judge_golden(use_case.endpoint.rollout, tally)
    if judgement.result is not StageResult.PASS:
        raise ValueError(f"version {version} may not answer anyone: {judgement.reason}")


def _require_declared(use_case: UseCase, outside: Outside) -> tuple[ExperimentSettings, Costs, Gateway]:
    if use_case.experiment is None or use_case.endpoint is None or use_case.endpoint.costs is None:
        raise ValueError(f"declare {use_case.name}.experiment and endpoint.costs in params.yaml first")
    if outside.gateway is None:
        raise ValueError("an experiment needs the gateway, and this installation has none")
    return use_case.experiment, use_case.endpoint.costs, outside.gateway


def _require_free(use_case: UseCase, outside: Outside, *, mine: bool) -> None:
    if not mine or find_ongoing_deployment(use_case, outside) is not None:
        raise ValueError(f"a deployment of {use_case.name} is under way: start the experiment once it has ended")
    if other := log.find_unsettled_experiment(use_case, outside):
        raise ValueError(f"one experiment at a time: version {other.treatment} is under one, stop it first")


def _require_comparable(use_case: UseCase, treatment: str, route: Route, outside: Outside) -> str:
    """The control: the version that answers everyone."""
    if route.stable is None:
        raise ValueError(f"nothing answers for {use_case.name} yet: deploy a champion first")
    if treatment == route.stable:
        raise ValueError(f"version {treatment} answers everyone already: name another one as the treatment")
    if route.candidate is not None:
        raise ValueError(f"version {route.candidate} has the candidate's place at the gateway")
    if use_case.risk == "high" and not was_promoted(use_case, treatment, outside):
        raise ValueError(f"{use_case.name} is high risk: version {treatment} was never approved, so it answers nobody")
    return route.stable


def _judge_once(use_case: UseCase, experiment: Experiment, outside: Outside, fence: Fence, *, actor: str) -> None:
    assert outside.gateway is not None
    last, route = log.read_last_look(experiment, outside), outside.gateway.route(use_case.name)
    was_routed = last["look"] > 0 or last["routed_at"] is not None
    if route.stable != experiment.control or (was_routed and route.candidate != experiment.treatment):
        with outside.warehouse.transaction(fence) as at:
            log.write_end(
                at,
                experiment,
                outside,
                use_case,
                outcome=ExperimentOutcome.INTERRUPTED,
                reason=f"somebody else changed the route: stable {route.stable}, candidate {route.candidate}",
                actor=actor,
            )
        return
    if last["routed_at"] is None:  # killed before the gateway was told
        _settle(use_case, experiment.experiment_id, outside, fence)
        last = log.read_last_look(experiment, outside)
    observation = _observe(use_case, experiment, last, outside)
    if all(last[name] == value for name, value in observation.facts().items()):
        return
    conclusion = conclude(
        experiment.settings, observation.estimate, observation.health, find_mismatch(*observation.keys)
    )
    share = choose_next_share(
        experiment.settings, observation.estimate, share=last["share"], greatest_cost=experiment.greatest_cost
    )
    with outside.warehouse.transaction(fence) as at:
        log.write_look(
            at,
            experiment,
            number=last["look"] + 1,
            observation=observation,
            conclusion=conclusion,
            share=share,
            routed=share == last["share"],
        )
        if conclusion.outcome is not None:
            log.write_end(
                at, experiment, outside, use_case, outcome=conclusion.outcome, reason=conclusion.reason, actor=actor
            )


def _observe(use_case: UseCase, experiment: Experiment, last: dict[str, Any], outside: Outside) -> Observation:
    """What is known now; the gateway keeps only its latest records, so its counts go on from the look before."""
    assert outside.gateway is not None
    until = last["requests_until"]
    new = [
        record
        for record in outside.gateway.records(experiment.use_case, until)
        if record.at > until and record.slot == "candidate" and record.version == experiment.treatment
    ]
    answered, degraded = answers.count_answers(experiment, outside)
    mature_until = answers.find_mature_until(use_case, outside)  # first: what comes meanwhile is not judged yet
    return Observation(
        requests_until=max((record.at for record in new), default=until),
        health=TreatmentHealth(
            requests=last["requests"] + len(new),
            errors=last["errors"] + sum(record.status >= 500 or record.static for record in new),
            answers=answered,
            degraded=degraded,
        ),
        keys=answers.count_keys(experiment, outside, mature_until),
        estimate=estimate_difference(
            answers.read_events(experiment, outside, mature_until), greatest_cost=experiment.greatest_cost
        ),
    )


def _settle(use_case: UseCase, experiment_id: str, outside: Outside, fence: Fence) -> str:
    """Make the gateway's route what the tables say, and tell people."""
    experiment = log.find_experiment(experiment_id, outside)
    assert experiment is not None
    assert outside.gateway is not None
    if experiment.settled_at is None:
        with outside.warehouse.transaction(fence) as at:
            if experiment.outcome is None:
                _give_share(at, experiment, outside, outside.gateway)
            else:
                _take_share_back(at, experiment, outside.gateway)
        if experiment.outcome is not None:
            _unload_others(use_case, outside)
        outside.alerts.flush()
    return print_sentence(experiment.describe())


def _unload_others(use_case: UseCase, outside: Outside) -> None:
    """What answers nobody any more leaves the server, except what a rollback would bring back."""
    serving = find_serving_deployment(use_case, outside)
    if serving is not None and outside.endpoint is not None:
        UseCaseServer(use_case, outside).retire_others(serving)


def _give_share(at: cursor, experiment: Experiment, outside: Outside, gateway: Gateway) -> None:
    """Tell the gateway the share, also where it is said to have it: its file may know it, and its memory not."""
    last, route = log.read_last_look(experiment, outside), gateway.route(experiment.use_case)
    if route.stable != experiment.control:
        return  # the next look ends it
    gateway.set_route(experiment.use_case, replace(route, candidate=experiment.treatment, share=last["share"]))
    at.execute(
        "update experiment_looks set routed_at = clock_timestamp()"
        " where experiment_id = %s and look = %s and routed_at is null",
        (experiment.experiment_id, last["look"]),
    )


def _take_share_back(at: cursor, experiment: Experiment, gateway: Gateway) -> None:
    """Give the stable version everyone, whichever it is by now, and the candidate's place to whoever wants it."""
    route = gateway.route(experiment.use_case)
    if route.candidate in {None, experiment.treatment}:
        gateway.set_route(experiment.use_case, replace(route, candidate=None, share=0.0))
    at.execute(
        "update experiments set settled_at = clock_timestamp() where experiment_id = %s", (experiment.experiment_id,)
    )


def _name_fence(use_case: UseCase) -> str:
    return f"experiment/{use_case.name}"
