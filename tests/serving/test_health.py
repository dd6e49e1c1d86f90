import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving import health

SCHEMA = {"components": {"schemas": {"Event": {"properties": {"carrier": {"examples": ["UA"]}}}}}}


@contextmanager
def server(status: int, answer: object) -> Iterator[str]:
    """A server that publishes a schema, answers every event alike, and is unwell by its own account."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(500, {}) if self.path == "/ping" else self._send(200, SCHEMA)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (asked, self.headers["X-Windsock-Slot"]) == ({"carrier": "UA"}, "health")
            self._send(status, answer)

        def _send(self, status: int, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://0.0.0.0:{listening.server_port}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def checked(url: str, store: Path, monkeypatch: pytest.MonkeyPatch, *versions: str) -> int:
    entries = [{"use_case": "flights", "version": v, "default": v == versions[-1]} for v in versions]
    if versions:
        (store / "deployed.json").write_text(json.dumps({"versions": entries}))
    monkeypatch.setenv("WINDSOCK_INFERENCE_BIND", url)
    monkeypatch.setenv("WINDSOCK_MODEL_STORE", str(store))
    return health.main([])


def test_a_model_that_answers_its_own_example_is_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200, {"probability": 0.25}) as url:
        assert checked(url, tmp_path, monkeypatch, "1", "2") == 0


@pytest.mark.parametrize(("status", "answer"), [(500, {"error": "worker died"}), (200, {"degraded": True})])
def test_one_that_does_not_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    answer: dict[str, object],
) -> None:
    with server(status, answer) as url:
        assert checked(url, tmp_path, monkeypatch, "1", "2") == 1
    assert "flights 2" in capsys.readouterr().err


def test_a_server_without_models_is_healthy_while_it_answers_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(500, {}) as url:
        assert checked(url, tmp_path, monkeypatch) == 0
    assert checked(url, tmp_path, monkeypatch) == 1  # it has ended


def test_a_shipper_that_has_its_spool_and_leaves_nothing_waiting_is_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WINDSOCK_SPOOL", str(tmp_path))
    assert health.main(["shipper"]) == 1
    with (tmp_path / "shipper.lock").open("a") as lock:
        assert health.main(["shipper"]) == 1
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / "a-1.done").touch()
        assert health.main(["shipper"]) == 0
        os.utime(tmp_path / "a-1.done", (0, 0))
        assert health.main(["shipper"]) == 1
    assert "1 segments wait for more than 60 s: a-1.done" in capsys.readouterr().err
