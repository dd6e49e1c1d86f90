"""The gateway as the rollout sees it: which version answers whom, what was answered, and a client's way in."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapters.gateway_maps import Admin, change_map, change_map_file, create_maps, read_map
from adapters.http import send_request

WHOLE = 10_000  # a share of 1 in the gateway's units
_CALL_SECONDS = 60.0
OPENAPI_BYTES = 100_000  # what fits into one of the gateway's buffers


@dataclass(frozen=True)
class Route:
    """Which versions answer, and the share of entities that the candidate gets."""

    stable: str | None
    candidate: str | None = None
    share: float = 0.0


@dataclass(frozen=True)
class GatewayRecord:
    """One request that was meant for a version.

    `status` is what the client saw, -1 where it saw nothing; `retries` and `static` tell what it was spared.
    `milliseconds` is from the request's last byte to the answer's first, 0 where none began.
    `cause` tells why no version is to blame: "client" when the client went away before its request or an answer was
    there, "overload" when the gateway turned the request away; "" when the version answered or failed.
    """

    request_id: str
    use_case: str
    client: str
    slot: str
    version: str | None
    status: int
    milliseconds: float
    at: datetime
    retries: int = 0
    static: bool = False
    verb: str = "predict"  # or "explain"
    is_list: bool = False
    cause: str = ""


@dataclass(frozen=True)
class GatewayReply:
    """What a client gets: header names in lower case, JSON already read."""

    status: int
    headers: Mapping[str, str]
    body: Any = field(repr=False)


def digest_key(key: str) -> str:
    """What is stored of a client's key."""
    return hashlib.sha256(key.encode()).hexdigest()


def set_client(maps: Path, name: str, key: str) -> None:
    """Make this the only key of a client, in the file that the gateway reads at start."""
    create_maps(maps)
    change_map_file(maps, "keys", lambda entries: _replace_client(entries, name, key))


def _replace_client(entries: dict[str, str], name: str, key: str | None) -> None:
    for known in [known for known, client in entries.items() if client == name]:
        del entries[known]
    if key is not None:
        entries[digest_key(key)] = name


def _set_entry(entries: dict[str, str], key: str, value: str | None) -> None:
    """Give an entry this value, or, without one, take it away."""
    if value is None:
        entries.pop(key, None)
    else:
        entries[key] = value


def parse_record(line: str) -> GatewayRecord | None:
    """A line of the gateway's log; None for anything else, such as its notes about servers."""
    words = line.split()
    if len(words) != 15 or words[0] != "windsock":
        return None
    unanswered = words[2] == "-"
    try:
        at, took = int(words[1]), 0 if unanswered else int(words[2])
        status, retries = int(words[8]), int(words[9].lstrip("+"))
    except ValueError:
        return None
    return GatewayRecord(
        request_id=words[3],
        use_case=words[4],
        client=words[5],
        slot=words[6],
        version=None if words[7] == "-" else words[7],
        status=status,
        milliseconds=took / 1000,
        at=datetime.fromtimestamp(at / 1e6, UTC),
        retries=retries,
        static=words[10] == "1",
        verb=words[11],
        is_list=words[12] == "1",
        cause=_cause(words[13], words[14], unanswered=unanswered),
    )


def _cause(named: str, ended: str, *, unanswered: bool) -> str:
    """`ended` is HAProxy's word for how it ended: its first letter is a C or c where the client did it.

    A client that goes away once there is an answer says nothing of that answer, which counts as any other.
    """
    if unanswered and ended[0] in "Cc":
        return "client"
    return "" if named == "-" else named


