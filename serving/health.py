"""Whether every deployed model answers a real event, sent as a client would: `python -m serving.health`.

With the word `shipper`: whether answers reach the warehouse.

The event is the example of the model's own schema. Its answer is logged under one request id a version, which the
warehouse keeps once, in the slot "health", so that no figure about clients counts it. It loads the standard library
only: this runs every few seconds.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from serving.locks import is_held

SECONDS = 8.0  # for one answer; a server without a live worker would keep us waiting for minutes
_BIND, _STORE, _SPOOL = "WINDSOCK_INFERENCE_BIND", "WINDSOCK_MODEL_STORE", "WINDSOCK_SPOOL"
LATE_SECONDS = 60.0  # a complete segment is shipped within a second


def server_address() -> str:
    """Where the server listens, as seen from its own machine."""
    return os.environ.get(_BIND, "http://127.0.0.1:8085").replace("0.0.0.0", "127.0.0.1")  # noqa: S104  # read, not bound


def list_default_versions(store: Path) -> list[tuple[str, str]]:
    """(use case, version) of what is deployed and answers by default."""
    path = store / "deployed.json"
    listed = json.loads(path.read_text())["versions"] if path.exists() else []
    return [(entry["use_case"], entry["version"]) for entry in listed if entry["default"]]


def _request_json(url: str, body: bytes | None, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url, body, headers)  # noqa: S310  # our own server, by http
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        return json.load(answer)


def find_model_problem(server: str, use_case: str, version: str) -> str | None:
    """What is wrong with one model's answer; None when it answered."""
    url = f"{server}/predictions/{use_case}/{version}"
    headers = {
        "Content-Type": "application/json",
        "X-Request-Id": f"health-{version}",
        "X-Windsock-Slot": "health",
        "X-Windsock-Client": "health",
    }
    try:
        fields = _request_json(url, None, {"X-Windsock-Ask": "openapi"})["components"]["schemas"]["Event"]["properties"]
        event = {name: field["examples"][0] for name, field in fields.items()}
        answer = _request_json(url, json.dumps(event).encode(), headers)
    except (OSError, ValueError, KeyError) as error:  # an HTTP error is an OSError
        return f"{use_case} {version}: {error!r}"
    score = answer.get("probability", answer.get("value"))
    return None if isinstance(score, float) else f"{use_case} {version}: no number in {answer}"


def find_server_problem(server: str) -> str | None:
    """What is wrong with a server without models; its answer to /ping may be 500, which is an answer."""
    try:
        with urllib.request.urlopen(f"{server}/ping", timeout=SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return f"{server} does not answer: {error}"


def find_shipping_problem(spool: Path) -> str | None:
    """What is wrong with the shipper of a spool; None when it has the spool and nothing waits for long."""
    lock = spool / "shipper.lock"
    if not lock.exists() or not is_held(lock):
        return f"no shipper has {spool}"
    late = [path.name for path in spool.glob("*.done") if time.time() - path.stat().st_mtime > LATE_SECONDS]
    return f"{len(late)} segments wait for more than {LATE_SECONDS:.0f} s: {min(late)}" if late else None


def list_serving_problems() -> list[str | None]:
    """What is wrong with each deployed model, or with the server where there is none."""
    server, store = server_address(), Path(os.environ[_STORE])
    deployed = list_default_versions(store)
    return [find_model_problem(server, *model) for model in deployed] if deployed else [find_server_problem(server)]


def main(words: list[str]) -> int:
    """0 when all is well; else 1, and what is wrong on standard error."""
    checks = [find_shipping_problem(Path(os.environ[_SPOOL]))] if words == ["shipper"] else list_serving_problems()
    problems = [text for text in checks if text is not None]
    for text in problems:
        print(text, file=sys.stderr)  # the engine keeps it with the container's health
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
