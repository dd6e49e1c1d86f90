"""What becomes of one request, against a server of the test's own."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from adapters.errors import Unavailable
from adapters.http import HttpReply, require_success, send_request
from tests.http_stand import serving_http


class _Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if content == b"break off":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            return
        body = b'{"path": "%s", "agent": "%s"}' % (self.path.encode(), self.headers["X-Agent"].encode())
        self.send_response(201)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with serving_http(_Echo) as address:
        yield address


def test_a_request_keeps_its_path_its_query_and_its_headers(url: str) -> None:
    reply = send_request("POST", f"{url}/a/b?c=d", server="echo", content=b"", headers={"X-Agent": "test"})
    assert (reply.status, reply.is_json, reply.json()) == (201, True, {"path": "/a/b?c=d", "agent": "test"})


def test_the_environments_proxy_is_not_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert send_request("POST", url, server="echo", content=b"", headers={"X-Agent": "test"}).status == 201


def test_an_answer_that_breaks_off_is_none(url: str) -> None:
    with pytest.raises(Unavailable, match=r"echo at http://127.0.0.1:.* does not answer: IncompleteRead"):
        send_request("POST", url, server="echo", content=b"break off")


def test_a_server_that_is_away_is_named_without_the_password() -> None:
    with pytest.raises(Unavailable, match=r"echo at http://127.0.0.1:1 does not answer") as caught:
        send_request("GET", "http://user:sesame@127.0.0.1:1/", server="echo")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(("status", "error"), [(400, ValueError), (404, ValueError), (503, Unavailable)])
def test_a_failure_may_be_repeated_and_a_refusal_may_not(status: int, error: type[Exception]) -> None:
    reply = HttpReply(status, {}, b'{"message": "no, password=sesame"}')
    with pytest.raises(error, match=rf"greeting: the server answered {status}: no, password=\[redacted\]"):
        require_success(reply, "greeting")


def test_a_success_is_handed_on() -> None:
    reply = HttpReply(302, {}, b"")
    assert require_success(reply, "greeting") is reply
