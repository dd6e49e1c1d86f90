"""Tells people: every alert is a row, then goes to Slack (bot token, else webhook) or, without Slack, to the log.

The table is an outbox: a row is written first, in the caller's transaction if it has one, and delivered afterwards.
What could not be delivered stays undelivered and is tried again by `flush()`, so Slack being down fails no task and
loses no alert. One open row per fingerprint: the same problem again is counted, not sent again, unless it has news.
"""

import logging
from http.client import HTTPException
from typing import Literal

from psycopg2.extensions import cursor
from slack_sdk import WebClient
from slack_sdk.errors import SlackClientError
from slack_sdk.http_retry.builtin_handlers import RateLimitErrorRetryHandler
from slack_sdk.http_retry.request import HttpRequest
from slack_sdk.http_retry.response import HttpResponse
from slack_sdk.http_retry.state import RetryState
from slack_sdk.webhook import WebhookClient

from adapters.redaction import redact, secrets_in_dsn
from adapters.warehouse import Warehouse
from pipeline.settings import Settings

Tier = Literal["critical", "warning", "info"]

_LOG = logging.getLogger("windsock.alerts")
_SILENT = logging.Logger("slack_sdk", logging.CRITICAL + 1)  # its own log shows addresses and answers unredacted
_LEVELS = {"critical": logging.CRITICAL, "warning": logging.WARNING, "info": logging.INFO}
_TIMEOUT_SECONDS = 10
_LONGEST_WAIT_SECONDS = 30  # a task must not sleep through an hour of rate limit; `flush()` comes back later
_TEXT_CHARACTERS = 3500  # Slack shortens messages from 4,000 characters on
_BATCH = 50
_TROUBLE = (SlackClientError, OSError, HTTPException, ValueError)  # ValueError: an answer that is not Slack's

_RECORD = """
insert into alerts as a (use_case, tier, fingerprint, title, body) values (%s, %s, %s, %s, %s)
on conflict (fingerprint) where resolved_at is null do update set
    occurrences = a.occurrences + 1, last_at = now(), use_case = excluded.use_case,
    title = excluded.title, body = excluded.body,
    tier = (array['critical', 'warning', 'info'])[least(
        array_position(array['critical', 'warning', 'info'], a.tier),
        array_position(array['critical', 'warning', 'info'], excluded.tier))],
    delivered_at = case when {news} then null else a.delivered_at end,
    channel = case when {news} then null else a.channel end
returning alert_id
""".format(
    news="(a.title, a.body) is distinct from (excluded.title, excluded.body) "
    "or array_position(array['critical', 'warning', 'info'], excluded.tier) "
    "< array_position(array['critical', 'warning', 'info'], a.tier)"
)
_CLAIM = """
select a.tier, a.title, a.body, a.occurrences, coalesce(a.thread, (
    select b.thread from alerts b where b.fingerprint = a.fingerprint and b.thread is not null
    order by b.alert_id desc limit 1))
from alerts a where a.alert_id = %s and a.delivered_at is null for update of a skip locked
"""
_UNDELIVERED = "select alert_id from alerts where delivered_at is null and tier <> 'info' order by alert_id limit %s"
_NEW_INFO = """
select alert_id, use_case, title, body, occurrences from alerts
where delivered_at is null and tier = 'info' order by alert_id for update skip locked
"""


