"""The online server: TorchServe, java started directly, models from the model store; and the shipper of answers."""

import http.client
import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from infra.local import postgres
from infra.local.home import Home, inherited_environment
from infra.local.part import Part, Step, answers, status
from pipeline.settings import REPOSITORY


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
    return postgres.dsn(home.ports["postgres"], "warehouse", "online", home.secrets["online"])


def _get(port: int, path: str) -> object:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _all_ready(port: int) -> bool:
    """Whether every version that is loaded has a worker: /ping says healthy without any."""
    listed = _get(port, "/models?limit=1000")
    if not isinstance(listed, dict):
        return False
    described = [_get(port, f"/models/{model['modelName']}/all") for model in listed["models"]]
    return all(
        isinstance(versions, list)
        and all(any(worker["status"] == "READY" for worker in version["workers"]) for version in versions)
        for versions in described
    )


def _is_held(lock: Path) -> bool:
    """Whether a process has a lock: its file outlives whoever had it."""
    from serving.prediction_log import is_over  # noqa: PLC0415  # brings pyarrow, which other commands do without

    return lock.exists() and not is_over(lock)


def parts(home: Home, mark: Callable[[str], dict[str, str]]) -> list[Part | Step]:
    """The server and the shipper of this home."""
    folder = _folder(home)
    shared = {
        **inherited_environment(),
        "WINDSOCK_MODEL_STORE": str(folder / "store"),
        "WINDSOCK_SPOOL": str(folder / "spool"),
        "WINDSOCK_ONLINE_DSN": online_dsn(home),
        "PYTHONPATH": str(REPOSITORY),
    }
    addresses = [f"--{name}={home.url(port)}" for name, port in _ADDRESSES.items()]
    inference, management = home.ports["inference"], home.ports["management"]
    return [
        Part(
            name="torchserve",
            command=(sys.executable, "-m", "serving.launch", f"--work={folder / 'work'}", *addresses),
            environment={**shared, **mark("torchserve")},
            directory=folder,
            address=home.url("inference"),
            healthy=lambda: answers(inference, "/ping") and _all_ready(management),
            lives=lambda: status(inference, "/ping") is not None,  # 500 is of one version: no reason to end the others
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
            healthy=lambda: _is_held(folder / "spool" / "shipper.lock"),
            needs=("warehouse",),
            stop_signal=signal.SIGTERM,
        ),
    ]


_ADDRESSES = {"inference": "inference", "management": "management", "metrics": "inference_metrics"}
