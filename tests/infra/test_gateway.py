"""The gateway's rules, in a real HAProxy: who is let in, how often; which version answers; what no client notices."""

import http.client
import json
import os
import shutil
import signal
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from adapters.gateway import Gateway, Route, digest_key
from infra.local import gateway, system_programs
from infra.local.__main__ import main
from infra.local.environment import make_environment
from infra.local.home import Home, open_home
from infra.local.part import Part
from infra.local.plan import GROUPS, plan_stack
from infra.local.stack import Stack
from tests.gateway_stand import Stand, stand
from tests.waiting import until

EVENT = b'{"flight": 1}'
PREDICT = "/v1/flights/predict"
pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(scope="module")
def running(processes: None) -> Iterator[Stand]:
    yield from stand()


@pytest.fixture(scope="module")
def strict(processes: None) -> Iterator[Stand]:
    """Small limits, so that they can be met."""
    yield from stand(
        GATEWAY_RATE="40",
        GATEWAY_BODY_BYTES="1000",
        GATEWAY_SERVER_TIMEOUT="1s",
        GATEWAY_SERVER_CONNECTIONS="4",
        GATEWAY_QUEUE="8",
    )


@pytest.fixture
def open_gate(running: Stand) -> Stand:
    """Version 1 answers for flights; nothing is known of another use case."""
    running.gateway.set_route("flights", Route("1"))
    running.gateway.set_fallback("flights", None)
    return running


@pytest.fixture
def narrow(strict: Stand) -> Stand:
    strict.gateway.set_route("flights", Route("1"))
    strict.gateway.set_fallback("flights", None)
    time.sleep(1.1)  # the rates of the test before are forgotten after a second
    return strict


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Bearer", "Basic d2luZHNvY2s6eA=="])
def test_without_a_known_key_nothing_but_the_health_is_answered(open_gate: Stand, authorization: str) -> None:
    for method, path in (("POST", PREDICT), ("GET", "/v1/flights/openapi.json"), ("GET", "/nowhere")):
        reply = open_gate.send(method, path, EVENT, Authorization=authorization)
        assert (reply.status, reply.body["error"]) == (401, "no valid key")
        assert reply.headers["www-authenticate"].startswith("Bearer")
    assert open_gate.send("GET", "/healthz", Authorization=authorization).status == 200


def test_the_digest_of_a_key_is_no_key(open_gate: Stand) -> None:
    stored = digest_key(open_gate.home.secrets["gateway"])
    assert stored in (gateway.maps_folder(open_gate.home) / "keys.map").read_text()
    assert open_gate.send("POST", PREDICT, EVENT, Authorization=f"Bearer {stored}").status == 401


