"""A receiver of what we tell: one signed POST a message, by the conventions of Standard Webhooks (v1, HMAC-SHA256)."""

import base64
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from ipaddress import ip_address
from urllib.parse import urlsplit

from adapters.errors import Unavailable
from adapters.http import HttpReply, send_request
from adapters.redaction import redact
from pipeline.online import WebhookSettings

_MOST_BYTES = 4096  # of what the receiver answers; its words are for people
_SECRET_PREFIX = "whsec_"  # noqa: S105  # the convention's
_LEAST_KEY_BYTES, _MOST_KEY_BYTES = 24, 64
_PASSING = (408, 425, 429)  # the statuses below 500 that another attempt may mend


class DeliveryOutcome(Enum):
    """What became of a message that was sent."""

    DELIVERED = "delivered"
    FAILED = "failed"  # another attempt may succeed
    REFUSED = "refused"  # the receiver will not have it: a person has to change something


@dataclass(frozen=True, kw_only=True)
class DeliveryReply:
    """What a receiver answered; `problem` is for people, without secrets, and empty where it took the message."""

    outcome: DeliveryOutcome
    status: int | None = None  # None: it did not answer
    problem: str = ""
    retry_after_seconds: float | None = None  # so long it does not want to be asked


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """A receiver, and the keys that it may know us by."""

    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    timeout_seconds: float

    def send(self, message_id: str, content: bytes) -> DeliveryReply:
        """Send a JSON document once. Sent again it has the same id, by which the receiver drops what it has already."""
        moment = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "windsock",
            "webhook-id": message_id,
            "webhook-timestamp": str(moment),
            "webhook-signature": " ".join(sign(each, message_id, moment, content) for each in self.secrets),
        }
        try:
            reply = send_request(
                "POST",
                self.url,
                server="the webhook's receiver",
                content=content,
                headers=headers,
                timeout_seconds=self.timeout_seconds,
                most_bytes=_MOST_BYTES,
            )
        except Unavailable as error:
            return DeliveryReply(outcome=DeliveryOutcome.FAILED, problem=redact(str(error), self.secrets))
        return self._read_reply(reply)

    def _read_reply(self, reply: HttpReply) -> DeliveryReply:
        outcome = _judge_status(reply.status)
        if outcome is DeliveryOutcome.DELIVERED:
            return DeliveryReply(outcome=outcome, status=reply.status)
        advice = "; redirects are not followed: name the address it leads to" if 300 <= reply.status < 400 else ""
        return DeliveryReply(
            outcome=outcome,
            status=reply.status,
            problem=redact(f"the receiver answered {reply.status}: {reply.message[:300]}{advice}", self.secrets),
            retry_after_seconds=read_retry_after(reply.headers.get("retry-after", "")),
        )


def open_webhook(settings: WebhookSettings, known: Mapping[str, str]) -> Webhook:
    """The receiver that these settings name, of what is known of the environment.

    Raises:
        ValueError: a variable is not set, or holds what cannot be used; says which, and what was expected.
    """
    missing = [name for name in (settings.url_env, settings.secret_env) if not known.get(name, "").strip()]
    if missing:
        raise ValueError(
            f"endpoint.answers.webhook names {' and '.join(missing)}, which the part `stream` does not find in its"
            " environment: set it, and start the stack again"
        )
    url, secrets = known[settings.url_env].strip(), tuple(known[settings.secret_env].split())
    _check_url(settings.url_env, url)
    for secret in secrets:
        _check_secret(settings.secret_env, secret)
    return Webhook(url=url, secrets=secrets, timeout_seconds=settings.timeout_seconds)


def sign(secret: str, message_id: str, moment: int, content: bytes) -> str:
    """A signature of a message, as it stands in the header; `moment` is in seconds since 1970."""
    signed = f"{message_id}.{moment}.".encode() + content
    return f"v1,{base64.b64encode(hmac.digest(_read_key(secret), signed, 'sha256')).decode()}"


def read_retry_after(text: str, now: datetime | None = None) -> float | None:
    """Seconds, of a header that has seconds or a date; None where it has neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds())


def _judge_status(status: int) -> DeliveryOutcome:
    if 200 <= status < 300:
        return DeliveryOutcome.DELIVERED
    return DeliveryOutcome.REFUSED if 400 <= status < 500 and status not in _PASSING else DeliveryOutcome.FAILED


def _read_key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)


def _check_url(name: str, url: str) -> None:
    """No message of these says the address: there may be a secret in it."""
    address = urlsplit(url)
    try:
        whole = bool(address.hostname) and address.port != 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError:  # a port that is none
        whole = False
    if address.scheme not in ("http", "https") or not whole:
        raise ValueError(f"the variable {name} has to be an address such as https://example.com/answers")
    if address.username is not None or address.password is not None:
        raise ValueError(f"the variable {name} has a user or password in its address: leave them out, we sign instead")
    if address.scheme == "http" and not _is_loopback(address.hostname or ""):
        raise ValueError(f"the variable {name} has to be https, unless the receiver is on this machine (localhost)")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _check_secret(name: str, secret: str) -> None:
    try:
        length = len(_read_key(secret))
    except ValueError:
        length = 0
    if not secret.startswith(_SECRET_PREFIX) or not _LEAST_KEY_BYTES <= length <= _MOST_KEY_BYTES:
        raise ValueError(
            f"the variable {name} has to be {_SECRET_PREFIX} and, in base64, {_LEAST_KEY_BYTES} to {_MOST_KEY_BYTES}"
            f' random bytes: `echo "{_SECRET_PREFIX}$(openssl rand -base64 32)"` makes one'
        )
