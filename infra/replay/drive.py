"""Drives the real scheduler through a year of data, week by week, waiting on durable state and never on a clock.

Where the state already says done, nothing is started: a replay that was stopped, or whose parts were killed, goes on
where it was. A step is woken up only where none of its runs is under way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from adapters.connect import Outside
from infra.replay import incident
from infra.replay.api import AirflowApi
from infra.replay.progress import Progress
from infra.replay.state import ReplayError, State
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks import build_features, monitor, promote, score

POLL_SECONDS = 0.5
STAGE_LIMIT = timedelta(minutes=30)
IDLE_SECONDS = 10  # a step with work and without a run for this long has missed its wake-up
MAX_ATTEMPTS = 5
VERBS = (
    "ingest",
    "build_features",
    "score",
    "monitor",
    "train",
    "retrain",
    "rollback",
    "replay_quarantine",
    "reconcile",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to replay: history up to `first_as_of` trains the first champion; then `weeks` partitions as if live."""

    first_as_of: datetime
    weeks: int
    incident_week: int | None  # 1-based; None: no incident


class Replay:
    """One replay of one use case against a running stack."""

    def __init__(
        self, *, use_case: UseCase, outside: Outside, api: AirflowApi, progress: Progress, folder: Path
    ) -> None:
        self.use_case, self.outside, self.api = use_case, outside, api
        self.progress, self.folder = progress, folder
        self.state = State(use_case=use_case, outside=outside)

    def run(self, plan: Plan) -> None:
        """History, first champion, then week by week.

        Raises:
            ReplayError: where a stage ends in failure, or does not end.
        """
        self._open_dags()
        self._history(plan.first_as_of)
        self._first_champion(plan.first_as_of)
        length = timedelta(days=self.use_case.grid.days)
        for number in range(1, plan.weeks + 1):
            start = plan.first_as_of + (number - 1) * length
            broken = number == plan.incident_week
            self._week(Interval(start, start + length), label=f"week {number}/{plan.weeks}", broken=broken)

    # -- stages

    def _open_dags(self) -> None:
        wanted = {"alerts.flush", "alerts.digest", *(self._dag(verb) for verb in VERBS)}

        def parsed() -> bool:
            if errors := self.api.import_errors():
                raise ReplayError("a DAG file does not parse:\n" + "\n".join(errors))
            return wanted <= set(self.api.dag_ids())

        self._await("airflow", "the DAG files to be parsed", parsed)
        for dag_id in sorted(wanted - {self._dag("build_features")}):
            self.api.unpause(dag_id)

    def _history(self, until: datetime) -> None:
        grid = self.use_case.grid
        weeks = grid.covering(Interval(grid.partition(str(grid.first)).start, until))

        def landed() -> bool:
            clean = self.state.clean_partitions()
            self.progress.waiting("history", f"{len(clean)} of {len(weeks)} weeks ingested and validated")
            return all(week.start in clean for week in weeks)

        def backfill() -> None:
            self.api.backfill(self._dag("ingest"), weeks[0].start, weeks[-1].start, at_once=2)

        if not landed():
            self.progress.say("history", f"backfill of {len(weeks)} weeks from {weeks[0].start:%d %b %Y}")
            if not self.api.active(self._dag("ingest")):
                backfill()
            self._work("history", "ingest", "the backfill", landed, wake=backfill)
        # Opened only now, so that history is built in one go and not once a week.
        self.api.unpause(self._dag("build_features"))
        if not self._built(until):
            self.api.trigger(self._dag("build_features"), f"history__{until:%Y-%m-%d}")
        self._features("history", until)
        self.progress.say("history", f"{len(weeks)} weeks ingested, validated and built into features")

    def _first_champion(self, as_of: datetime) -> None:
        if promote.current(self.use_case, self.outside) is not None:
            return
        self.progress.say("first champion", f"search, refit and judgement as of {as_of:%d %b}")
        conf = {"as_of": f"{as_of:%Y-%m-%d}", "reason": "first champion"}
        self._run_to_end("first champion", "train", f"first__{as_of:%Y-%m-%d}", conf=conf)
        entry = self.state.last_verdict()
        if promote.current(self.use_case, self.outside) is None:
            raise ReplayError(f"the first candidate was not promoted: {entry['reason']}")
        self.progress.say("first champion", f"version {entry['model_version']} promoted: {entry['reason']}")

    def _week(self, week: Interval, *, label: str, broken: bool) -> None:
        if not self.state.settled(week):
            self._live(week, label=label, broken=broken)
        decision = self.state.decision(week)
        assert decision is not None, "a settled week is a decided one"
        reasons = "; ".join(decision["reasons"])
        scored = self.state.scored(week)
        self.progress.say(label, f"{week.start:%d %b}: {scored}; {decision['decision']}: {reasons}")
        if decision["decision"] == "retrain":
            self._await(label, "the retrain it asked for", lambda: self.state.settled(week))
            entry = self.state.last_verdict()
            self.progress.say(label, f"retrain: {entry['action']} version {entry['model_version']}: {entry['reason']}")
        if broken:
            self._mend(week, label=label)

    def _live(self, week: Interval, *, label: str, broken: bool) -> None:
        key = self.use_case.grid.key(week)
        if broken:
            found = incident.break_feed(self.outside.source, week, key, self.folder)
            self.progress.say(label, f"{week.start:%d %b}: INJECTED: {found.what} ({found.rows} rows)")
        if week.start not in self.state.clean_partitions():
            self._run_to_end(label, "ingest", f"replay__{key}", partition_key=key)
        self._features(label, week.end)
        self._scores(label)
        self._work(label, "monitor", "monitoring", lambda: not monitor.pending(self.use_case, self.outside))

    def _mend(self, week: Interval, *, label: str) -> None:
        """The feed's operator sends the true records; the partition is ingested again, beside the old one."""
        key = self.use_case.grid.key(week)
        if all(known.partition_key != key or known.state == "mended" for known in incident.manifest(self.folder)):
            return
        with incident.mending(self.outside.source, key, self.folder):
            self._run_to_end(label, "ingest", f"mend__{key}", partition_key=key)
            self._features(label, week.end)
            self._scores(label)
        self.progress.say(label, f"{week.start:%d %b}: feed mended; ingested again, features and scores restated")

    def _features(self, label: str, until: datetime) -> None:
        self._work(label, "build_features", "features", lambda: self._built(until))

    def _built(self, until: datetime) -> bool:
        reached = self.state.built_until()
        return reached is not None and reached >= until and not build_features.pending(self.use_case, self.outside)

    def _scores(self, label: str) -> None:
        self._work(label, "score", "scores", lambda: not score.pending(self.use_case, self.outside))

    # -- waiting

    def _dag(self, verb: str) -> str:
        return f"{self.use_case.name}.{verb}"

    def _await(self, label: str, what: str, done: Callable[[], bool]) -> None:
        deadline = monotonic() + STAGE_LIMIT.total_seconds()
        while not done():
            if monotonic() > deadline:
                raise ReplayError(f"{label}: waited {STAGE_LIMIT} for {what}; look at the Airflow page")
            self.progress.waiting(label, f"waiting for {what}")
            sleep(POLL_SECONDS)

    def _work(
        self, label: str, verb: str, what: str, done: Callable[[], bool], *, wake: Callable[[], None] | None = None
    ) -> None:
        """Wait for `done`; where work is left and no run of the verb is under way, wake it up, a few times."""
        attempts = 0
        idle_since: float | None = None

        def settled() -> bool:
            nonlocal attempts, idle_since
            if done():
                return True
            if self.api.active(self._dag(verb)):
                idle_since = None
            elif idle_since is None:
                idle_since = monotonic()
            elif monotonic() - idle_since > IDLE_SECONDS:
                attempts, idle_since = attempts + 1, None
                self._raise_if_stuck(label, verb, attempts)
                (wake or self._wake(verb))()
            return False

        self._await(label, what, settled)

    def _wake(self, verb: str) -> Callable[[], None]:
        return lambda: self.api.trigger(self._dag(verb), f"wake__{datetime.now(UTC):%Y%m%dT%H%M%S}")

    def _run_to_end(
        self,
        label: str,
        verb: str,
        run_id: str,
        *,
        conf: dict[str, Any] | None = None,
        partition_key: str | None = None,
    ) -> None:
        """Start a run under a deterministic id and wait for its success; a failed one is tried again under the next."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = run_id if attempt == 1 else f"{run_id}__{attempt}"
            if self._run_state(verb, name) is None:
                self.api.trigger(self._dag(verb), name, conf=conf, partition_key=partition_key)
            self._await(label, f"{verb} {name}", partial(self._ended, verb, name))
            if self._run_state(verb, name) == "success":
                return
            self._raise_if_stuck(label, verb, attempt)

    def _ended(self, verb: str, run_id: str) -> bool:
        return self._run_state(verb, run_id) in ("success", "failed")

    def _run_state(self, verb: str, run_id: str) -> str | None:
        return self.api.run_state(self._dag(verb), run_id)

    def _raise_if_stuck(self, label: str, verb: str, attempts: int) -> None:
        if verb == "ingest" and (problem := self.state.blocked()):
            raise ReplayError(f"{label}: {problem}")
        if attempts < MAX_ATTEMPTS:
            return
        failed = next((run["dag_run_id"] for run in self.api.runs(self._dag(verb)) if run["state"] == "failed"), None)
        tasks = self.api.failed_tasks(self._dag(verb), failed) if failed else []
        where = f"run {failed} failed in {', '.join(tasks)}" if failed else "no run failed"
        raise ReplayError(f"{label}: {self._dag(verb)} did not finish in {attempts} attempts ({where}); see its log")
