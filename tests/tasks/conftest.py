"""A room with a gateway and a server, for the tests of rollouts."""

import pytest

from tests.tasks import server_room
from tests.tasks.rollouts import go
from tests.tasks.server_room import Room, crown


@pytest.fixture
def room(use_case, outside, tmp_path, monkeypatch) -> Room:
    """A use case with small numbers, and nothing deployed."""
    monkeypatch.setattr("tasks.deploy.stages.POLL_SECONDS", 0.02)
    monkeypatch.setattr("tasks.deploy.server._PAUSE_SECONDS", 0.0)
    for name, value in {"gateway_url": "http://gateway", "management_url": "http://server"}.items():
        object.__setattr__(outside.settings, name, value)  # a test's settings
    return server_room.open_room(server_room.rolled_out(use_case), outside, tmp_path / "room", monkeypatch)


@pytest.fixture
def first(room) -> Room:
    """Version 1 answers everyone."""
    crown(room.outside, room.use_case, "1", None, 1)
    assert "answers everyone" in go(room, "1", None, 1)
    return room
