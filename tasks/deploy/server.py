"""What a rollout does to the server and the gateway, in words of versions."""

import json
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import features
from adapters.connect import Outside
from adapters.endpoint import Endpoint
from adapters.errors import Corrupt, Missing
from adapters.gateway import Gateway, Route
from adapters.model_store import Archive
from adapters.retrying import retry_call
from pipeline.spec import UseCase
from serving.openapi import describe_endpoint
from tasks.build_features.learnt_features import UncomputableFeatures, read_learnt_definition
from tasks.deploy.deployments import Deployment, find_ongoing_deployment
from tasks.deploy.experiment.log import find_unsettled_experiment

if TYPE_CHECKING:
    from models.interval import ConformalInterval

_EXAMPLE = """
select evidence -> 'golden' -> 'example' as event from deployments
where use_case = %s and evidence -> 'golden' -> 'example' is not null order by position desc limit 1
"""
_BASE_RATE = "select avg(label) as rate from outcomes where use_case = %s"

_TRIES, _PAUSE_SECONDS = 5, 1.0  # a worker that was killed is back after about three seconds
_PROOFS = 10  # what was refused for a moment does not end a rollback


class VersionRejected(ValueError):  # noqa: N818  # reads as the answer it is
    """The server cannot run this version; asking again would give the same."""


class _VersionFails(VersionRejected):
    """It may be a worker that was killed, which is back soon."""


class WrongAnswer(ValueError):  # noqa: N818  # says what it is
    """Everyone was routed to a version, and it does not answer."""


def require_endpoint(outside: Outside) -> Endpoint:
    """The online server of this installation."""
    if outside.endpoint is None:
        raise ValueError("this installation has no online server")
    return outside.endpoint


def require_gateway(outside: Outside) -> Gateway:
    """The gateway of this installation."""
    if outside.gateway is None:
        raise ValueError("this installation has no gateway")
    return outside.gateway


def ask_version(
    use_case: UseCase, version: str, events: list[dict[str, Any]], outside: Outside, *, request_id: str, slot: str
) -> list[dict[str, Any]]:
    """A version's answers, past the gateway.

    Raises:
        VersionRejected: it refused the events, or fails on them though the server is there.
        ConnectionError: the server is not there, which says nothing about the version.
    """
    server = require_endpoint(outside)

    def ask_once() -> list[dict[str, Any]]:
        try:
            return list(server.ask(use_case.name, version, events, request_id=request_id, slot=slot))
        except ValueError as problem:
            raise VersionRejected(f"version {version} refused a real event: {problem}") from problem
        except ConnectionError as problem:
            server.versions(use_case.name)  # raises where the server itself is gone
            raise _VersionFails(f"version {version} fails: {problem}") from problem

    return retry_call(ask_once, errors=_VersionFails, attempts=_TRIES, pause_seconds=_PAUSE_SECONDS)


def read_score(answer: dict[str, Any]) -> float:
    """The number in an answer, whatever the target's kind."""
    return float(answer["probability"] if "probability" in answer else answer["value"])


def measure_bounds_difference(answer: dict[str, Any], interval: "ConformalInterval | None") -> float:
    """How far the bounds in an answer are from those that batch gives to its score; infinitely, where one has none."""
    given = (answer.get("lower"), answer.get("upper"))
    if interval is None or None in given:
        return 0.0 if interval is None and given == (None, None) else math.inf
    expected = np.array(interval.bounds(np.array([read_score(answer)])))[:, 0]
    return float(np.max(np.abs(np.array(given, np.float64) - expected)))


