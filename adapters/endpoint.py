"""The online server: versions beside each other, questions. All that knows TorchServe's API."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from adapters.http import HttpReply, require_success, send_request
from adapters.model_store import Archive, Entry, ModelStore
from adapters.retrying import wait_until

_CALL_SECONDS = 30.0
_READY_SECONDS = 120.0
_DRAIN_SECONDS = 10.0
_SERVER = "the online server"
_BATCH_SECONDS = 2.0  # no batch takes longer: the store has `store_timeout_ms`, the rest is milliseconds


@dataclass(frozen=True)
class Endpoint:
    """A TorchServe server and its model store."""

    inference_url: str
    management_url: str
    store: ModelStore
    ready_seconds: float = _READY_SECONDS

    def register(self, archive: Archive, *, batch_size: int, max_batch_delay_ms: int, workers: int) -> None:
        """Bring a version up beside the running ones, which do not notice; returns when a worker is ready.

        Raises:
            ValueError: the file is not the archive that was made, the version runs from another archive, or its worker
                does not come up, and then its archive is removed; the running versions are as they were.
            Unavailable: the server did not answer.
        """
        archive.verify()
        entry: Entry = {
            "use_case": archive.use_case,
            "version": archive.version,
            "file": archive.path.name,
            "sha256": archive.sha256,
            "batch_size": batch_size,
            "max_batch_delay_ms": max_batch_delay_ms,
            "workers": workers,
        }
        known = self.store.entry(archive.use_case, archive.version)
        if known is not None and known["sha256"] != archive.sha256:
            raise ValueError(
                f"{archive.use_case} {archive.version} is deployed from another archive ({known['file']}): retire it "
                "first, or deploy under a new version"
            )
        loaded = self.versions(archive.use_case)
        try:
            if known is None and archive.version in loaded:
                self._unload_unknown(archive.use_case, archive.version)
            if known is None or not loaded.get(archive.version, False):
                self._bring_up(entry, is_known=known is not None)
        except ValueError:
            self.store.sweep(archive.use_case, archive.version)
            raise
        self.store.remember(entry)
        self.store.sweep(archive.use_case, archive.version)

    def versions(self, use_case: str) -> dict[str, bool]:
        """The versions the server knows, and whether one of their workers is ready."""
        answer = self._manage("GET", f"/models/{quote(use_case)}/all")
        if answer.status == 404:
            return {}
        return {
            model["modelVersion"]: any(worker["status"] == "READY" for worker in model["workers"])
            for model in require_success(answer, f"versions of {use_case}").json()
        }

    def ask(
        self,
        use_case: str,
        version: str,
        events: list[dict[str, Any]],
        *,
        request_id: str,
        slot: str = "direct",
        explain: bool = False,
        timeout_seconds: float = _CALL_SECONDS,
    ) -> list[dict[str, Any]]:
        """One answer an event.

        Raises:
            ValueError: the server refused the events.
            Unavailable: it did not answer.
        """
        what = "explanations" if explain else "predictions"
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id, "X-Windsock-Slot": slot}
        reply = send_request(
            "POST",
            f"{self.inference_url}/{what}/{quote(use_case)}/{quote(version)}",
            server=_SERVER,
            content=json.dumps(events).encode(),
            headers=headers,
            timeout_seconds=timeout_seconds,
        )
        return list(require_success(reply, f"{use_case} {version}").json())

    def retire(self, use_case: str, version: str) -> None:
        """Take a version out, and its archive; nothing happens when it is not there.

        Nobody may ask it by its name any more: the server forgets the requests of a version that it takes out, and
        their clients would wait until they give up.

        Raises:
            ValueError: it is the default among several.
        """
        self._drain(use_case, version)
        answer = self._manage("DELETE", f"/models/{quote(use_case)}/{quote(version)}")
        if answer.status != 404:
            require_success(answer, f"retiring {use_case} {version}")
        self.store.forget(use_case, version)

    def make_default(self, use_case: str, version: str) -> None:
        """Let this version answer where none is named.

        Raises:
            ValueError: it is not there.
        """
        answer = self._manage("PUT", f"/models/{quote(use_case)}/{quote(version)}/set-default")
        require_success(answer, f"default of {use_case}")
        self.store.make_default(use_case, version)

    def _bring_up(self, entry: Entry, *, is_known: bool) -> None:
        use_case, version = entry["use_case"], entry["version"]
        refused = self.store.folder / f"refused-{use_case}-{version}.txt"
        refused.unlink(missing_ok=True)
        # Without workers, and these asked for afterwards: `synchronous=true` would stall other clients for seconds.
        options = {
            "url": entry["file"],
            "batch_size": entry["batch_size"],
            "initial_workers": 0,
            "max_batch_delay": entry["max_batch_delay_ms"],
        }
        answer = self._manage("POST", f"/models?{urlencode(options)}")
        if answer.status != 409 or not is_known:  # else it is there, this one, without a worker that is ready: a crash
            require_success(answer, f"registering {use_case} {version}")
        scale = urlencode({"min_worker": entry["workers"], "max_worker": entry["workers"]})
        path = f"/models/{quote(use_case)}/{quote(version)}"
        try:
            require_success(self._manage("PUT", f"{path}?{scale}"), f"workers of {use_case} {version}")
            self._await_ready(use_case, version, refused)
        except ValueError:
            self._manage("DELETE", path)
            raise

    def _unload_unknown(self, use_case: str, version: str) -> None:
        """Take out what somebody loaded who died before it was remembered: nobody knows which archive it was.

        Raises:
            ValueError: it is the default, and there is none to take its place.
        """
        for entry in self.store.entries():
            if entry["use_case"] == use_case and entry["default"]:  # which the server may not know to be it
                self.make_default(use_case, entry["version"])
        answer = self._manage("DELETE", f"/models/{quote(use_case)}/{quote(version)}")
        if answer.status != 404:
            require_success(answer, f"unloading {use_case} {version}, which is not in deployed.json")

    def _drain(self, use_case: str, version: str) -> None:
        """Wait until every request is answered: the queue is seen empty, and stays so for two batches' time."""
        queues: list[int] = []

        def is_drained() -> bool:
            reply = self._manage("GET", f"/models/{quote(use_case)}/{quote(version)}")
            if reply.status == 404:
                return True
            [model] = require_success(reply, f"queue of {use_case} {version}").json()
            queues.append(model["jobQueueStatus"]["pendingRequests"])
            return queues[-3:] == [0, 0, 0]

        # The server does not tell which requests its workers hold: those taken meanwhile are answered, too.
        wait_until(is_drained, within_seconds=_DRAIN_SECONDS, every_seconds=_BATCH_SECONDS)

    def _await_ready(self, use_case: str, version: str, refused: Path) -> None:
        def is_ready() -> bool:
            if self.versions(use_case).get(version, False):
                return True
            if refused.exists():
                raise ValueError(f"{use_case} {version} was refused by the server: {refused.read_text()}")
            return False

        if not wait_until(is_ready, within_seconds=self.ready_seconds):  # the server offers nothing to wait on
            raise ValueError(
                f"{use_case} {version} did not come up within {self.ready_seconds:.0f} s: "
                "the reason is in the log of the part `torchserve`"
            )

    def _manage(self, method: str, path: str) -> HttpReply:
        return send_request(method, self.management_url + path, server=_SERVER, timeout_seconds=_CALL_SECONDS)
