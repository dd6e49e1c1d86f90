"""The gateway in front of the online server: HAProxy, from Debian's package where the system has none."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from adapters.gateway import set_client
from infra.local import system_programs
from infra.local.home import Home
from infra.local.part import Part, SetUpStep, fetch_status, is_answered_ok, unprivileged_account
from pipeline.settings import REPOSITORY

CONFIGURATION = REPOSITORY / "infra" / "gateway" / "haproxy.cfg"
CLIENT = "windsock"  # whom the stack's own key belongs to
_ADMIN = "admin.sock"
_PASSED = ("GATEWAY_RATE", "GATEWAY_BODY_BYTES", "GATEWAY_QUEUE", "GATEWAY_SERVER_CONNECTIONS", "GATEWAY_THREADS")


def fetch_haproxy(home: Home) -> str | None:
    """Have the program, before the stack is planned. Returns why the gateway is left out, if it is."""
    return system_programs.fetch_program("haproxy", home.folder, probe="-v")


def gateway_variables(home: Home) -> Mapping[str, str]:
    """What a process needs to use the gateway of a stack that has one."""
    return {
        "WINDSOCK_GATEWAY_URL": home.url("gateway"),
        "WINDSOCK_GATEWAY_ADMIN": f"unix@{maps_folder(home) / _ADMIN}",
        "WINDSOCK_GATEWAY_MAPS": str(maps_folder(home)),
        "WINDSOCK_GATEWAY_KEY": home.secrets["gateway"],
    }


def maps_folder(home: Home) -> Path:
    """The folder of the gateway's maps."""
    return home.folder / "gateway"


def gateway_settings(home: Home) -> dict[str, str]:
    """What the configuration reads from the environment; the limits may be set from outside."""
    account = unprivileged_account()
    rights = {} if account is None else {"GATEWAY_UID": str(account.pw_uid), "GATEWAY_GID": str(account.pw_gid)}
    return {
        "GATEWAY_ADDRESS": f"127.0.0.1:{home.ports['gateway']}",
        "GATEWAY_ADMIN": f"unix@{_ADMIN}",  # in the folder it runs in: a socket's path has room for 107 bytes
        "GATEWAY_METRICS": f"127.0.0.1:{home.ports['gateway_metrics']}",
        "GATEWAY_SERVER": f"127.0.0.1:{home.ports['inference']}",
        "GATEWAY_MAPS": str(maps_folder(home)),
        **rights,
        **{name: os.environ[name] for name in _PASSED if name in os.environ},
    }


def plan_gateway(home: Home, mark: Callable[[str], dict[str, str]]) -> list[Part | SetUpStep]:
    """The gateway, or nothing where there is no program for it. It starts without TorchServe and waits for it."""
    if (program := system_programs.find_program("haproxy", home.folder)) is None:
        return []
    return [
        Part(
            name="gateway",
            command=(program.path, "-db", "-f", str(CONFIGURATION)),
            environment={**program.environment, **gateway_settings(home), **mark("gateway")},
            directory=maps_folder(home),
            address=home.url("gateway"),
            is_healthy=lambda: is_answered_ok(home.ports["gateway"], "/healthz"),
            is_alive=lambda: fetch_status(home.ports["gateway"], "/healthz") is not None,
            prepare=lambda: set_client(maps_folder(home), CLIENT, home.secrets["gateway"]),
            port=home.ports["gateway"],
            stop_signal=signal.SIGUSR1,  # lets running requests end
            stop_seconds=6,
            start_seconds=20,
        )
    ]
