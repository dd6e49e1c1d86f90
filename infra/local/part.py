"""What a part of the stack is: a server process, or a step that runs once, and what it waits for."""

import http.client
import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def nothing() -> None:
    """The preparation of a part that needs none."""


def only_when_healthy() -> bool:
    """The sign of life of a part that gives none beside its health."""
    return False


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user a part runs as, when it may not run as root."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A server: started once the parts it needs are up, healthy when a real check says so."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    directory: Path
    address: str
    healthy: Callable[[], bool]
    lives: Callable[[], bool] = only_when_healthy  # asked when it is not; False: its own silence, a new start may help
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] = nothing
    provision: Callable[[], None] = nothing  # once healthy, before others may rely on it
    account: Account | None = None
    port: int | None = None
    stop_signal: int
    stop_seconds: float = 20
    start_seconds: float = 90


@dataclass(frozen=True, kw_only=True)
class Step:
    """Work done once per `up`, after the parts it needs and before those that need it."""

    name: str
    run: Callable[[], None]
    needs: tuple[str, ...]


def unprivileged() -> Account | None:
    """The account `nobody` when this process is root, else None: an ordinary user runs everything as itself."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def closed_folder(path: Path) -> Path | None:
    """The first folder on the way to `path` that users other than its owner may not pass through."""
    resolved = path.resolve()
    return next(
        (folder for folder in (*reversed(resolved.parents), resolved) if not folder.stat().st_mode & 0o001), None
    )


def answers(port: int, path: str, *, seconds: float = 5) -> bool:
    """Whether a server on loopback answers a GET with 200."""
    return status(port, path, seconds=seconds) == 200


def status(port: int, path: str, *, seconds: float = 5) -> int | None:
    """How a server on loopback answers a GET; None where it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
