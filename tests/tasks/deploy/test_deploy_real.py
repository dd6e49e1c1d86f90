"""The rollout on the real server behind the real gateway, asked about real flights: sabotage and kills."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle
from pathlib import Path

import pytest

import features
from adapters.connect import Outside
from adapters.endpoint import Endpoint
from adapters.gateway import Route
from adapters.model_store import ModelStore
from infra.local.stack import Stack
from models import bundle
from pipeline.handoffs import Release
from pipeline.spec import UseCase
from tasks.deploy import deploy, deployments, golden, watch
from tests.conftest import start_stack
from tests.features.world import engine, small_world
from tests.tasks import killed, real_room
from tests.tasks.server_room import AS_OF, crown

pytestmark = pytest.mark.timeout(900)


@dataclass
class Real:
    """A stack, and what `real_room` laid."""

    stack: Stack
    folder: Path
    use_case: UseCase
    outside: Outside
    events: list[dict]
    revision: int = 0

    def promote(self, version: str, before: str | None, outcome: str = "promoted") -> Release:
        self.revision += 1
        crown(self.outside, self.use_case, version, before, self.revision)
        return Release(use_case="flights", outcome=outcome, champion_version=version, previous_version=before,
                       revision=self.revision, as_of=AS_OF, actor="Ada")  # fmt: skip

    def deploy(self, release: Release) -> str:
        return deploy.deploy_release(self.use_case, release, self.outside)

    @property
    def route(self) -> Route:
        assert self.outside.gateway is not None
        return self.outside.gateway.route("flights")

    def answering(self) -> str:
        assert self.outside.gateway is not None
        return str(self.outside.gateway.ask("flights", self.events[0]).body["model_version"])

    @contextmanager
    def clients(self) -> Iterator[list[int]]:
        """Requests keep coming; their states."""
        over, states = threading.Event(), []

        def ask() -> None:
            assert self.outside.gateway is not None
            for event in cycle(self.events[:8]):
                states.append(self.outside.gateway.ask("flights", event, entity=f"e{len(states)}").status)
                if over.wait(0.02):  # room for the version that is on its way: every stage waits for 20 requests
                    break

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield states
        finally:
            over.set()
            thread.join()


@pytest.fixture(scope="module")
def real(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Version 1 answers everyone."""
    folder = tmp_path_factory.mktemp("real")
    for stack in start_stack("postgres", "torchserve", "gateway"):
        if "WINDSOCK_GATEWAY_URL" not in stack.environment():
            pytest.skip("no HAProxy here: apt-get install haproxy")
        use_case, outside = real_room.connect(stack.environment(), folder)
        real_room.lay(use_case, outside, folder)
        _, events = golden.choose_golden_rows(use_case, features.definition(use_case.name), outside, 64)
        found = Real(stack, folder, use_case, outside, events)
        assert "answers everyone" in found.deploy(found.promote("1", None))
        assert found.answering() == "1"
        yield found


def sabotaged(real: Real, doctored: Path) -> Outside:
    """The same world, in which another bundle gets into the archive."""
    found = Outside(real.outside.settings)
    found.__dict__.update({name: real.outside.__dict__[name] for name in ("registry", "versions", "lake")})
    e = real.outside.endpoint
    assert e is not None

    class Doctoring(ModelStore):
        def archive(self, _bundle, **named):  # type: ignore[no-untyped-def,override]
            return super().archive(doctored, **{**named, "bundle_sha256": bundle.digest_bundle(doctored)})

    found.__dict__["endpoint"] = Endpoint(e.inference_url, e.management_url, Doctoring(e.store.folder))
    return found