class BoundedRateLimitRetryHandler(RateLimitErrorRetryHandler):
    """Waits out a 429 only where Slack asks for a wait that a task can afford."""

    def _can_retry(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> bool:
        if not super()._can_retry(state=state, request=request, response=response, error=error) or response is None:
            return False
        waits = [value for name, value in response.headers.items() if name.lower() == "retry-after"]
        seconds = "".join(waits[0]) if waits else ""
        return seconds.isdigit() and int(seconds) <= _LONGEST_WAIT_SECONDS


class Alerts:
    """Records alerts in the warehouse and delivers them, as far as it can, to people."""

    def __init__(self, warehouse: Warehouse, settings: Settings) -> None:
        self._warehouse = warehouse
        self._settings = settings
        known = {
            settings.s3_secret_key,
            settings.s3_access_key,
            settings.slack_token or "",
            settings.slack_webhook or "",
            *(word for value in settings.webhooks.values() for word in value.split()),
        }
        dsns = (settings.warehouse_dsn, settings.source_dsn, settings.studies_dsn, settings.follower_dsn or "")
        known = known.union(*map(secrets_in_dsn, dsns))
        self._secrets = frozenset(secret for secret in known if len(secret) >= 6)  # shorter would eat innocent words

    def raise_alert(self, tier: Tier, use_case: str | None, fingerprint: str, title: str, body: str) -> int:
        """Record an alert and, unless it is for the digest, deliver it now if that is possible; its row's id.

        Trouble with delivery never raises: the row stays undelivered for `flush()`.
        """
        with self._warehouse.transaction() as at:
            alert_id = self.record(at, tier=tier, use_case=use_case, fingerprint=fingerprint, title=title, body=body)
        if tier != "info" and self._deliver(alert_id):
            self.flush()  # the channel is up: what waited can go too
        return alert_id

    def record(self, at: cursor, *, tier: Tier, use_case: str | None, fingerprint: str, title: str, body: str) -> int:
        """Write an alert in the caller's transaction, to be delivered by `flush()` after the commit; its row's id."""
        at.execute(_RECORD, (use_case, tier, fingerprint, self._clean(title), self._clean(body)))
        [(alert_id,)] = at.fetchall()
        return int(alert_id)

    def resolve(self, fingerprint: str, at: cursor | None = None) -> bool:
        """Close the open alert of a fingerprint, in the caller's transaction if given; whether there was one."""
        if at is None:
            with self._warehouse.transaction() as own:
                return self.resolve(fingerprint, own)
        at.execute(
            "update alerts set resolved_at = now() where fingerprint = %s and resolved_at is null", (fingerprint,)
        )
        return at.rowcount > 0

    def flush(self) -> int:
        """Deliver what waits, oldest first, until the channel fails; how many were delivered."""
        delivered = 0
        for row in self._warehouse.query(_UNDELIVERED, (_BATCH,)):
            if not self._deliver(row["alert_id"]):
                break
            delivered += 1
        return delivered

    def digest(self) -> int:
        """Send the info alerts since the last digest as one message; how many it held. Sends nothing if none."""
        with self._warehouse.transaction() as at:
            at.execute(_NEW_INFO)
            rows = at.fetchall()
            if not rows:
                return 0
            lines = [
                f"• {use_case or 'platform'}: {title} ({count}x) {body}" for _, use_case, title, body, count in rows
            ]
            sent = self._send("info", f"Daily digest: {len(rows)} notes", "\n".join(lines), None)
            if sent is None:
                return 0
            at.execute(  # a note is no problem to be mended: told is done
                "update alerts set delivered_at = now(), resolved_at = now(), channel = %s where alert_id = any(%s)",
                (sent[0], [row[0] for row in rows]),
            )
        return len(rows)

    def _clean(self, text: str) -> str:
        return redact(text.replace("\x00", ""), self._secrets)  # PostgreSQL text holds no NUL

    def _deliver(self, alert_id: int) -> bool:
        """Send one alert, its row locked meanwhile so that no other process sends it too; whether it is out."""
        with self._warehouse.transaction() as at:
            at.execute(_CLAIM, (alert_id,))
            row = at.fetchone()
            if row is None:
                return True  # sent, or being sent, by another process
            tier, title, body, occurrences, thread = row
            sent = self._send(tier, f"{title} ({occurrences}x)" if occurrences > 1 else title, body, thread)
            if sent is None:
                return False
            channel, message = sent
            at.execute(
                "update alerts set delivered_at = now(), channel = %s, thread = coalesce(%s, %s) where alert_id = %s",
                (channel, thread, message, alert_id),
            )
        return True

    def _send(self, tier: str, title: str, body: str, thread: str | None) -> tuple[str, str | None] | None:
        """(channel, thread) of what was sent; None where the channel could not be reached."""
        settings = self._settings
        try:
            if settings.slack_token:
                return "slack", self._post(settings.slack_token, tier, _message(tier, title, body), thread)
            if settings.slack_webhook:
                _post_to_webhook(settings.slack_webhook, _message(tier, title, body))
                return "slack", None
        except _TROUBLE as error:
            _LOG.error(
                "not delivered, will be tried again: [%s] %s: %s (%s)",
                tier,
                title,
                body,
                self._clean(f"{type(error).__name__}: {error}"),
            )
            return None
        _LOG.log(_LEVELS[tier], "[%s] %s: %s", tier, title, body)
        return "log", None

    def _post(self, token: str, tier: str, text: str, thread: str | None) -> str:
        client = WebClient(
            token=token,
            timeout=_TIMEOUT_SECONDS,
            logger=_SILENT,
            retry_handlers=[BoundedRateLimitRetryHandler()],
            base_url=f"{(self._settings.slack_api or WebClient.BASE_URL).rstrip('/')}/",
        )
        answer = client.chat_postMessage(
            channel=self._settings.slack_channel,
            text=text,
            thread_ts=thread,
            # A critical alert is seen by everyone even where its thread is old.
            reply_broadcast=(tier == "critical" and thread is not None) or None,
        )
        return str(answer["ts"])


def _message(tier: str, title: str, body: str) -> str:
    """Slack text; what came from data can neither mention a person or channel nor format anything."""
    sign = {"critical": ":rotating_light:", "warning": ":warning:", "info": ":information_source:"}[tier]
    escaped = f"{title}\n{body}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{sign} {escaped}"[:_TEXT_CHARACTERS]


def _post_to_webhook(url: str, text: str) -> None:
    answer = WebhookClient(
        url, timeout=_TIMEOUT_SECONDS, logger=_SILENT, retry_handlers=[BoundedRateLimitRetryHandler()]
    ).send(text=text)
    if answer.status_code != 200:
        raise SlackClientError(f"the webhook answered {answer.status_code}: {answer.body[:200]}")
