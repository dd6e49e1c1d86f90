"""The online server: TorchServe, java started directly, models from the model store; and the shipper of answers."""

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from adapters.errors import Unavailable
from adapters.http import send_request
from infra.local import postgres
from infra.local.home import Home, inherited_environment
from infra.local.part import Part, SetUpStep, fetch_status, is_answered_ok
from pipeline.settings import REPOSITORY
from serving.locks import is_held


def _folder(home: Home) -> Path:
    return home.folder / "torchserve"


def endpoint_variables(home: Home) -> Mapping[str, str]:
    """What a process needs to use the online server."""
    return {
        "WINDSOCK_INFERENCE_URL": home.url("inference"),
        "WINDSOCK_MANAGEMENT_URL": home.url("management"),
        "WINDSOCK_MODEL_STORE": str(_folder(home) / "store"),
    }


def online_dsn(home: Home) -> str:
    """The warehouse, opened by the role that may only read features and write answers."""
    return postgres.postgres_dsn(home.ports["postgres"], "warehouse", "online", home.secrets["online"])


def _fetch_json(port: int, path: str) -> object:
    try:
        reply = send_request("GET", f"http://127.0.0.1:{port}{path}", server="TorchServe", timeout_seconds=5)
        return reply.json() if reply.status == 200 else None
    except (Unavailable, ValueError):
        return None


def _are_all_ready(port: int) -> bool:
    """Whether every version that is loaded has a worker: /ping says healthy without any."""
    models = _fetch_json(port, "/models?limit=1000")
    if not isinstance(models, dict):
        return False
    described = [_fetch_json(port, f"/models/{model['modelName']}/all") for model in models["models"]]
    return all(
        isinstance(versions, list)
        and all(any(worker["status"] == "READY" for worker in version["workers"]) for version in versions)
        for versions in described
    )


def plan_torchserve(home: Home, mark: Callable[[str], dict[str, str]]) -> list[Part | SetUpStep]:
    """The server and the shipper of this home."""
    folder = _folder(home)
    shipping = folder / "spool" / "shipper.lock"
    shared = {
        **inherited_environment(),
        "WINDSOCK_MODEL_STORE": str(folder / "store"),
        "WINDSOCK_SPOOL": str(folder / "spool"),
        "WINDSOCK_ONLINE_DSN": online_dsn(home),
        "PYTHONPATH": str(REPOSITORY),
    }
    inference, management = home.ports["inference"], home.ports["management"]
    return [
        Part(
            name="torchserve",
            command=(
                *(sys.executable, "-m", "serving.launch", f"--work={folder / 'work'}"),
                *(f"--{name}={home.url(port)}" for name, port in _ADDRESSES.items()),
            ),
            environment={**shared, **mark("torchserve")},
            directory=folder,
            address=home.url("inference"),
            is_healthy=lambda: is_answered_ok(inference, "/ping") and _are_all_ready(management),
            # 500 is the answer of one version that failed: no reason to end the others.
            is_alive=lambda: fetch_status(inference, "/ping") is not None,
            needs=("warehouse",),
            port=inference,
            stop_signal=signal.SIGTERM,
            stop_seconds=10,
            start_seconds=120,
        ),
        Part(
            name="shipper",
            command=(sys.executable, "-m", "serving.shipper"),
            environment={**shared, **mark("shipper")},
            directory=folder,
            address=str(folder / "spool"),
            is_healthy=lambda: shipping.exists() and is_held(shipping),
            needs=("warehouse",),
            stop_signal=signal.SIGTERM,
        ),
    ]


_ADDRESSES = {"inference": "inference", "management": "management", "metrics": "inference_metrics"}
