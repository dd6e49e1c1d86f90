"""The gateway as the rollout uses it: changes survive, refusals say why, and what was answered can be read."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapters.connect import Outside
from adapters.gateway import Gateway, Route, parse_record
from adapters.gateway_maps import Admin, change_map, read_map
from infra.local import gateway as local_gateway
from pipeline.settings import _REQUIRED, read_settings
from tests.gateway_stand import Stand, stand
from tests.waiting import until

NOWHERE = "127.0.0.1:1"  # nobody listens on port 1


@pytest.fixture(scope="module")
def running(processes: None) -> Iterator[Stand]:
    yield from stand()


@pytest.fixture
def gate(running: Stand) -> Gateway:
    running.gateway.set_route("flights", Route("1"))
    running.gateway.set_fallback("flights", None)
    return running.gateway


def test_a_route_is_what_was_set_and_what_happens(gate: Gateway) -> None:
    for route in (Route("1", "2", 0.0512), Route("1", "3", 0.01), Route("3"), Route("3", "4", 1.0), Route(None)):
        gate.set_route("flights", route)
        assert gate.route("flights") == route
        assert gate.route("taxi") == Route(None)
        if route.stable is not None:
            version = route.candidate if route.share == 1 else route.stable
            paths = {gate.ask("flights", {"a": 1}, entity=f"e{n}").body["path"] for n in range(30)}
            assert f"/predictions/flights/{version}" in paths
    assert gate.ask("flights", {"a": 1}).status == 503


def test_the_running_process_and_the_files_agree(running: Stand, gate: Gateway) -> None:
    gate.set_route("flights", Route("1", "2", 0.3))
    gate.set_fallback("flights", 0.2)
    gate.publish_openapi("flights", '{"openapi": "3.1.0", "info": {"title": "A; \\"b\\" <<\\n $c \\\\ %[d] #"}}')
    admin = Admin(local_gateway.gateway_variables(running.home)["WINDSOCK_GATEWAY_ADMIN"])
    for name in ("keys", "versions", "weights", "fallback", "openapi"):
        held = admin.entries(admin.identity(name))
        assert held
        assert held == read_map(local_gateway.maps_folder(running.home) / f"{name}.map")


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (Route("1", "2", 1.5), "share from 0 to 1"),
        (Route("1", None, 0.5), "expected a candidate"),
        (Route("1 2"), "version of letters"),
        (Route("1\nflights.candidate 9"), "version of letters"),
    ],
)
def test_a_wrong_route_is_refused_and_changes_nothing(gate: Gateway, route: Route, said: str) -> None:
    before = gate.route("flights")
    with pytest.raises(ValueError, match=said):
        gate.set_route("flights", route)
    assert gate.route("flights") == before
    assert gate.ask("flights", {"a": 1}).body["path"] == "/predictions/flights/1"


def test_without_the_gateway_the_file_is_written_and_the_error_says_so(running: Stand, gate: Gateway) -> None:
    maps = local_gateway.maps_folder(running.home)
    lonely = Gateway("http://" + NOWHERE, NOWHERE, maps, "key")
    with pytest.raises(ConnectionError, match=r"versions.map is written: it holds once the gateway starts again"):
        lonely.set_route("flights", Route("8"))
    assert gate.route("flights").stable == "8"
    with pytest.raises(ConnectionError, match="does not answer"):
        lonely.ask("flights", {"a": 1})
    with pytest.raises(ConnectionError, match="admin socket"):
        lonely.records("flights", datetime.now(UTC))
    gate.set_route("flights", Route("8"))
    assert gate.ask("flights", {"a": 1}).body["path"] == "/predictions/flights/8"


def test_an_admin_socket_of_something_else_is_named(running: Stand, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no map nothing.map"):
        change_map(
            tmp_path,
            Admin(local_gateway.gateway_variables(running.home)["WINDSOCK_GATEWAY_ADMIN"]),
            "nothing",
            lambda _: None,
        )


def test_the_admin_socket_may_be_an_address(running: Stand, gate: Gateway) -> None:
    """As where the gateway runs in a container of its own."""
    address, maps = f"127.0.0.1:{running.home.ports['gateway_admin']}", local_gateway.maps_folder(running.home)
    running.stop()
    by_socket, running.part = running.part, running.with_settings(GATEWAY_ADMIN=address)
    running.start()
    try:
        Gateway(gate.url, address, maps, gate._key).set_route("flights", Route("6"))
        assert gate.ask("flights", {"a": 1}).body["path"] == "/predictions/flights/6"
        with pytest.raises(ConnectionError, match="admin socket at unix@"):
            gate.set_route("flights", Route("1"))
    finally:
        running.stop()
        running.part = by_socket
        running.start()
    gate.set_route("flights", Route("7"))
    assert gate.ask("flights", {"a": 1}).body["path"] == "/predictions/flights/7"


def test_changes_by_many_at_once_are_all_kept(gate: Gateway) -> None:
    def deploy(number: int) -> None:
        gate.set_route(f"case_{number}", Route(str(number), str(number + 1), 0.5))

    threads = [threading.Thread(target=deploy, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert gate.route(f"case_{number}") == Route(str(number), str(number + 1), 0.5)
        assert gate.ask(f"case_{number}", {"a": 1}).status == 200


def test_a_client_comes_and_goes(gate: Gateway) -> None:
    first = gate.add_client("dispatch")
    assert gate.ask("flights", {"a": 1}, key=first).body["headers"]["x-windsock-client"] == "dispatch"
    second = gate.add_client("dispatch")
    assert gate.ask("flights", {"a": 1}, key=first).status == 401
    assert gate.ask("flights", {"a": 1}, key=second).status == 200
    gate.remove_client("dispatch")
    assert gate.ask("flights", {"a": 1}, key=second).status == 401
    assert gate.ask("flights", {"a": 1}).status == 200
    with pytest.raises(ValueError, match="client's name"):
        gate.add_client("a b")


def test_the_records_are_what_was_asked(gate: Gateway) -> None:
    gate.set_route("flights", Route("1", "2", 0.5))
    gate.set_fallback("flights", 0.2)
    since = datetime.now(UTC)
    asked = {f"record-{n}": gate.ask("flights", {"a": n}, entity=f"e{n}", request_id=f"record-{n}") for n in range(50)}
    gate.ask("taxi", {"a": 1}, request_id="another")
    gate.ask("flights", {"a": 1}, key="wrong", request_id="refused")
    gate.ask("flights", {"do": "fail 1"}, request_id="again")
    gate.ask("flights", {"do": "fail"}, request_id="static")
    gate.ask("flights", [{"do": "fail"}], request_id="none")
    gate.ask("flights", {"do": "dawdle", "seconds": 0.2}, request_id="slow")
    until(lambda: any(record.request_id == "slow" for record in gate.records("flights", since)))  # written afterwards
    found = {record.request_id: record for record in gate.records("flights", since)}
    assert list(found) == [*asked, "again", "static", "none", "slow"]
    for request_id, reply in asked.items():
        record = found[request_id]
        assert (record.status, record.client, record.use_case) == (200, "windsock", "flights")
        assert record.slot == reply.headers["x-windsock-slot"]
        assert record.version == reply.body["path"].rsplit("/", 1)[1]
        assert since - timedelta(milliseconds=1) <= record.at <= datetime.now(UTC)
    assert {record.slot for record in found.values()} == {"stable", "candidate"}
    assert (found["again"].status, found["again"].static) == (200, False)
    assert (found["static"].status, found["static"].retries, found["static"].static) == (200, 3, True)
    assert (found["none"].status, found["none"].static) == (503, False)
    assert found["slow"].milliseconds >= 200
    assert gate.records("flights", datetime.now(UTC)) == []
    with pytest.raises(ValueError, match="zone"):
        gate.records("flights", datetime(2026, 1, 1))  # noqa: DTZ001  # that is the point


def test_a_record_tells_what_was_asked(gate: Gateway) -> None:
    since = datetime.now(UTC)
    for body in ({"a": 1}, [{"a": 1}]):
        for explain in (False, True):
            assert gate.ask("flights", body, explain=explain).status == 200
    gate._send("POST", "/v1/flights/predict", b'\n\t [ {"a": 1}]', {"Authorization": f"Bearer {gate._key}"})
    until(lambda: len(gate.records("flights", since)) == 5)
    assert [(record.verb, record.is_list, record.cause) for record in gate.records("flights", since)] == [
        ("predict", False, ""),
        ("explain", False, ""),
        ("predict", True, ""),
        ("explain", True, ""),
        ("predict", True, ""),
    ]


def test_a_slow_upload_is_not_the_versions_time(running: Stand, gate: Gateway) -> None:
    since = datetime.now(UTC)
    with running.open("/v1/flights/predict", 8, "slow-upload") as connection:
        time.sleep(1.5)
        connection.sendall(b'{"a": 1}')
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    until(lambda: bool(gate.records("flights", since)))
    (record,) = gate.records("flights", since)
    assert (record.request_id, record.status, record.cause) == ("slow-upload", 200, "")
    answered = datetime.now(UTC)
    # The record's time is its own to the answer, and the upload's second and a half came before it.
    assert record.at > since + timedelta(seconds=1.4)
    assert record.at + timedelta(milliseconds=record.milliseconds) <= answered


def test_an_upload_that_ends_early_is_the_clients_doing(running: Stand, gate: Gateway) -> None:
    since = datetime.now(UTC)
    for request_id, linger in (("closed", 0), ("reset", 1)):
        connection = running.open("/v1/flights/predict", 100, request_id)
        connection.sendall(b'{"a":')
        time.sleep(0.2)  # it waits for the body
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", linger, 0))
        connection.close()
    until(lambda: len(gate.records("flights", since)) == 2)
    for record in gate.records("flights", since):
        assert (record.status, record.cause, record.milliseconds) == (-1, "client", 0)
    assert not {"closed", "reset"} & set(running.upstream.asked)


@pytest.mark.parametrize(("wish", "static"), [("dawdle", False), ("fail", True)])
def test_a_client_that_does_not_wait_hides_nothing_of_the_version(
    running: Stand, gate: Gateway, wish: str, *, static: bool
) -> None:
    since = datetime.now(UTC)
    gate.set_fallback("flights", 0.2)
    body = json.dumps({"do": wish, "seconds": 0.5}).encode()
    connection = running.open("/v1/flights/predict", len(body), f"left-{wish}")
    connection.sendall(body)
    until(lambda: f"left-{wish}" in running.upstream.asked)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    until(lambda: bool(gate.records("flights", since)))
    (record,) = gate.records("flights", since)
    assert (record.status, record.cause, record.static) == (200, "", static)
    assert record.milliseconds >= (500 if wish == "dawdle" else 0)


@pytest.mark.parametrize(
    "line",
    ["", "Server torchserve/torchserve is DOWN", "windsock 1 2 3", "windsock a b c d e f g h i j k l m n", "x " * 15],
)
def test_what_is_no_record_is_passed_over(line: str) -> None:
    assert parse_record(line) is None


def test_the_description_of_the_interface_is_served_as_published(running: Stand, gate: Gateway) -> None:
    before = running.send("GET", "/v1/orders/openapi.json")
    assert (before.status, before.body["error"]) == (404, "no version of orders is deployed")
    assert "orders.train to promote one and orders.deploy to put it on the server: until" in before.body["expected"]
    for title in ("first", "second; <<\n%[path] \\ \"quoted\" 'x'"):
        described = {"openapi": "3.1.0", "info": {"title": title}, "paths": {f"/p{n}": {} for n in range(2000)}}
        gate.publish_openapi("flights", json.dumps(described, indent=1))
        reply = running.send("GET", "/v1/flights/openapi.json")
        assert (reply.status, reply.body) == (200, described)
    with pytest.raises(ValueError, match="at most"):
        gate.publish_openapi("flights", json.dumps({"x": "y" * 100_001}))


def test_the_outside_has_a_gateway_where_the_settings_name_one(running: Stand) -> None:
    required = dict.fromkeys(_REQUIRED.values(), "x")
    assert Outside(read_settings(required)).gateway is None
    settings = read_settings({**required, **local_gateway.gateway_variables(running.home)})
    found = Outside(settings).gateway
    assert found is not None
    found.set_route("flights", Route("5"))
    assert found.ask("flights", {"a": 1}).body["path"] == "/predictions/flights/5"
    with pytest.raises(ValueError, match="WINDSOCK_GATEWAY_ADMIN"):
        _ = Outside(replace(settings, gateway_key=None)).gateway
