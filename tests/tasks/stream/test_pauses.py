"""A server that stays behind the store is asked less and less often, and one that is not as often as before."""

import threading
from typing import Any

import pytest

from adapters.connect import Outside
from pipeline.spec import UseCase
from tasks.stream import answer_events as answering

EVENTS = [{"entity_key": "due"}]


class Looks(threading.Event):
    """Waits for nobody, keeps how long each pause was to be, and ends after so many looks."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.pauses = most, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        if len(self.pauses) == self.most:
            self.set()
        return self.is_set()


def look(use_case: UseCase, outside: Outside, looks: Looks) -> list[float]:
    assert use_case.endpoint is not None
    assert use_case.endpoint.answers is not None
    answerer = answering._EventAnswerer(use_case, use_case.endpoint.answers, outside, object())  # type: ignore[arg-type]
    moved = threading.Event()
    moved.wait = looks.wait  # type: ignore[method-assign]  # nobody follows
    answerer.answer_on(looks, moved)
    return looks.pauses


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is due, and whether the server answers it, look by look; the last for ever."""
    script: list[Any] = [(EVENTS, False)]

    def find_due(_: Any) -> list[Any]:
        events: list[Any] = script[0][0]
        return events

    def answer(*_: Any) -> bool:
        return bool((script.pop(0) if len(script) > 1 else script[0])[1])

    monkeypatch.setattr(answering._EventAnswerer, "_find_due", find_due)
    monkeypatch.setattr(answering._EventAnswerer, "_answer", answer)
    return script


def test_a_server_that_stays_behind_is_asked_less_and_less_often(
    use_case: UseCase, outside: Outside, due: list[Any]
) -> None:
    pauses = look(use_case, outside, Looks(200))
    assert max(pauses[:10]) <= 0.1
    assert [round(pauses[n], 1) for n in (20, 60)] == [1.1, 5.1]
    assert 9.5 < max(pauses) <= 10.0


def test_one_that_answers_in_between_is_asked_as_soon_as_before(
    use_case: UseCase, outside: Outside, due: list[Any]
) -> None:
    due[:] = [(EVENTS, False)] * 60 + [(EVENTS, True)] + [(EVENTS, False)]
    pauses = look(use_case, outside, Looks(65))
    assert pauses[58] > 4
    assert max(pauses[60:]) <= 0.1


def test_without_due_events_each_look_comes_as_soon(use_case: UseCase, outside: Outside, due: list[Any]) -> None:
    due[:] = [([], False)]
    assert max(look(use_case, outside, Looks(60))) <= 0.1
