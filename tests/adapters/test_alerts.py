"""Alerts against a real PostgreSQL and a local HTTP server that speaks Slack's API."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from adapters.alerts import Alerts
from adapters.connect import Outside
from adapters.redaction import redact, secrets_in_dsn

Answer = tuple[int, dict[str, str], str]


@dataclass
class Slack:
    """What was posted to us, and the answers to give before answering as Slack does when all is well."""

    url: str = ""
    posts: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def answer(self, path: str, form: dict[str, Any]) -> Answer:
        self.posts.append({"path": path, **form})
        if self.answers:
            return self.answers.pop(0)
        if path.startswith("/services"):
            return 200, {}, "ok"
        stamp = f"1700000000.{len(self.posts):06d}"
        return 200, {"Content-Type": "application/json"}, json.dumps({"ok": True, "channel": "C1", "ts": stamp})


@pytest.fixture
def slack() -> Iterator[Slack]:
    state = Slack()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.headers["Content-Type"].startswith("application/json"):
                form = json.loads(text)
            else:
                form = {key: values[0] for key, values in parse_qs(text).items()}
            status, headers, body = state.answer(self.path, form | {"auth": self.headers.get("Authorization")})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def alerts(outside: Outside, slack: Slack) -> Alerts:
    """Alerts by bot token to our Slack."""
    told = replace(outside.settings, slack_token="xoxb-planted-token", slack_api=slack.url)
    return Alerts(outside.warehouse, told)


def rows(outside: Outside) -> list[dict[str, Any]]:
    return outside.warehouse.query("select * from alerts order by alert_id")


def test_a_critical_alert_is_sent_now_and_its_row_says_where(alerts: Alerts, slack: Slack, outside: Outside) -> None:
    alert_id = alerts.raise_alert("critical", "flights", "flights:broken", "Broken feed", "weather is empty")
    [post] = slack.posts
    assert post["path"] == "/chat.postMessage"
    assert post["channel"] == "#windsock"
    assert "Broken feed" in post["text"]
    assert "weather is empty" in post["text"]
    [row] = rows(outside)
    assert (row["alert_id"], row["channel"], row["thread"]) == (alert_id, "slack", "1700000000.000001")
    assert row["delivered_at"] is not None


@pytest.mark.parametrize("tier", ["critical", "warning"])
def test_the_same_problem_again_is_counted_and_not_sent_again(
    alerts: Alerts, slack: Slack, outside: Outside, tier: Any
) -> None:
    first = [alerts.raise_alert(tier, "flights", "flights:drift", "Drift", "temp_c") for _ in range(3)]
    assert len(set(first)) == 1
    assert len(slack.posts) == 1
    assert [row["occurrences"] for row in rows(outside)] == [3]


def test_news_about_an_open_problem_goes_to_its_thread(alerts: Alerts, slack: Slack, outside: Outside) -> None:
    alerts.raise_alert("warning", "flights", "flights:drift", "Drift", "temp_c")
    alerts.raise_alert("warning", "flights", "flights:drift", "Drift", "temp_c, humidity")
    assert slack.posts[1]["thread_ts"] == "1700000000.000001"
    assert "reply_broadcast" not in slack.posts[1]
    assert len(rows(outside)) == 1


def test_a_problem_that_becomes_critical_is_sent_again_for_all_to_see(alerts: Alerts, slack: Slack) -> None:
    alerts.raise_alert("warning", "flights", "flights:feed", "Feed", "odd")
    alerts.raise_alert("critical", "flights", "flights:feed", "Feed", "odd")
    assert slack.posts[1]["thread_ts"] == "1700000000.000001"
    assert slack.posts[1]["reply_broadcast"] is True


def test_a_resolved_problem_that_returns_is_a_new_alert_in_the_old_thread(
    alerts: Alerts, slack: Slack, outside: Outside
) -> None:
    alerts.raise_alert("warning", "flights", "flights:drift", "Drift", "temp_c")
    assert alerts.resolve("flights:drift")
    assert not alerts.resolve("flights:drift")
    alerts.raise_alert("warning", "flights", "flights:drift", "Drift", "temp_c")
    assert [row["occurrences"] for row in rows(outside)] == [1, 1]
    assert slack.posts[1]["thread_ts"] == "1700000000.000001"


def test_info_waits_for_the_digest_and_is_told_once(alerts: Alerts, slack: Slack, outside: Outside) -> None:
    for number in (1, 2):
        alerts.raise_alert("info", "flights", f"flights:note:{number}", f"Note {number}", "all is well")
    assert alerts.flush() == 0
    assert slack.posts == []
    assert alerts.digest() == 2
    assert alerts.digest() == 0
    [post] = slack.posts
    assert "Note 1" in post["text"]
    assert "Note 2" in post["text"]
    alerts.raise_alert("info", "flights", "flights:note:1", "Note 1", "all is well")
    assert alerts.digest() == 1


def test_a_rate_limit_is_waited_out(alerts: Alerts, slack: Slack, outside: Outside) -> None:
    slack.answers = [(429, {"Retry-After": "0"}, '{"ok": false, "error": "ratelimited"}')]
    alerts.raise_alert("critical", "flights", "flights:broken", "Broken feed", "weather")
    assert len(slack.posts) == 2
    assert rows(outside)[0]["channel"] == "slack"


TROUBLE = {
    "an error of Slack's": (200, {"Content-Type": "application/json"}, '{"ok": false, "error": "channel_not_found"}'),
    "a server error": (500, {}, "oops"),
    "no JSON": (200, {"Content-Type": "text/html"}, "<html>proxy</html>"),
    "a rate limit of an hour": (429, {"Retry-After": "3600"}, "{}"),
    "a rate limit without a time": (429, {}, "{}"),
    "a rate limit in words": (429, {"Retry-After": "soon"}, "{}"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_delivery_trouble_raises_nothing_and_flush_delivers_later(
    alerts: Alerts, slack: Slack, outside: Outside, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    slack.answers = [TROUBLE[trouble]]
    alerts.raise_alert("critical", "flights", "flights:broken", "Broken feed", "weather")
    assert rows(outside)[0]["delivered_at"] is None
    assert "not delivered" in caplog.text
    assert alerts.flush() == 1
    assert alerts.flush() == 0
    assert rows(outside)[0]["channel"] == "slack"


def test_with_slack_down_alerts_queue_without_doubles_and_go_out_with_the_next_one(
    outside: Outside, slack: Slack, alerts: Alerts
) -> None:
    down = Alerts(outside.warehouse, replace(outside.settings, slack_token="xoxb-t", slack_api="http://127.0.0.1:9"))
    for _ in range(3):
        down.raise_alert("critical", "flights", "flights:a", "A", "a")
        down.raise_alert("warning", "flights", "flights:b", "B", "b")
    assert down.flush() == 0
    assert [(row["channel"], row["occurrences"]) for row in rows(outside)] == [(None, 3), (None, 3)]
    alerts.raise_alert("critical", "flights", "flights:c", "C", "c")
    assert len(slack.posts) == 3
    assert {row["channel"] for row in rows(outside)} == {"slack"}


def test_two_processes_flushing_at_once_send_once(outside: Outside, slack: Slack, alerts: Alerts) -> None:
    with outside.warehouse.transaction() as at:
        for number in range(5):
            alerts.record(at, tier="critical", use_case=None, fingerprint=f"f{number}", title="T", body="b")
    threads = [threading.Thread(target=alerts.flush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(slack.posts) == 5


def test_an_alert_recorded_in_a_transaction_that_fails_never_was(outside: Outside, alerts: Alerts) -> None:
    def fail() -> None:
        with outside.warehouse.transaction() as at:
            alerts.record(at, tier="critical", use_case=None, fingerprint="f", title="T", body="b")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert rows(outside) == []
    assert alerts.flush() == 0


def test_a_webhook_is_used_where_there_is_no_token(outside: Outside, slack: Slack) -> None:
    alerts = Alerts(outside.warehouse, replace(outside.settings, slack_webhook=f"{slack.url}/services/T0/B0/planted"))
    slack.answers = [(404, {}, "no_service")]
    alerts.raise_alert("warning", "flights", "flights:drift", "Drift", "temp_c")
    assert rows(outside)[0]["channel"] is None
    assert alerts.flush() == 1
    assert "Drift" in slack.posts[-1]["text"]
    assert rows(outside)[0]["channel"] == "slack"


def test_without_slack_the_log_is_the_channel(outside: Outside, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outside.alerts.raise_alert("critical", "flights", "flights:broken", "Broken feed", "weather")
    assert "Broken feed" in caplog.text
    assert rows(outside)[0]["channel"] == "log"


def test_data_cannot_mention_the_channel_or_break_the_row(alerts: Alerts, slack: Slack) -> None:
    alerts.raise_alert("warning", "flights", "flights:odd", "Odd", "carrier <!channel> & \x00" + "x" * 10_000)
    assert "<!channel>" not in slack.posts[0]["text"]
    assert len(slack.posts[0]["text"]) < 4000


def test_a_planted_secret_reaches_neither_row_nor_slack_nor_log(
    alerts: Alerts, slack: Slack, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    s = outside.settings
    password = next(part for part in secrets_in_dsn(s.warehouse_dsn) if part != s.warehouse_dsn)
    planted = [s.s3_secret_key, s.s3_access_key, "xoxb-planted-token", password]
    slack.answers = [(500, {}, f"failed with {s.s3_secret_key}")]
    alerts.raise_alert("critical", "flights", "flights:leak", f"cannot reach {s.warehouse_dsn}", "; ".join(planted))
    assert alerts.flush() == 1
    Alerts(outside.warehouse, s).raise_alert("critical", "flights", "log", s.warehouse_dsn, "; ".join(planted))
    everywhere = f"{[{**post, 'auth': ''} for post in slack.posts]} {rows(outside)} {caplog.text}"
    assert [secret for secret in planted if secret in everywhere] == []
    assert "[redacted]" in everywhere


SECRETS = [
    ("postgresql://windsock:hunter2hunter2@db:5432/w", "hunter2"),
    ("host=db user=w password='it is secret' dbname=w", "it is secret"),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalr"),
    ("key AKIAIOSFODNN7EXAMPLE used", "AKIAIOSF"),
    ("token xoxb-123456789012-abcdefghij", "xoxb-1234"),
    ("signed by whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8G"),
    ("https://hooks.slack.com/services/T000/B000/XXXXXXXX", "XXXX"),
    ("Authorization: Bearer abcdef0123456789", "abcdef0"),
    ('{"api_key": "0123456789abcdef"}', "0123456"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abc"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc", "eyJhbGci"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_what_is_shaped_like_a_secret_is_redacted(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redact(text)
    assert "[redacted]" in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "PSI of temp_c 0.31 > 0.20 from 2013-04-01T00:00:00+00:00",
        "s3://lake/reports/flights/2013-04-08/drift.html",
        "see http://127.0.0.1:8080/dags/flights.train and mail ops@example.org",
        "the key (carrier, flight) is doubled in 3 rows; missing_share: 0.4",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text
