"""Which tests start processes: those that use the fixture `processes`, themselves or through another. No other may.

The marker `process` follows from the fixtures, so `pytest -m "not process"` (`make test-fast`) needs no list kept by
hand: in such a run, a test that starts a process without the fixture fails and says so.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
_REFUSED = (
    "this test starts a process ({}): let it, or the fixture that does, use the fixture `processes` "
    "(@pytest.mark.usefixtures), so that `make test-fast` leaves it out"
)


class ProcessStartedError(AssertionError):
    """A test that does not use `processes` starts one."""


class _Guard:
    """Refuses what starts a process, while a test runs that may not."""

    def __init__(self) -> None:
        self.is_on, self.started = False, list[str]()

    def see(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_on and event in _STARTS:
            self.started.append(f"{event} {arguments[:2]!r:.200}")
            raise ProcessStartedError(_REFUSED.format(self.started[-1]))


GUARD = _Guard()


def pytest_configure(config: pytest.Config) -> None:
    if "not process" in config.getoption("markexpr"):
        sys.addaudithook(GUARD.see)


def mark_processes(items: list[pytest.Item]) -> None:
    """Mark the tests that use `processes`."""
    for item in items:
        if "processes" in getattr(item, "fixturenames", ()):
            item.add_marker("process")


@contextmanager
def _guarded(item: pytest.Item) -> Iterator[None]:
    """A test whose code swallows the refusal fails all the same."""
    GUARD.is_on, GUARD.started = item.get_closest_marker("process") is None, []
    try:
        yield
    finally:
        GUARD.is_on = False
    if GUARD.started:
        raise ProcessStartedError(_REFUSED.format(GUARD.started[0]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _guarded(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _guarded(item):
        return (yield)