ELSEWHERE = (
    *("/", "/models", "/predictions/flights", "/predictions/flights/1", "/ping", "/metrics", "/v1/flights", "//models"),
    *("/v1/../models", "/v1/flights/predict/../../../models", "/v1/%2e%2e/predict", "/v1/Flights/predict"),
)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_no_path_leads_elsewhere(open_gate: Stand, path: str) -> None:
    before = len(open_gate.upstream.asked)
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        assert open_gate.send(method, path, EVENT if method == "POST" else b"").status == 404
    assert len(open_gate.upstream.asked) == before


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PREDICT, "POST"),
        ("PUT", "/v1/flights/explain", "POST"),
        ("DELETE", "/v1/flights/openapi.json", "GET"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(open_gate: Stand, method: str, path: str, allowed: str) -> None:
    reply = open_gate.send(method, path)
    assert (reply.status, reply.headers["allow"], reply.body["expected"]) == (405, allowed, allowed)


def test_the_server_is_asked_for_the_version_and_told_who_asks(open_gate: Stand) -> None:
    reply = open_gate.send("POST", f"{PREDICT}?a=b", EVENT, X_Request_Id="mine-1")
    told = reply.body["headers"]
    assert reply.body["path"] == "/predictions/flights/1"
    assert (told["x-request-id"], told["x-windsock-slot"], told["x-windsock-client"]) == (
        "mine-1",
        "stable",
        "windsock",
    )
    assert (reply.headers["x-request-id"], reply.headers["x-windsock-slot"]) == ("mine-1", "stable")
    assert open_gate.send("POST", "/v1/flights/explain", EVENT).body["path"] == "/explanations/flights/1"


def test_what_a_client_says_of_itself_does_not_reach_the_server(open_gate: Stand) -> None:
    spoofed = {"X_Windsock_Slot": "candidate", "X_Windsock_Client": "boss", "X_Windsock_Other": "x", "explain": "True"}
    told = open_gate.send("POST", PREDICT, EVENT, **spoofed).body["headers"]
    assert (told["x-windsock-slot"], told["x-windsock-client"]) == ("stable", "windsock")
    assert not {"authorization", "x-windsock-other", "explain"} & set(told)


def test_the_server_gets_the_headers_it_needs_and_no_other(open_gate: Stand) -> None:
    """Its worker reads each of them, field by field."""
    useless = {"Accept": "*/*", "Cookie": "a=b", "User_Agent": "x", "Hosts": "y", "X_Entity_Id_": "z"}
    told = open_gate.send("POST", PREDICT, EVENT, X_Entity_Id="N1", **useless).body["headers"]
    ours = {"x-request-id", "x-windsock-slot", "x-windsock-client"}
    assert set(told) == {"host", "content-length", "content-type", "x-entity-id"} | ours


@pytest.mark.parametrize("said", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"])
def test_a_body_is_json_whatever_the_client_calls_it(open_gate: Stand, said: str) -> None:
    """`curl -d` calls it a form, and TorchServe swallows a form."""
    reply = open_gate.send("POST", PREDICT, EVENT, Content_Type=said)
    assert (reply.status, reply.body["headers"]["content-type"]) == (200, "application/json")


def test_a_request_that_names_the_host_works_as_one_that_does_not(open_gate: Stand) -> None:
    def send(target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", open_gate.home.ports["gateway"], timeout=30)
        connection.request("POST", target, EVENT, {"Authorization": f"Bearer {open_gate.home.secrets['gateway']}"})
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
        connection.close()
        return status, body

    for verb, path in (("predict", "/predictions/flights/1"), ("explain", "/explanations/flights/1")):
        status, body = send(f"http://x/v1/flights/{verb}?a=b")
        assert (status, json.loads(body)["path"]) == (200, path)
    assert send("http://x/models")[0] == 404


@pytest.mark.parametrize("given", ["", 'a"b', "a b", "x" * 65])
def test_an_ill_formed_request_id_is_replaced(open_gate: Stand, given: str) -> None:
    reply = open_gate.send("POST", PREDICT, EVENT, X_Request_Id=given)
    assert len(reply.headers["x-request-id"]) == 36
    assert reply.body["headers"]["x-request-id"] == reply.headers["x-request-id"]


def test_an_entity_stays_with_its_slot_and_the_share_is_what_it_should_be(open_gate: Stand) -> None:
    entities = [f"N{number}" for number in range(6000)]
    open_gate.gateway.set_route("flights", Route("1", "2", 0.05))
    first = open_gate.ask_all("flights", entities)
    assert Counter(first.values())["candidate"] / 6000 == pytest.approx(0.05, abs=0.01)
    assert open_gate.ask_all("flights", entities[:500]) == {entity: first[entity] for entity in entities[:500]}
    open_gate.gateway.set_route("flights", Route("1", "2", 0.25))
    later = open_gate.ask_all("flights", entities[:2000])
    assert Counter(later.values())["candidate"] / 2000 == pytest.approx(0.25, abs=0.03)
    assert all(later[entity] == "candidate" for entity in later if first[entity] == "candidate")
    for share, expected in ((1.0, "candidate"), (0.0, "stable")):
        open_gate.gateway.set_route("flights", Route("1", "2", share))
        assert set(open_gate.ask_all("flights", entities[:300]).values()) == {expected}


def test_the_next_candidate_gets_other_entities(open_gate: Stand) -> None:
    chosen = []
    for candidate in ("2", "3"):
        open_gate.gateway.set_route("flights", Route("1", candidate, 0.2))
        slots = open_gate.ask_all("flights", [f"N{number}" for number in range(2000)])
        chosen.append({entity for entity, slot in slots.items() if slot == "candidate"})
    both = len(chosen[0] & chosen[1])
    assert both / 2000 == pytest.approx(0.2 * 0.2, abs=0.02)


def test_without_an_entity_the_request_itself_decides(open_gate: Stand) -> None:
    open_gate.gateway.set_route("flights", Route("1", "2", 0.5))
    bodies = [json.dumps({"flight": number}).encode() for number in range(200)]
    slots = [open_gate.send("POST", PREDICT, body).headers["x-windsock-slot"] for body in bodies]
    assert 60 < slots.count("candidate") < 140
    assert [open_gate.send("POST", PREDICT, body).headers["x-windsock-slot"] for body in bodies[:50]] == slots[:50]


def test_changing_the_share_disturbs_no_client(open_gate: Stand) -> None:
    port, key = open_gate.home.ports["gateway"], open_gate.home.secrets["gateway"]
    done = False

    def client(number: int) -> tuple[int, set[str]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.connect()
        held, asked, paths = connection.sock, 0, set()
        while not done:
            headers = {"Authorization": f"Bearer {key}", "X-Entity-Id": f"{number}-{asked}"}
            connection.request("POST", PREDICT, EVENT, headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            paths.add(json.loads(answer.read())["path"])
            assert connection.sock is held  # the same connection throughout
            asked += 1
        connection.close()
        return asked, paths

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, number) for number in range(16)]
        for change in range(20):
            open_gate.gateway.set_route("flights", Route("1", "2", change % 5 / 4))
            time.sleep(0.1)
        done = True
        results = [future.result() for future in clients]
    assert sum(asked for asked, _ in results) > 300
    assert set.union(*(paths for _, paths in results)) == {"/predictions/flights/1", "/predictions/flights/2"}


@pytest.mark.parametrize("wish", ["fail 1", "killed 1", "drop 1"])
def test_a_request_whose_worker_died_is_asked_again(open_gate: Stand, wish: str) -> None:
    reply = open_gate.gateway.ask("flights", {"do": wish}, request_id=wish.replace(" ", "-"))
    assert (reply.status, reply.body["path"]) == (200, "/predictions/flights/1")
    assert open_gate.upstream.asked[wish.replace(" ", "-")] == 2


def test_what_the_server_says_of_a_bad_request_is_passed_on(open_gate: Stand) -> None:
    reply = open_gate.gateway.ask("flights", {"do": "refuse"}, request_id="refused")
    assert (reply.status, reply.body["path"]) == (400, "flight")
    assert open_gate.upstream.asked["refused"] == 1


@pytest.mark.parametrize("wish", ["fail", "drop"])
def test_when_asking_again_does_not_help_the_static_answer_says_so(open_gate: Stand, wish: str) -> None:
    reply = open_gate.gateway.ask("flights", {"do": wish})
    assert (reply.status, reply.body["error"]) == (503, "the model server did not answer")
    assert reply.headers["retry-after"] == "2"
    open_gate.gateway.set_fallback("flights", 0.21)
    reply = open_gate.gateway.ask("flights", {"do": wish}, request_id=f"{wish}-fallback")
    assert reply.status == 200
    assert "retry-after" not in reply.headers
    assert reply.body == {
        "request_id": f"{wish}-fallback",
        "model_version": None,
        "probability": 0.21,
        "decision": None,
        "degraded": True,
        "fallback": True,
        "reasons": ["the model server did not answer: this is the static answer"],
    }
    assert open_gate.upstream.asked[f"{wish}-fallback"] == 4
    assert open_gate.gateway.ask("flights", [{"do": wish}]).status == 503  # one number cannot answer a list
    assert open_gate.gateway.ask("flights", {"do": wish}, explain=True).status == 503


def test_without_a_server_the_static_answer_comes_at_once_and_the_server_is_found_again(open_gate: Stand) -> None:
    open_gate.gateway.set_fallback("flights", 0.21)
    open_gate.upstream.stop()
    try:
        during = open_gate.gateway.ask("flights", {"a": 1})  # nobody knows yet that the server is gone
        assert (during.status, during.body["fallback"]) == (200, True)
        until(lambda: not open_gate.serves())
        since = datetime.now(UTC)
        assert open_gate.gateway.ask("flights", {"a": 1}).body["probability"] == 0.21
        until(lambda: bool(open_gate.gateway.records("flights", since)))
        assert open_gate.gateway.records("flights", since)[0].retries == 0  # nobody was waited for
        assert open_gate.gateway.ask("flights", [{"a": 1}]).status == 503
    finally:
        open_gate.upstream.start()
    until(open_gate.serves)
    assert open_gate.gateway.ask("flights", {"a": 1}).body["path"] == "/predictions/flights/1"


def test_a_server_that_keeps_silent_is_answered_for(narrow: Stand) -> None:
    narrow.gateway.set_fallback("flights", 0.21)
    reply = narrow.gateway.ask("flights", {"do": "dawdle", "seconds": 3})
    assert (reply.status, reply.body["fallback"]) == (200, True)


def test_a_use_case_without_a_version(open_gate: Stand) -> None:
    reply = open_gate.gateway.ask("taxi", {"a": 1})
    assert (reply.status, reply.body["error"]) == (503, "no version of taxi is deployed")
    assert "taxi.train to promote one and taxi.deploy to put it on the server: until then" in reply.body["expected"]
    open_gate.gateway.set_fallback("taxi", 0.5)
    reply = open_gate.gateway.ask("taxi", {"a": 1})
    assert (reply.status, reply.body["probability"], reply.body["degraded"]) == (200, 0.5, True)
    assert reply.body["reasons"] == ["no version is deployed: this is the static answer"]


def test_one_client_above_its_limit_leaves_the_others_alone(narrow: Stand) -> None:
    keys = {name: narrow.gateway.add_client(name) for name in ("flooder", "quiet")}

    def flood(_: int) -> tuple[int, str | None]:
        reply = narrow.gateway.ask("flights", {"a": 1}, key=keys["flooder"])
        return reply.status, reply.headers.get("retry-after")

    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        flooding = [pool.submit(flood, number) for number in range(300)]
        quiet = [narrow.gateway.ask("flights", {"a": 1}, key=keys["quiet"]).status for _ in range(10)]
        answers = Counter(future.result() for future in flooding)
    assert quiet == [200] * 10
    assert set(answers) == {(200, None), (429, "1")}
    assert 40 <= answers[200, None] <= 40 * (time.monotonic() - began + 2)  # it still gets its limit
    time.sleep(1.1)
    assert flood(0) == (200, None)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_one_at_the_limit_is_not(narrow: Stand, *, chunked: bool) -> None:
    before = len(narrow.upstream.asked)
    at_limit = json.dumps({"a": "x" * 991}).encode()
    assert len(at_limit) == 1000
    assert narrow.send("POST", PREDICT, at_limit).status == 200
    connection = http.client.HTTPConnection("127.0.0.1", narrow.home.ports["gateway"], timeout=10)
    headers = {"Authorization": f"Bearer {narrow.home.secrets['gateway']}"}
    body = at_limit + b" "
    connection.request("POST", PREDICT, iter([body]) if chunked else body, headers, encode_chunked=chunked)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["expected"] == "at most 1000 bytes"
    connection.close()
    assert len(narrow.upstream.asked) == before + 1


def test_more_than_the_server_can_do_is_turned_away_at_once_and_then_all_is_well(narrow: Stand) -> None:
    """Four at a time of 0.2 s and eight waiting, against sixty at once: five times what there is room for."""
    since = datetime.now(UTC)
    keys = [narrow.gateway.add_client(f"crowd-{number}") for number in range(2)]
    narrow.gateway.set_fallback("flights", 0.21)

    def ask(number: int) -> tuple[int, dict[str, str]]:
        reply = narrow.gateway.ask("flights", {"do": "dawdle", "seconds": 0.2}, key=keys[number % 2])
        return reply.status, dict(reply.headers)

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(60)))
    counts = Counter(status for status, _ in answers)
    assert set(counts) == {200, 503}
    assert counts[200] >= 12
    assert counts[503] >= 20
    assert all(headers["retry-after"] == "1" for status, headers in answers if status == 503)
    records = Counter((record.status, record.cause) for record in narrow.gateway.records("flights", since))
    assert records == {(200, ""): counts[200], (503, "overload"): counts[503]}  # no version is to blame
    reply = narrow.gateway.ask("flights", {"a": 1}, key=keys[0])
    assert (reply.status, reply.body["path"]) == (200, "/predictions/flights/1")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_gateway_that_was_killed_routes_as_before(open_gate: Stand, number: int) -> None:
    key = open_gate.gateway.add_client("lasting")
    open_gate.gateway.set_route("flights", Route("1", "7", 1.0))
    open_gate.gateway.set_fallback("flights", 0.3)
    open_gate.stop(number)
    open_gate.part.prepare()  # as the next `make up` would
    open_gate.start()
    assert open_gate.gateway.ask("flights", {"a": 1}, key=key).body["path"] == "/predictions/flights/7"
    assert open_gate.gateway.ask("flights", {"do": "fail"}, key=key).body["probability"] == 0.3


def test_the_metrics_are_prometheus_and_nothing_else_is_there(open_gate: Stand) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", open_gate.home.ports["gateway_metrics"], timeout=5)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200
    assert 'haproxy_backend_http_responses_total{proxy="torchserve",code="2xx"}' in text
    connection.request("GET", "/")
    assert connection.getresponse().status == 404
    connection.close()


def test_only_the_owner_opens_the_admin_socket(open_gate: Stand) -> None:
    """Who opens it decides who may ask and which version answers."""
    address = gateway.gateway_variables(open_gate.home)["WINDSOCK_GATEWAY_ADMIN"]
    found = Path(address.removeprefix("unix@")).stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
    assert open_gate.process is not None
    listening = {found.laddr.port for found in psutil.Process(open_gate.process.pid).net_connections("tcp")}
    assert open_gate.home.ports["gateway"] in listening
    assert open_gate.home.ports["gateway_admin"] not in listening


def test_only_the_owner_reads_the_keys_and_the_process_is_not_root(open_gate: Stand) -> None:
    keys = gateway.maps_folder(open_gate.home) / "keys.map"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert open_gate.process is not None
    uids = Path(f"/proc/{open_gate.process.pid}/status").read_text().split("Uid:")[1].split()[:4]
    assert "0" not in uids


def test_the_supervisor_brings_a_killed_gateway_back_and_the_command_line_gives_keys(
    open_gate: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="windsock-test-"))
    folder.chmod(0o755)
    stack = Stack(folder / "home")
    try:
        stack.start(("gateway",), owner=os.getpid())
        found = stack.environment()
        url, admin = found["WINDSOCK_GATEWAY_URL"], found["WINDSOCK_GATEWAY_ADMIN"]
        gate = Gateway(url, admin, Path(found["WINDSOCK_GATEWAY_MAPS"]), found["WINDSOCK_GATEWAY_KEY"])
        gate.set_fallback("flights", 0.25)
        assert gate.ask("flights", {"a": 1}).body["probability"] == 0.25
        assert main(["key", "--home", str(stack.folder), "--", "dispatch"]) == 0
        key = capsys.readouterr().out.strip()
        (row,) = stack.status()
        assert row.healthy
        os.kill(row.pid or 0, signal.SIGKILL)
        until(lambda: (now := stack.status()[0]).healthy and now.restarts == 1)
        assert gate.ask("flights", {"a": 1}, key=key).body["probability"] == 0.25
        assert main(["revoke", "--home", str(stack.folder), "--", "dispatch"]) == 0
        assert gate.ask("flights", {"a": 1}, key=key).status == 401
        assert gate.ask("flights", {"a": 1}).body["probability"] == 0.25
    finally:
        stack.stop()
        shutil.rmtree(folder)


