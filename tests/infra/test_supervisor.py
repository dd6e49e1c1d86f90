"""Which part the supervisor takes for hung: one that gives no sign of life though all it needs works, and no other."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local import supervisor
from infra.local.home import Home
from infra.local.part import Part
from infra.local.supervisor import HUNG_CHECKS, Supervisor
from tests.waiting import until

HUNG_SECONDS = 0.6
pytestmark = pytest.mark.usefixtures("processes")


class Watched:
    """Two sleeping processes under a supervisor, `below` and `above`, which needs it; each test says how they are."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.well: dict[str, Callable[[], bool]] = {"below": lambda: True, "above": lambda: True}
        self.living: dict[str, Callable[[], bool]] = {"below": lambda: False, "above": lambda: False}
        self.asked = {"below": 0, "above": 0}
        parts = [self.part("below", folder), self.part("above", folder, needs=("below",))]
        monkeypatch.setattr(supervisor, "plan_stack", lambda *_: parts)
        home = Home(folder=folder, ports={}, secrets={"stack": f"test-{folder.name}"})
        home.logs.mkdir()
        self.supervisor = Supervisor(home, (), None, HUNG_SECONDS)
        self.threads = [threading.Thread(target=self.supervisor.keep_up, args=(part,)) for part in parts]

    def part(self, name: str, folder: Path, needs: tuple[str, ...] = ()) -> Part:
        def healthy() -> bool:
            self.asked[name] += 1
            return self.well[name]()

        def lives() -> bool:
            return self.living[name]()

        return Part(
            name=name, command=("sleep", "600"), environment={}, directory=folder, address="", is_healthy=healthy,
            is_alive=lives, needs=needs, stop_signal=signal.SIGTERM,
            stop_seconds=1, start_seconds=1,
        )  # fmt: skip

    def state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.supervisor.recorder.parts[name]
        return found

    def asked_often(self, name: str) -> None:
        """Until a part was asked more often than one that hangs is."""
        reached = self.asked[name] + HUNG_CHECKS + 3
        until(lambda: self.asked[name] >= reached, 20)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    one = Watched(tmp_path, monkeypatch)
    for thread in one.threads:
        thread.start()
    try:
        until(lambda: all(one.state(name)["state"] == "up" for name in ("below", "above")), 20)
        yield one
    finally:
        one.supervisor.stopping.set()
        one.supervisor.stop_parts()
        for thread in one.threads:
            thread.join()


def test_a_silent_part_is_started_again(watched: Watched) -> None:
    before = watched.state("above")["pid"]
    watched.well["above"] = lambda: watched.state("above")["pid"] != before
    until(lambda: watched.state("above")["restarts"] == 1 and watched.state("above")["state"] == "up", 20)
    assert watched.state("above")["problem"] is None
    assert watched.state("below")["restarts"] == 0


def test_what_hangs_because_another_part_does_is_left_alone(watched: Watched) -> None:
    watched.living["below"] = lambda: True  # it refuses, and so is not well; a new start would not help
    watched.well = {"below": lambda: False, "above": lambda: False}
    watched.asked_often("above")
    assert [watched.state(name)["restarts"] for name in ("below", "above")] == [0, 0]


def test_what_answers_badly_is_not_ended_for_it(watched: Watched) -> None:
    watched.living["above"] = lambda: True
    watched.well["above"] = lambda: False
    watched.asked_often("above")
    assert watched.state("above")["restarts"] == 0


def test_silence_now_and_then_is_no_hang(watched: Watched) -> None:
    watched.well["above"] = lambda: watched.asked["above"] % HUNG_CHECKS == 0
    watched.asked_often("above")
    assert watched.state("above")["restarts"] == 0


def test_a_check_that_fails_says_nothing_about_the_part_and_the_stack_goes_on(watched: Watched) -> None:
    watched.well["above"] = lambda: bool(int("well"))
    watched.asked_often("above")
    assert not watched.supervisor.stopping.is_set()
    assert watched.state("above")["restarts"] == 0
    assert watched.state("above")["problem"] == "could not be asked: invalid literal for int() with base 10: 'well'"


def test_what_was_up_before_and_lives_is_up_again_though_not_all_is_well(watched: Watched) -> None:
    watched.living["above"] = lambda: True
    watched.well["above"] = lambda: False
    before = watched.state("above")["pid"]
    watched.supervisor._processes["above"].kill()
    until(lambda: watched.state("above")["pid"] != before and watched.state("above")["state"] == "up", 20)
    watched.asked_often("above")
    assert watched.state("above")["restarts"] == 1
