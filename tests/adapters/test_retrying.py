"""What is repeated, how often and how long, without a server."""

import time

import pytest

from adapters.retrying import retry_call, wait_until


class Flaky:
    """Fails with these errors, one a call, and then returns how often it was called."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.calls


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def test_a_failure_that_another_attempt_mends_is_repeated_with_growing_pauses(pauses: list[float]) -> None:
    work = Flaky(ConnectionError("1"), TimeoutError("2"))
    result = retry_call(work, errors=(ConnectionError, TimeoutError), attempts=4, pause_seconds=0.1, pause_factor=2)
    assert (result, pauses) == (3, [0.1, 0.2])


def test_the_last_error_is_raised_when_the_attempts_are_used_up(pauses: list[float]) -> None:
    work = Flaky(*(ConnectionError(str(number)) for number in range(1, 9)))
    with pytest.raises(ConnectionError, match="3"):
        retry_call(work, errors=ConnectionError, attempts=3, pause_seconds=0.5)
    assert (work.calls, pauses) == (3, [0.5, 0.5])


def test_no_attempt_begins_after_the_time_is_up(pauses: list[float]) -> None:
    work = Flaky(ConnectionError("at once"))
    with pytest.raises(ConnectionError, match="at once"):
        retry_call(work, errors=ConnectionError, within_seconds=5, pause_seconds=6)
    assert (work.calls, pauses) == (1, [])


def test_another_error_is_raised_at_once(pauses: list[float]) -> None:
    work = Flaky(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        retry_call(work, errors=ConnectionError, attempts=3, pause_seconds=0.5)
    assert (work.calls, pauses) == (1, [])


def test_a_wait_ends_with_the_first_true_result_and_its_twin_with_the_last_false_one(pauses: list[float]) -> None:
    answers = iter(["", "", "there"])
    assert wait_until(lambda: next(answers), within_seconds=60, every_seconds=0.3) == "there"
    assert pauses == [0.3, 0.3]
    assert wait_until(list, within_seconds=0) == []


def test_an_error_ends_a_wait() -> None:
    work = Flaky(ValueError("refused"))
    with pytest.raises(ValueError, match="refused"):
        wait_until(work, within_seconds=60)