def test_where_haproxy_cannot_be_had_the_stack_says_so_and_has_no_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = open_home(tmp_path / "home", usual=False, choose_ports=True)
    with monkeypatch.context() as bare:
        bare.setenv("PATH", str(tmp_path))
        bare.setattr(system_programs.shutil, "which", lambda *_, **__: None)
        problem = gateway.fetch_haproxy(home)
        assert gateway.plan_gateway(home, lambda _: {}) == []
    assert problem is not None
    assert "apt-get install haproxy" in problem
    assert not [name for name in make_environment(home, ()) if name.startswith("WINDSOCK_GATEWAY")]


def test_a_stack_without_haproxy_comes_up_and_its_status_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git").symlink_to(shutil.which("git") or "git")
    monkeypatch.setenv("PATH", str(tools))
    stack = Stack(tmp_path / "home")
    told: list[dict[str, str]] = []
    try:
        stack.start(("s3", "gateway"), owner=os.getpid(), tell=told.append)
        advice = system_programs.INSTALL_ADVICE.format("haproxy")
        assert [event["problem"] for event in told if event["state"] == "left out"] == [
            f"no haproxy on the PATH, and no apt-get to fetch it with: {advice}"
        ]
        assert main(["status", "--home", str(stack.folder)]) == 0
        assert "gateway is left out: no haproxy" in capsys.readouterr().out
        assert "WINDSOCK_GATEWAY_URL" not in (stack.folder / "env").read_text()
        assert main(["key", "--home", str(stack.folder), "--", "dispatch"]) == 1
        assert "this stack has no gateway" in capsys.readouterr().err
    finally:
        stack.stop()


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        (tools / name).write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    (tmp_path / "home").mkdir()
    problem = system_programs.fetch_program("haproxy", tmp_path / "home", probe="-v")
    assert problem is not None
    assert "E: no network" in problem
    assert list((tmp_path / "home").iterdir()) == []


