"""A real HAProxy in front of a small real server that stands for TorchServe and misbehaves on request."""

import atexit
import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapters.gateway import Gateway, GatewayReply
from infra.local import gateway, system_programs
from infra.local.home import Home, open_home
from infra.local.part import Part
from infra.local.processes import MARKER, spawn_part
from tests.waiting import until


@cache
def _program_folder() -> Path:
    """HAProxy, fetched once a session where the system has none."""
    folder = Path(tempfile.mkdtemp(prefix="windsock-haproxy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if (problem := system_programs.fetch_program("haproxy", folder, probe="-v")) is not None:
        pytest.skip(problem)
    return folder


_SWALLOWED = {"application/x-www-form-urlencoded", "multipart/form-data"}  # TorchServe hands on none of it


class _Answers(BaseHTTPRequestHandler):
    """Answers with what it was told; an event may name its wish under `do`."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    asked: dict[str, int]  # how often each request id came; every Upstream has its own

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, {"status": "Healthy"})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get_content_type() in _SWALLOWED:
            self._answer(400, {"error": "got nothing"})
        elif not self.path.startswith("/"):
            self._answer(404, {"code": 404, "message": "Requested resource is not found"})
        else:
            self._answer_event(json.loads(text))

    def _answer_event(self, body: Any) -> None:
        wish = body.get("do") if isinstance(body, dict) else body[0].get("do")
        identity = self.headers["X-Request-Id"]
        self.asked[identity] = times = self.asked.get(identity, 0) + 1
        if wish in {"fail", f"fail {times}"}:
            return self._answer(500, {"code": 500, "message": "Worker died."})
        if wish == f"killed {times}":  # what TorchServe says when it already knows that SIGKILL ended its worker
            return self._answer(507, {"code": 507, "message": "Worker died."})
        if wish in {"drop", f"drop {times}"}:
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if wish == "refuse":
            return self._answer(400, {"error": "bad", "path": "flight", "expected": "an integer"})
        if wish == "dawdle":
            time.sleep(body["seconds"])
        headers = {name.lower(): value for name, value in self.headers.items()}
        return self._answer(200, {"path": self.path, "headers": headers})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
    connections: set[socket.socket]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the gateway gave up on us, as it was meant to


class Upstream:
    """The server behind the gateway: it can be taken down and brought back."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: dict[str, int] = {}
        self.start()

    def start(self) -> None:
        handler = type("Answers", (_Answers,), {"asked": self.asked})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self._server.connections = set()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            if connection.fileno() >= 0:
                with contextlib.suppress(OSError):  # the other side was quicker
                    connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
                connection.close()


@dataclass
class Stand:
    """A gateway with an upstream, and a client."""

    home: Home
    part: Part
    upstream: Upstream
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = spawn_part(self.part, self.home.logs / "gateway.log")
        until(lambda: self.part.is_healthy() or self.process is None or self.process.poll() is not None)
        assert self.process.poll() is None, (self.home.logs / "gateway.log").read_text()
        until(self.serves)

    def with_settings(self, **settings: str) -> Part:
        """The gateway's part, with these of its settings changed; for the next start."""
        return replace(self.part, environment={**self.part.environment, **settings})

    def serves(self) -> bool:
        """Whether the gateway has found its server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.home.ports["gateway"], timeout=5)
        connection.request("GET", "/healthz")
        try:
            return bool(json.loads(connection.getresponse().read())["servers"])
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(10)

    @cached_property
    def gateway(self) -> Gateway:
        found = gateway.gateway_variables(self.home)
        return Gateway(
            found["WINDSOCK_GATEWAY_URL"],
            found["WINDSOCK_GATEWAY_ADMIN"],
            Path(found["WINDSOCK_GATEWAY_MAPS"]),
            found["WINDSOCK_GATEWAY_KEY"],
        )

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> GatewayReply:
        """A request as it comes; the stack's own key unless another Authorization is given."""
        given = {"Authorization": f"Bearer {self.home.secrets['gateway']}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.gateway._send(method, path, body, given)

    def open(self, path: str, length: int, request_id: str) -> socket.socket:
        """A POST whose body the caller sends, slowly or not at all."""
        connection = socket.create_connection(("127.0.0.1", self.home.ports["gateway"]), timeout=30)
        lines = (f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.home.secrets['gateway']}")
        ids = (f"X-Request-Id: {request_id}", f"Content-Length: {length}")
        connection.sendall("\r\n".join((*lines, *ids, "", "")).encode())
        return connection

    def ask_all(self, use_case: str, entities: Sequence[str], *, clients: int = 8) -> dict[str, str]:
        """The slot each entity was answered by, asked over keep-alive connections."""

        def ask(share: Sequence[str]) -> dict[str, str]:
            connection = http.client.HTTPConnection("127.0.0.1", self.home.ports["gateway"], timeout=30)
            slots = {}
            for entity in share:
                headers = {"Authorization": f"Bearer {self.home.secrets['gateway']}", "X-Entity-Id": entity}
                connection.request("POST", f"/v1/{use_case}/predict", b'{"a": 1}', headers)
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                slots[entity] = json.loads(answer.read())["headers"]["x-windsock-slot"]
            connection.close()
            return slots

        with ThreadPoolExecutor(clients) as pool:
            found = pool.map(ask, [entities[number::clients] for number in range(clients)])
            return {entity: slot for slots in found for entity, slot in slots.items()}


def stand(**limits: str) -> Iterator[Stand]:
    """A running gateway with these limits, and its server."""
    program = _program_folder()
    folder = Path(tempfile.mkdtemp(prefix="windsock-gateway-"))
    folder.chmod(0o755)
    home = open_home(folder / ("home-with-a-name-longer-than-any-path-of-a-socket" * 3), usual=False, choose_ports=True)
    if (program / "haproxy").exists():
        (home.folder / "haproxy").symlink_to(program / "haproxy")
    part = gateway.plan_gateway(home, lambda name: {MARKER: f"{home.stack}/{name}"})[0]
    assert isinstance(part, Part)
    part.prepare()
    found = Stand(home, part, Upstream(home.ports["inference"]))
    found.part = found.with_settings(**limits)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        found.upstream.stop()
        shutil.rmtree(folder)
