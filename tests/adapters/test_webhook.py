"""What is signed, where it may be sent, and what a receiver's answer means."""

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler

import pytest

from adapters.errors import Unavailable
from adapters.http import send_request
from adapters.redaction import redact
from adapters.webhook import DeliveryOutcome, Webhook, open_webhook, read_retry_after, sign
from pipeline.online import WebhookSettings
from tests.http_stand import serving_http

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SETTINGS = WebhookSettings(url_env="WEBHOOK_URL", secret_env="WEBHOOK_SECRET", max_answers=10, timeout_seconds=5)


def known(url: str = "https://receiver.example/answers", secret: str = SECRET) -> dict[str, str]:
    return {"WEBHOOK_URL": url, "WEBHOOK_SECRET": secret}


def test_a_signature_is_the_one_that_the_conventions_own_libraries_make() -> None:
    """The example in the tests of Standard Webhooks' libraries."""
    made = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_secrets_make_two_signatures_so_that_one_can_take_the_place_of_the_other() -> None:
    found = open_webhook(SETTINGS, known(secret=f"{SECRET} whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"))
    assert len(found.secrets) == 2


@pytest.mark.parametrize(
    "url", ["https://receiver.example", "http://127.0.0.1:80/a?b=c", "http://localhost/", "http://[::1]/"]
)
def test_an_address_that_nobody_can_listen_at_is_taken(url: str) -> None:
    found = open_webhook(SETTINGS, known(url))
    assert found.url == url
    assert url not in repr(found)
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({}, "names WEBHOOK_URL and WEBHOOK_SECRET, which the part `stream` does not find .*: set it"),
        ({"WEBHOOK_URL": "https://a.example"}, "names WEBHOOK_SECRET, which"),
        (known("http://receiver.example/"), "WEBHOOK_URL has to be https"),
        (known("http://127.0.0.1.evil.example/"), "WEBHOOK_URL has to be https"),
        (known("ftp://receiver.example/"), "WEBHOOK_URL has to be an address"),
        (known("receiver.example"), "WEBHOOK_URL has to be an address"),
        (known("https://receiver.example:port/"), "WEBHOOK_URL has to be an address"),
        (known("https://receiver.example/a b"), "WEBHOOK_URL has to be an address"),
        (known("https://me:sesame@receiver.example/"), "WEBHOOK_URL has a user or password"),
        (known(secret="MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "WEBHOOK_SECRET has to be whsec_"),
        (known(secret="whsec_short"), "WEBHOOK_SECRET has to be whsec_"),
        (known(secret="whsec_not base64"), "WEBHOOK_SECRET has to be whsec_"),
    ],
)
def test_what_cannot_be_used_is_named_and_not_shown(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        open_webhook(SETTINGS, environment)
    assert redact(str(caught.value)) == str(caught.value)  # it can be told
    assert not any(value in str(caught.value) for value in environment.values())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_how_long_a_receiver_wants_to_be_left_alone(text: str, seconds: float | None) -> None:
    assert read_retry_after(text, datetime(2026, 3, 1, 12, tzinfo=UTC)) == seconds


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(int(self.path[1:]))
        self.send_header("Location", "/200")
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "20")
        self.end_headers()
        self.wfile.write(b"no, password=sesame!")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with serving_http(_Answers) as address:
        yield address


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, DeliveryOutcome.DELIVERED),
        (204, DeliveryOutcome.DELIVERED),
        (302, DeliveryOutcome.FAILED),
        (308, DeliveryOutcome.FAILED),
        (400, DeliveryOutcome.REFUSED),
        (401, DeliveryOutcome.REFUSED),
        (404, DeliveryOutcome.REFUSED),
        (408, DeliveryOutcome.FAILED),
        (410, DeliveryOutcome.REFUSED),
        (425, DeliveryOutcome.FAILED),
        (429, DeliveryOutcome.FAILED),
        (500, DeliveryOutcome.FAILED),
        (503, DeliveryOutcome.FAILED),
    ],
)
def test_what_an_answer_means(url: str, status: int, outcome: DeliveryOutcome) -> None:
    webhook = Webhook(url=f"{url}/{status}", secrets=(SECRET,), timeout_seconds=5)
    reply = webhook.send("msg_1", b"{}")
    assert (reply.outcome, reply.status) == (outcome, status)
    if outcome is not DeliveryOutcome.DELIVERED:
        assert f"answered {status}" in reply.problem
        assert "sesame" not in reply.problem
        assert reply.retry_after_seconds == 7
    assert ("not followed" in reply.problem) == (300 <= status < 400)


def test_a_receiver_that_is_away_failed() -> None:
    reply = Webhook(url="http://127.0.0.1:1/", secrets=(SECRET,), timeout_seconds=5).send("msg_1", b"{}")
    assert (reply.outcome, reply.status) == (DeliveryOutcome.FAILED, None)
    assert "does not answer" in reply.problem


@pytest.fixture
def dripping() -> Iterator[str]:
    """It sends a byte now and then, for ever."""
    ended = threading.Event()

    def drip() -> None:
        opened, _ = listening.accept()
        with opened:
            opened.recv(65536)
            opened.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            try:
                while not ended.wait(0.05):
                    opened.sendall(b".")
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        ended.set()
        thread.join()


def test_who_sends_a_byte_now_and_then_is_broken_off(dripping: str) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        send_request("POST", dripping, server="drip", content=b"{}", timeout_seconds=0.5, most_bytes=10_000)


def test_of_a_server_that_says_too_much_no_more_is_read_than_one_asked_for(url: str) -> None:
    assert send_request("POST", f"{url}/200", server="echo", content=b"", most_bytes=4).text == "no, "