class Gateway:
    """One gateway: its address, its admin socket (see Admin), its folder of maps and one client's key."""

    def __init__(self, url: str, admin: str, maps: Path, key: str) -> None:
        self.url = url.rstrip("/")
        self._admin = Admin(admin)
        self._maps = maps
        self._key = key

    def route(self, use_case: str) -> Route:
        """What the gateway was last told about a use case."""
        versions, weights = (read_map(self._maps / f"{name}.map") for name in ("versions", "weights"))
        return Route(
            versions.get(f"{use_case}.stable"),
            versions.get(f"{use_case}.candidate"),
            int(weights.get(use_case, 0)) / WHOLE,
        )

    def set_route(self, use_case: str, route: Route) -> None:
        """Send a use case's requests there from now on; running requests end where they are.

        Raises:
            ValueError: for a share that is none, or one without a candidate.
            ConnectionError: when the gateway does not answer; it will know the route once it starts again.
        """
        if not 0 <= route.share <= 1:
            raise ValueError(f"expected a share from 0 to 1, got {route.share}")
        if route.share and route.candidate is None:
            raise ValueError(f"expected a candidate for a share of {route.share}, got none")

        def set_versions(entries: dict[str, str]) -> None:
            for slot, version in (("stable", route.stable), ("candidate", route.candidate)):
                _set_entry(entries, f"{use_case}.{slot}", None if version is None else _require_word(version))

        weight = str(round(route.share * WHOLE))
        # Between the two changes no version may get more than it has or is to have.
        both = [("versions", set_versions), ("weights", lambda entries: _set_entry(entries, use_case, weight))]
        if route.candidate is not None and route.share < self.route(use_case).share:
            both.reverse()
        for name, edit in both:
            change_map(self._maps, self._admin, name, edit)

    def set_fallback(self, use_case: str, probability: float | None) -> None:
        """The static answer while no model can answer; None takes it away."""
        if probability is not None and not 0 <= probability <= 1:
            raise ValueError(f"expected a probability from 0 to 1, got {probability}")
        answer = None if probability is None else f"{probability:.6f}"
        change_map(self._maps, self._admin, "fallback", lambda entries: _set_entry(entries, use_case, answer))

    def publish_openapi(self, use_case: str, text: str) -> None:
        """Serve this description at /v1/<use case>/openapi.json."""
        line = json.dumps(json.loads(text), separators=(",", ":"))
        if len(line) > OPENAPI_BYTES:
            raise ValueError(f"expected a description of at most {OPENAPI_BYTES} bytes, got {len(line)}")
        change_map(self._maps, self._admin, "openapi", lambda entries: _set_entry(entries, use_case, line))

    def add_client(self, name: str) -> str:
        """A new key for a client; its older ones hold no longer. Only the key's digest is kept."""
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
            raise ValueError(f"expected a client's name of lower-case letters, digits and hyphens, got {name!r}")
        key = secrets.token_urlsafe(32)
        change_map(self._maps, self._admin, "keys", lambda entries: _replace_client(entries, name, key))
        return key

    def remove_client(self, name: str) -> None:
        """This client's keys hold no longer."""
        change_map(self._maps, self._admin, "keys", lambda entries: _replace_client(entries, name, None))

    def records(self, use_case: str, since: datetime) -> list[GatewayRecord]:
        """What was asked since then, in the order of the answers; as far back as the gateway's memory reaches.

        The memory holds about 200,000 answers and ends with the process.
        """
        if since.tzinfo is None:
            raise ValueError("expected a time with a zone")
        start = since.timestamp() * 1e6
        lines = self._admin.send_command("show events answers").splitlines()
        late = (line for line in lines if line.startswith("windsock ") and _read_microseconds(line) >= start)
        return [record for record in map(parse_record, late) if record and record.use_case == use_case]

    def ask(
        self,
        use_case: str,
        events: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        key: str | None = None,
        entity: str | None = None,
        request_id: str | None = None,
        explain: bool = False,
    ) -> GatewayReply:
        """Ask as a client would.

        Raises:
            ConnectionError: when the gateway does not answer.
        """
        headers = {
            "Authorization": f"Bearer {key or self._key}",
            "Content-Type": "application/json",
            **({"X-Entity-Id": entity} if entity else {}),
            **({"X-Request-Id": request_id} if request_id else {}),
        }
        path = f"/v1/{use_case}/{'explain' if explain else 'predict'}"
        return self._send("POST", path, json.dumps(events, default=str).encode(), headers)

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> GatewayReply:
        reply = send_request(
            method,
            self.url + path,
            server="the gateway",
            content=body,
            headers=headers,
            timeout_seconds=_CALL_SECONDS,
        )
        return GatewayReply(reply.status, reply.headers, reply.json() if reply.is_json else reply.text)


def _read_microseconds(line: str) -> float:
    digits = line.split(" ", 2)[1]
    return float(digits) if digits.isdecimal() else -1


def _require_word(version: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", version):
        raise ValueError(f"expected a version of letters, digits, dots and hyphens, got {version!r}")
    return version