def test_a_program_is_found_in_the_sbin_beside_a_bin_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian keeps servers there, and leaves it out of an ordinary user's PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert system_programs.find_program("haproxy", tmp_path / "home") is None
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin" / "haproxy").touch(mode=0o755)
    found = system_programs.find_program("haproxy", tmp_path / "home")
    assert found is not None
    assert found.path == str(tmp_path / "sbin" / "haproxy")


ONLINE = ("WINDSOCK_GATEWAY_", "WINDSOCK_INFERENCE_", "WINDSOCK_MANAGEMENT_", "WINDSOCK_MODEL_STORE")


def names_online_parts(environment: Mapping[str, str]) -> bool:
    return any(name.startswith(ONLINE) for name in environment)


@pytest.fixture
def machine_with_haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A new state folder on a machine that has a program of this name, as after `apt-get install haproxy`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "haproxy").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    home = open_home(tmp_path / "home", usual=False, choose_ports=True)
    found = system_programs.find_program("haproxy", home.folder)
    assert found is not None
    assert found.path == str(tmp_path / "bin" / "haproxy")
    return home


@pytest.mark.parametrize(("groups", "named"), [(("postgres", "s3", "mlflow", "airflow"), False), (GROUPS, True)])
def test_airflow_is_told_of_the_online_parts_only_where_the_stack_has_them(
    groups: tuple[str, ...], machine_with_haproxy: Home, *, named: bool
) -> None:
    parts = {part.name: part for part in plan_stack(machine_with_haproxy, groups) if isinstance(part, Part)}
    for name in ("scheduler", "mlflow"):
        assert names_online_parts(parts[name].environment) is named