@pytest.fixture(scope="module")
def doctored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Version 2, and what sabotage makes of it."""
    points, _ = engine(small_world(), real_room.END - timedelta(days=14), real_room.END)
    made = {
        "float16 weights": real_room.float16(real_room.fitted(points, seed=2)),
        "the encoder of the version before": real_room.encoder_of(
            real_room.fitted(points, seed=2, renamed=True), real_room.fitted(points, seed=2)
        ),
    }
    folders = {}
    for name, ensemble in made.items():
        folders[name] = tmp_path_factory.mktemp("doctored") / "bundle"
        real_room.write_model(folders[name], ensemble)
    return folders


@pytest.mark.parametrize("how", ["float16 weights", "the encoder of the version before"])
def test_an_archive_with_another_model_is_refused_and_the_old_version_keeps_answering(real, doctored, how):
    release = real.promote("2", "1")
    said = deploy.deploy_release(real.use_case, release, sabotaged(real, doctored[how]))
    assert "version 2 was refused at golden, version 1 answers" in said
    assert real.route == Route("1")
    assert real.answering() == "1"


def test_features_shifted_by_an_hour_are_refused(real):
    real_room.put_world(real.folder, small_world(), known_later=timedelta(hours=1))
    real_room.refill(real.use_case, real.outside)
    real_room.put_world(real.folder, small_world())  # the requests are the same
    said = real.deploy(real.promote("2", "1"))
    real_room.refill(real.use_case, real.outside)
    assert "version 2 was refused at golden" in said
    assert real.route == Route("1")


def test_the_twin_goes_all_the_way_and_no_client_notices(real):
    release = real.promote("2", "1")
    with real.clients() as states:
        assert "version 2 answers everyone" in real.deploy(release)
    assert set(states) == {200}
    assert real.route == Route("2")
    assert real.answering() == "2"
    evidence = deployments.find_serving_deployment(real.use_case, real.outside).evidence
    assert evidence["golden"]["max_difference"] <= 1e-5
    assert evidence["shadow"]["max_difference"] <= 1e-5
    assert evidence["canary"]["max_difference"] <= 1e-5
    assert "not rolled back" not in watch.watch_online(real.use_case, real.outside)
    assert real.route == Route("2"), "the watch has nothing against it"


def test_a_rollback_waits_for_no_traffic_and_is_proved_by_a_request(real):
    release = real.promote("1", None, outcome="rolled-back")
    assert "version 1 answers everyone" in real.deploy(release)  # though nobody asks anything meanwhile
    assert real.answering() == "1"
    evidence = deployments.find_serving_deployment(real.use_case, real.outside).evidence
    assert not {"shadow", "canary"} & set(evidence)
    assert real.route == Route("1")


_CHILD = """
import os, signal
from pathlib import Path
from pipeline.handoffs import Release
from tasks.deploy import deploy, stages
from tests.tasks import real_room
from tests.tasks.server_room import AS_OF
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
use_case, outside = real_room.connect(os.environ, Path(os.environ["ROOM"]))
release = Release(use_case="flights", outcome="promoted", champion_version="3", previous_version="1",
                  revision=int(os.environ["REVISION"]), as_of=AS_OF, actor="Ada")
stage = os.environ["STAGE"]
make = stages.Stages.__init__
def make_dying(self, *arguments):
    def at_stage(deployment):
        if stage == "canary": self._give_share(deployment)
        if stage == "full": self._server.set_route(deployment.version)
        die()
    make(self, *arguments)
    assert stage in self._steps
    self._steps[stage] = at_stage
stages.Stages.__init__ = make_dying
deploy.deploy_release(use_case, release, outside)
"""


def test_killed_at_each_stage_and_run_again_it_is_one_deployment(real):
    release = real.promote("3", "1")
    before = len(real.outside.warehouse.query("select 1 from deployments"))
    with real.clients() as states:
        for stage in ("package", "golden", "shadow", "canary", "full"):
            environment = {**os.environ, **real.stack.environment(), "ROOM": str(real.folder), "STAGE": stage,
                           "REVISION": str(release.revision)}  # fmt: skip
            killed.run_code(environment, _CHILD, killed=True)
            assert deployments.find_ongoing_deployment(real.use_case, real.outside).stage == stage
        watch.watch_online(real.use_case, real.outside)
        assert real.route == Route("1"), "nobody attends it"
        assert "version 3 answers everyone" in real.deploy(release)
    assert set(states) == {200}
    assert real.answering() == "3"
    assert len(real.outside.warehouse.query("select 1 from deployments")) == before + 1
