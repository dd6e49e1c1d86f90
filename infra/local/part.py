"""What a part of the stack is: a server process, or a step that runs once, and what it waits for."""

import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import Unavailable
from adapters.http import send_request


@dataclass(frozen=True, kw_only=True)
class Part:
    """A server: started once the parts it needs are up, healthy when a real check says so."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    directory: Path
    address: str
    is_healthy: Callable[[], bool]
    # Checked when it is not healthy: a part that gives no sign of life is started again.
    is_alive: Callable[[], bool] = lambda: False
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] = lambda: None
    provision: Callable[[], None] = lambda: None  # once healthy, before others may rely on it
    account: pwd.struct_passwd | None = None  # the user it runs as, where it may not run as root
    port: int | None = None
    stop_signal: int
    stop_seconds: float = 20
    start_seconds: float = 90


@dataclass(frozen=True, kw_only=True)
class SetUpStep:
    """Work done once per `up`, after the parts it needs and before those that need it."""

    name: str
    run: Callable[[], None]
    needs: tuple[str, ...]


def unprivileged_account() -> pwd.struct_passwd | None:
    """The account `nobody` when this process is root, else None: an ordinary user runs everything as itself."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def run_as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """What `subprocess` is told so that a process runs as this account; None: as we do."""
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def find_closed_folder(path: Path) -> Path | None:
    """The first folder on the way to `path` that users other than its owner may not pass through."""
    resolved = path.resolve()
    return next(
        (folder for folder in (*reversed(resolved.parents), resolved) if not folder.stat().st_mode & 0o001), None
    )


def is_answered_ok(port: int, path: str, *, seconds: float = 5) -> bool:
    """Whether a server on loopback answers a GET with 200."""
    return fetch_status(port, path, seconds=seconds) == 200


def fetch_status(port: int, path: str, *, seconds: float = 5) -> int | None:
    """The status with which a server on loopback answers a GET; None where it does not answer."""
    try:
        return send_request("GET", f"http://127.0.0.1:{port}{path}", server="a part", timeout_seconds=seconds).status
    except Unavailable:
        return None