class UseCaseServer:
    """The endpoint and the gateway of one use case."""

    def __init__(self, use_case: UseCase, outside: Outside) -> None:
        assert use_case.endpoint is not None
        self._name, self._use_case, self._outside = use_case.name, use_case, outside
        self._online = use_case.endpoint

    @cached_property
    def _endpoint(self) -> Endpoint:
        return require_endpoint(self._outside)

    @cached_property
    def _gateway(self) -> Gateway:
        return require_gateway(self._outside)

    def make_archive(self, version: str) -> Archive:
        """A version's archive in the store; the same version gives the same bytes.

        Raises:
            VersionRejected: the version learnt features that cannot be computed any more, or its stored bundle was
                changed or is not there.
        """
        try:
            bundle = self._outside.registry.download_bundle(self._name, version)
        except (Corrupt, Missing) as problem:
            raise VersionRejected(
                f"the stored bundle of version {version} is not what was registered: {problem}"
            ) from problem
        try:
            read_learnt_definition(self._use_case, version, bundle)
        except UncomputableFeatures as problem:
            raise VersionRejected(str(problem)) from problem
        e = self._online
        return self._endpoint.store.archive(
            bundle,
            use_case=self._name,
            version=version,
            bundle_sha256=self._outside.registry.version(self._name, version).bundle_sha256,
            options={
                "lead_minutes": self._use_case.time.lead_minutes,
                "kind": self._use_case.target.kind,
                "title": self._use_case.title,
                "threshold": e.costs.threshold if e.costs else None,
                "max_events": e.max_events,
                "store_timeout_ms": e.store_timeout_ms,
                "max_feature_age_hours": e.max_feature_age_hours,
            },
        )

    def register(self, archive: Archive) -> None:
        """Load an archive beside what runs; back when it answers.

        Raises:
            VersionRejected: the file is not the one that was made, or its worker does not come up.
        """
        e = self._online
        try:
            self._endpoint.register(
                archive, batch_size=e.batch_size, max_batch_delay_ms=e.max_batch_delay_ms, workers=e.workers
            )
        except ValueError as problem:
            raise VersionRejected(f"version {archive.version} does not start: {problem}") from problem

    def ensure_loaded(self, version: str, sha256: str | None) -> bool:
        """See to it that a version is loaded and ready, also after the server has forgotten it; whether it had to be.

        Raises:
            VersionRejected: it cannot be loaded again.
        """
        if self._endpoint.versions(self._name).get(version):
            return False
        archive = self.make_archive(version)
        if sha256 is not None and archive.sha256 != sha256:
            raise VersionRejected(
                f"the archive of version {version} has the digest {archive.sha256}, deployed was {sha256}"
            )
        self.register(archive)
        return True

    def set_route(self, stable: str | None, candidate: str | None = None, share: float = 0.0) -> None:
        """Who answers from now on. Said again where it is so: the gateway's file may know it, and its memory not."""
        self._gateway.set_route(self._name, Route(stable, candidate, share))

    def prove_version(self, version: str) -> None:
        """Ask one real event through the gateway until this version answers, while a worker may take to come back.

        Raises:
            WrongAnswer: it did not, or no event was ever asked to prove it by.
        """
        found = self._outside.warehouse.query(_EXAMPLE, (self._name,))
        if not found:
            raise WrongAnswer("there is no event to ask about")
        retry_call(
            lambda: self._require_answer(found[0]["event"], version),
            errors=WrongAnswer,
            attempts=_PROOFS,
            pause_seconds=_PAUSE_SECONDS,
        )

    def _require_answer(self, event: dict[str, Any], version: str) -> None:
        reply = self._gateway.ask(self._name, event)
        if reply.status != 200 or not isinstance(reply.body, dict):
            raise WrongAnswer(f"the gateway answered {reply.status}: {str(reply.body)[:300]}")
        if str(reply.body.get("model_version")) != version:
            raise WrongAnswer(f"version {reply.body.get('model_version')} answered, not {version}")

    def publish(self, version: str) -> None:
        """What goes with being the one that answers: the default version, the published schema, the static answer."""
        self._endpoint.make_default(self._name, version)
        self._gateway.publish_openapi(self._name, self._schema())
        if self._use_case.target.kind == "binary":
            [found] = self._outside.warehouse.query(_BASE_RATE, (self._name,))
            self._gateway.set_fallback(self._name, found["rate"])

    def retire_others(self, serving: Deployment | None) -> None:
        """Unload what neither answers nor would come back, unless it is on its way.

        What answers is the default first: a kill may have left another one as that, and the default cannot be unloaded.
        """
        loaded = self._endpoint.versions(self._name).keys()  # first: what is loaded later is on its way
        kept = {serving.version, serving.previous_version} if serving else set()
        ongoing = find_ongoing_deployment(self._use_case, self._outside)
        kept |= {ongoing.version} if ongoing else set()
        experiment = find_unsettled_experiment(self._use_case, self._outside)
        kept |= {experiment.control, experiment.treatment} if experiment else set()
        others = loaded - kept
        if others and serving is not None and serving.version in loaded:
            self._endpoint.make_default(self._name, serving.version)
        for version in others:
            self._endpoint.retire(self._name, version)

    def _schema(self) -> str:
        return json.dumps(
            describe_endpoint(
                use_case=self._name,
                title=self._use_case.title,
                fields=features.definition(self._name).request,
                kind=self._use_case.target.kind,
                lead_minutes=self._use_case.time.lead_minutes,
                max_events=self._online.max_events,
            )
        )
