"""Starting the DAGs' runs and waiting for what they bring about: conditions in durable state, never a clock."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from time import monotonic
from typing import Any

from adapters.retrying import wait_until
from infra.replay.api import AirflowApi
from infra.replay.progress import ReplayProgress
from infra.replay.state import ReplayError, ReplayState

POLL_SECONDS = 0.5
STAGE_LIMIT = timedelta(minutes=30)
IDLE_SECONDS = 10  # a step with work and without a run for this long has missed its wake-up
MAX_ATTEMPTS = 5


class Runs:
    """The runs of one use case's DAGs."""

    def __init__(self, *, api: AirflowApi, state: ReplayState, progress: ReplayProgress) -> None:
        self.api, self.state, self.progress = api, state, progress

    def dag(self, verb: str) -> str:
        """The id of a verb's DAG."""
        return f"{self.state.use_case.name}.{verb}"

    def wait_for(self, label: str, what: str | Callable[[], str], done: Callable[[], bool]) -> None:
        """Wait until `done`; `what` says what for, in words that may change meanwhile.

        Raises:
            ReplayError: when it takes longer than a stage may.
        """
        words = ""

        def is_done() -> bool:
            nonlocal words
            if done():
                return True
            words = what() if callable(what) else what
            self.progress.waiting(label, f"waiting for {words}")
            return False

        if not wait_until(is_done, within_seconds=STAGE_LIMIT.total_seconds(), every_seconds=POLL_SECONDS):
            raise ReplayError(f"{label}: waited {STAGE_LIMIT} for {words}; look at the Airflow page")

    def finish_work(
        self,
        label: str,
        verb: str,
        what: str | Callable[[], str],
        done: Callable[[], bool],
        *,
        wake: Callable[[], None] | None = None,
    ) -> None:
        """Wait until `done`; where work is left and no run of the verb is under way, wake it up, a few times."""
        attempts = 0
        idle_since: float | None = None

        def is_settled() -> bool:
            nonlocal attempts, idle_since
            if done():
                return True
            if self.api.count_active_runs(self.dag(verb)):
                idle_since = None
            elif idle_since is None:
                idle_since = monotonic()
            elif monotonic() - idle_since > IDLE_SECONDS:
                attempts, idle_since = attempts + 1, None
                self._raise_if_stuck(label, verb, attempts)
                (wake or partial(self._wake, verb))()
            return False

        self.wait_for(label, what, is_settled)

    def run_to_end(
        self,
        label: str,
        verb: str,
        run_id: str,
        *,
        conf: dict[str, Any] | None = None,
        partition_key: str | None = None,
    ) -> None:
        """Start a run under a deterministic id and wait for its success.

        A run of that id that failed, now or in an earlier replay, is followed by one of the next id. One that is
        under way or succeeded already is that run.
        """
        names = (run_id if number == 1 else f"{run_id}__{number}" for number in count(1))
        unfailed = (name for name in names if self._state_of(verb, name) != "failed")
        for attempt, name in enumerate(unfailed, start=1):
            if self._state_of(verb, name) is None:
                self.api.trigger(self.dag(verb), name, conf=conf, partition_key=partition_key)
            self.wait_for(label, f"{verb} {name}", partial(self._ended, verb, name))
            if self._state_of(verb, name) == "success":
                return
            self._raise_if_stuck(label, verb, attempt)

    def _wake(self, verb: str) -> None:
        self.api.trigger(self.dag(verb), f"wake__{datetime.now(UTC):%Y%m%dT%H%M%S}")

    def _ended(self, verb: str, run_id: str) -> bool:
        return self._state_of(verb, run_id) in ("success", "failed")

    def _state_of(self, verb: str, run_id: str) -> str | None:
        return self.api.find_run_state(self.dag(verb), run_id)

    def _raise_if_stuck(self, label: str, verb: str, attempts: int) -> None:
        if verb == "ingest" and (problem := self.state.describe_blocked()):
            raise ReplayError(f"{label}: {problem}")
        if attempts < MAX_ATTEMPTS:
            return
        failed = next(
            (run["dag_run_id"] for run in self.api.list_runs(self.dag(verb)) if run["state"] == "failed"), None
        )
        tasks = self.api.list_failed_tasks(self.dag(verb), failed) if failed else []
        where = f"run {failed} failed in {', '.join(tasks)}" if failed else "no run failed"
        raise ReplayError(f"{label}: {self.dag(verb)} did not finish in {attempts} attempts ({where}); see its log")
