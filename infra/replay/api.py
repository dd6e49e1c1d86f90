"""The few calls of Airflow's REST API that the replay makes, repeated while the server is being restarted."""

import json
from datetime import datetime
from typing import Any
from urllib.parse import quote

from adapters.errors import Unavailable
from adapters.http import HttpReply, send_request
from adapters.retrying import retry_call

_PAUSE_SECONDS = 0.5
_ACTIVE = ("queued", "running", "deferred", "scheduled")


class AirflowError(RuntimeError):
    """Airflow refused a call, or was out of reach for longer than we wait."""


class AirflowApi:
    """A logged-in session against one api-server.

    Raises:
        AirflowError: from every call, when the server refuses it, or cannot be reached for `patience_seconds`.
    """

    def __init__(self, base_url: str, *, user: str, password: str, patience_seconds: float = 180) -> None:
        self._base_url = base_url.rstrip("/")
        self._credentials = {"username": user, "password": password}
        self._patience_seconds = patience_seconds
        self._token: str | None = None

    def unpause(self, dag_id: str) -> None:
        """Let a DAG's runs start."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def list_dag_ids(self) -> list[str]:
        """Every DAG the dag-processor has parsed."""
        return sorted(dag["dag_id"] for dag in self._call("GET", "/api/v2/dags?limit=200")["dags"])

    def list_import_errors(self) -> list[str]:
        """DAG files that do not parse, with the last line of why."""
        errors = self._call("GET", "/api/v2/importErrors")["import_errors"]
        return [f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors]

    def backfill(self, dag_id: str, first: datetime, last: datetime, *, at_once: int) -> None:
        """Create runs for every partition that starts in [first, last]; existing successful ones are left alone.

        While an earlier backfill of this DAG is open, Airflow takes no other: it is the one that is asked for.
        """
        body = {
            "dag_id": dag_id,
            "from_date": first.isoformat(),
            "to_date": last.isoformat(),
            "max_active_runs": at_once,
            "reprocess_behavior": "failed",
        }
        self._call("POST", "/api/v2/backfills", body, accept=(409,))

    def trigger(
        self, dag_id: str, run_id: str, *, conf: dict[str, Any] | None = None, partition_key: str | None = None
    ) -> None:
        """Start a run; a run of this id that exists already is the same run, so asking twice starts one."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}, "partition_key": partition_key}
        self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body, accept=(409,))

    def list_runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The latest runs of a DAG, newest first."""
        return list(self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100&order_by=-run_after")["dag_runs"])

    def find_run_state(self, dag_id: str, run_id: str) -> str | None:
        """The state of one run; None where there is no such run."""
        run = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}", accept=(404,))
        return str(run["state"]) if run.get("state") else None

    def count_active_runs(self, dag_id: str) -> int:
        """How many runs of a DAG have not ended."""
        return sum(run["state"] in _ACTIVE for run in self.list_runs(dag_id))

    def list_failed_tasks(self, dag_id: str, run_id: str) -> list[str]:
        """The tasks of a run that failed."""
        tasks = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return [task["task_id"] for task in tasks if task["state"] == "failed"]

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, accept: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        try:
            reply = retry_call(
                lambda: self._call_once(method, path, body),
                errors=Unavailable,
                within_seconds=self._patience_seconds,
                pause_seconds=_PAUSE_SECONDS,
            )
        except Unavailable as error:
            raise AirflowError(
                f"{method} {path}: {error}, for {self._patience_seconds:.0f} s; see `make status`"
            ) from error
        if reply.status >= 400 and reply.status not in accept:
            raise AirflowError(f"Airflow refused {method} {path}: {reply.status} {reply.text[:500]}")
        return dict(reply.json()) if reply.content else {}

    def _call_once(self, method: str, path: str, body: dict[str, Any] | None) -> HttpReply:
        """The answer that stands, logged in; Unavailable where the next call may get another."""
        self._token = self._token or self._log_in()
        reply = self._send(method, path, body, {"Authorization": f"Bearer {self._token}"})
        if reply.status == 401:
            self._token = None  # it has expired
        if reply.status == 401 or reply.status >= 500:
            raise Unavailable(f"{reply.status} {reply.text[:500]}")
        return reply

    def _log_in(self) -> str:
        reply = self._send("POST", "/auth/token", self._credentials, {})
        if reply.status >= 500:
            raise Unavailable(f"the login was answered {reply.status}")
        if reply.status >= 400:
            raise AirflowError(f"Airflow refused the login of {self._credentials['username']}: {reply.status}")
        return str(reply.json()["access_token"])

    def _send(self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> HttpReply:
        return send_request(
            method,
            self._base_url + path,
            server="Airflow",
            content=None if body is None else json.dumps(body).encode(),
            headers=headers | {"Content-Type": "application/json"},
        )
