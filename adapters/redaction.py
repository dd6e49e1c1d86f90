"""Takes secrets out of text before it is stored, logged or sent."""

import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

MASK = "[redacted]"

# Shapes of secrets whoever issued them. Each pattern keeps its group 1, which says what stood there.
_SHAPES = [
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/]+(?=@)", re.IGNORECASE),  # scheme://user:PASSWORD@host
    re.compile(r"(hooks\.slack\.com/(?:services|workflows|triggers)/)[\w/+-]+", re.IGNORECASE),
    re.compile(r"(\bwhsec_)[\w+/=-]{8,}"),  # the keys that sign webhooks
    re.compile(r"()\bx(?:ox[a-z]|app)-[\w-]{8,}", re.IGNORECASE),  # Slack tokens
    re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),  # AWS access key ids
    re.compile(r"()\b(?:gh[a-z]_|github_pat_|glpat-)\w{16,}"),
    re.compile(r"()\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),  # JSON web tokens
    re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE),
    re.compile(
        r"""(\b[\w-]*(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key(?:[_-]?id)?|credential)[\w-]*"""
        r"""["']?\s*[=:]\s*)(?:"[^"]*"|'[^']*'|(?!\[redacted\])[^\s,;&)}\]]+)""",
        re.IGNORECASE,
    ),
]


def redact(text: str, known: Iterable[str] = ()) -> str:
    """The text with every known secret, and everything shaped like one, replaced by [redacted]."""
    for secret in sorted(set(known), key=len, reverse=True):
        text = text.replace(secret, MASK)
    for shape in _SHAPES:
        text = shape.sub(rf"\1{MASK}", text)
    return text


def secrets_in_dsn(dsn: str) -> set[str]:
    """A DSN itself and its password, as written and decoded; URL or `key=value` form."""
    password = urlsplit(dsn).password if "://" in dsn else None
    if password is None:
        found = re.search(r"password\s*=\s*(?:'([^']*)'|(\S+))", dsn)
        password = (found[1] or found[2]) if found else None
    return {dsn} | ({password, unquote(password)} if password else set())