@pytest.mark.parametrize(
    ("groups", "left_out", "named"),
    [
        (["postgres"], (), set()),
        (["postgres", "torchserve"], (), {"INFERENCE"}),
        (["postgres", "torchserve", "gateway"], ("gateway",), {"INFERENCE"}),
        (["postgres", "torchserve", "gateway"], (), {"INFERENCE", "GATEWAY"}),
    ],
)
def test_a_stack_tells_of_the_online_parts_that_it_was_started_with(
    groups: list[str], left_out: tuple[str, ...], named: set[str], machine_with_haproxy: Home
) -> None:
    folder = machine_with_haproxy.folder
    parts = {name: {"state": "left out" if name in left_out else "up"} for name in groups}
    (folder / "state.json").write_text(json.dumps({"groups": groups, "parts": parts}))
    urls = {name for name in Stack(folder).environment() if name.startswith(ONLINE) and name.endswith("_URL")}
    assert {name.split("_")[1] for name in urls} - {"MANAGEMENT"} == named


def test_the_stack_names_the_gateway_in_its_environment(open_gate: Stand) -> None:
    found = make_environment(open_gate.home, ("gateway",))
    assert found["WINDSOCK_GATEWAY_URL"] == open_gate.home.url("gateway")
    assert found["WINDSOCK_GATEWAY_KEY"] == open_gate.home.secrets["gateway"]
