"""Ports: the usual ones where free, others where taken, the same ones again."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.ports import USUAL_PORTS, choose_ports, is_port_free, remember_ports


@pytest.fixture
def holder() -> Iterator[socket.socket]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held


def test_a_taken_port_is_not_chosen(holder: socket.socket) -> None:
    taken = holder.getsockname()[1]
    assert not is_port_free(taken)
    chosen = choose_ports({"postgres": taken}, usual=False)
    assert chosen["postgres"] != taken
    assert is_port_free(chosen["postgres"])


def test_usual_ports_are_chosen_where_free_and_no_port_twice() -> None:
    chosen = choose_ports({}, usual=True)
    assert all(chosen[name] == port for name, port in USUAL_PORTS.items() if is_port_free(port))
    assert len(set(chosen.values())) == len(USUAL_PORTS)


def test_ports_are_remembered(tmp_path: Path) -> None:
    first = remember_ports(tmp_path / "ports.json", usual=False)
    assert remember_ports(tmp_path / "ports.json", usual=True) == first
