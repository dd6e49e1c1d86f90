"""Drives the real scheduler through a year of data, week by week, waiting on durable state and never on a clock.

Every stage is `until(done)`: where the state already says done, nothing is started, so a replay that was stopped or
whose parts were killed goes on where it was. Wake-ups are only started where no run is under way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from adapters.connect import Outside
from infra.replay import incident
from infra.replay.api import AirflowApi
from infra.replay.progress import Progress
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks import build_features, promote, score

POLL_SECONDS = 0.5
STAGE_LIMIT = timedelta(minutes=30)
MAX_WAKE_UPS = 5


class ReplayFailed(RuntimeError):
    """The loop did not do what it promises; the message says where to look."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to replay: history up to `first_as_of` trains the first champion, then `weeks` partitions come as if live."""

    first_as_of: datetime
    weeks: int
    incident_week: int | None  # 1-based; None: no incident


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One replay of one use case against a running stack."""

    use_case: UseCase
    outside: Outside
    api: AirflowApi
    progress: Progress
    folder: Path

    def run(self, plan: Plan) -> None:
        """History, first champion, then week by week.

        Raises:
            ReplayFailed: where a stage ends in failure or does not end.
        """
        self._open_dags()
        self._history(plan)
        self._first_champion(plan)
        for number in range(1, plan.weeks + 1):
            start = plan.first_as_of + timedelta(days=(number - 1) * self.use_case.grid.days)
            week = Interval(start, start + timedelta(days=self.use_case.grid.days))
            self._week(week, label=f"week {number}/{plan.weeks}", broken=number == plan.incident_week)

    # -- stages ---------------------------------------------------------------------------------------------------

    def _open_dags(self) -> None:
        verbs = ("ingest", "build_features", "score", "monitor", "train", "retrain", "rollback", "replay_quarantine")
        wanted = {self._dag(verb) for verb in verbs}

        def parsed() -> bool:
            if errors := self.api.import_errors():
                raise ReplayFailed("a DAG file does not parse:\n" + "\n".join(errors))
            return wanted <= set(self.api.dag_ids())

        self._await("airflow", "the DAG files to be parsed", parsed)
        for dag_id in sorted(wanted):
            self.api.unpause(dag_id)

    def _history(self, plan: Plan) -> None:
        grid = self.use_case.grid
        partitions = grid.covering(Interval(grid.partition(str(grid.first)).start, plan.first_as_of))

        def landed() -> bool:
            clean = self._clean_partitions()
            self.progress.waiting("history", f"{len(clean)} of {len(partitions)} weeks ingested and validated")
            return all(partition.start in clean for partition in partitions)

        if not landed():
            last = partitions[-1].start
            self.progress.say(
                "history", f"backfill of {len(partitions)} weeks, {partitions[0].start:%d %b} to {last:%d %b}"
            )
            self.api.backfill(self._dag("ingest"), partitions[0].start, last, at_once=2)
        self._work("history", "ingest", "the backfill", landed, wake=None)
        self._features("history", plan.first_as_of)
        self.progress.say("history", f"{len(partitions)} weeks ingested, validated and built into features")

    def _first_champion(self, plan: Plan) -> None:
        def promoted() -> bool:
            return promote.current(self.use_case, self.outside) is not None

        if promoted():
            return
        self.progress.say("first champion", f"search, refit and judgement as of {plan.first_as_of:%d %b}")
        conf = {"as_of": plan.first_as_of.isoformat(), "reason": "first champion"}
        self._run_to_end("first champion", "train", f"first__{plan.first_as_of:%Y-%m-%d}", conf=conf)
        if not promoted():
            raise ReplayFailed(f"the first candidate was not promoted: {self._last_ledger()['reason']}")
        entry = self._last_ledger()
        self.progress.say("first champion", f"version {entry['model_version']} promoted: {entry['reason']}")

    def _week(self, week: Interval, *, label: str, broken: bool) -> None:
        if self._settled(week):
            self.progress.say(label, f"{week.start:%d %b}: done before ({self._decision(week)['decision']})")
            return self._mend(week, label=label, broken=broken)
        key = self.use_case.grid.key(week)
        if broken:
            found = incident.break_feed(self.outside.source, week, key, self.folder)
            self.progress.say(label, f"{week.start:%d %b}: INJECTED: {found.what} ({found.rows} rows)")
        if week.start not in self._clean_partitions():
            self._run_to_end(label, "ingest", f"replay__{key}", partition_key=key)
        self._features(label, week.end)
        self._work(label, "score", "scores", lambda: not score.pending(self.use_case, self.outside))
        self._work(label, "monitor", "monitoring", lambda: self._decision_or_none(week) is not None)
        decision = self._decision(week)
        self.progress.say(
            label, f"{week.start:%d %b}: {self._summary(week)}{decision['decision']}: {'; '.join(decision['reasons'])}"
        )
        if decision["decision"] == "retrain":
            self._await(label, "the retrain", lambda: self._settled(week))
            entry = self._last_ledger()
            self.progress.say(
                label, f"retrain judged: {entry['action']} version {entry['model_version']}: {entry['reason']}"
            )
        return self._mend(week, label=label, broken=broken)

    def _mend(self, week: Interval, *, label: str, broken: bool) -> None:
        """The feed's operator sends the true records; the partition is ingested again beside the old one."""
        key = self.use_case.grid.key(week)
        states = {known.partition_key: known.state for known in incident.manifest(self.folder)}
        if not broken or states.get(key) != "broken":
            return
        incident.mend_feed(self.outside.source, key, self.folder)
        self._run_to_end(label, "ingest", f"mend__{key}", partition_key=key)
        self._features(label, week.end)
        self._work(label, "score", "scores", lambda: not score.pending(self.use_case, self.outside))
        self.progress.say(label, f"{week.start:%d %b}: feed mended, ingested again, features and scores restated")

    def _features(self, label: str, until: datetime) -> None:
        def built() -> bool:
            rows = self.outside.warehouse.fetch(
                'select max("end") as until from snapshots where use_case = %s', (self.use_case.name,)
            )
            reached = rows[0]["until"] is not None and rows[0]["until"] >= until
            return reached and not build_features.pending(self.use_case, self.outside)

        self._work(label, "build_features", "features", built)

    # -- waiting --------------------------------------------------------------------------------------------------

    def _dag(self, verb: str) -> str:
        return f"{self.use_case.name}.{verb}"

    def _await(self, label: str, what: str, done: Callable[[], bool]) -> None:
        deadline = monotonic() + STAGE_LIMIT.total_seconds()
        while not done():
            if monotonic() > deadline:
                raise ReplayFailed(
                    f"{label}: waited {STAGE_LIMIT} for {what}; look at the Airflow page, then run it again"
                )
            self.progress.waiting(label, f"waiting for {what}")
            sleep(POLL_SECONDS)

    def _work(self, label: str, verb: str, what: str, done: Callable[[], bool], *, wake: str | None = "wake") -> None:
        """Wait for `done`; where no run of the verb is under way and nothing moves, wake it up, a few times."""
        wake_ups, idle_since = 0, None

        def moved() -> bool:
            nonlocal wake_ups, idle_since
            if done():
                return True
            if self.api.active(self._dag(verb)):
                idle_since = None
            elif idle_since is None:
                idle_since = monotonic()
            elif monotonic() - idle_since > 10:
                idle_since, wake_ups = None, wake_ups + 1
                self._raise_if_stuck(label, verb, wake_ups)
                if wake is not None:
                    self.api.trigger(self._dag(verb), f"{wake}__{datetime.now().astimezone():%Y%m%dT%H%M%S}")
            return False

        self._await(label, what, moved)

    def _run_to_end(
        self,
        label: str,
        verb: str,
        run_id: str,
        *,
        conf: dict[str, Any] | None = None,
        partition_key: str | None = None,
    ) -> None:
        """Start a run under a deterministic id and wait for its success; a failed one is tried again under the next id."""
        for attempt in range(1, MAX_WAKE_UPS + 1):
            name = run_id if attempt == 1 else f"{run_id}__{attempt}"
            state = self.api.run_state(self._dag(verb), name)
            if state is None:
                self.api.trigger(self._dag(verb), name, conf=conf, partition_key=partition_key)
            self._await(
                label,
                f"{verb} {name}",
                lambda name=name: self.api.run_state(self._dag(verb), name) in ("success", "failed"),
            )
            if self.api.run_state(self._dag(verb), name) == "success":
                return
            self._raise_if_stuck(label, verb, attempt)

    def _raise_if_stuck(self, label: str, verb: str, attempts: int) -> None:
        blocked = self.outside.warehouse.fetch(
            "select table_name, problem from batches where use_case = %s and status = 'blocked'", (self.use_case.name,)
        )
        if verb == "ingest" and blocked:
            raise ReplayFailed(f"{label}: {blocked[0]['table_name']} was blocked: {blocked[0]['problem']}")
        if attempts >= MAX_WAKE_UPS:
            failed = next((run for run in self.api.runs(self._dag(verb)) if run["state"] == "failed"), None)
            where = (
                f"run {failed['dag_run_id']} failed in {self.api.failed_tasks(self._dag(verb), failed['dag_run_id'])}"
                if failed
                else "no run failed"
            )
            raise ReplayFailed(
                f"{label}: {self._dag(verb)} did not finish in {attempts} attempts ({where}); see its log in the Airflow page"
            )

    # -- durable state --------------------------------------------------------------------------------------------

    def _clean_partitions(self) -> set[datetime]:
        rows = self.outside.warehouse.fetch(
            """
            select partition_start from batches b where use_case = %s and status = 'clean' and version =
                (select max(version) from batches where (use_case, table_name, partition_start) =
                    (b.use_case, b.table_name, b.partition_start))
            group by partition_start having count(*) = %s
            """,
            (self.use_case.name, len(self.use_case.source.tables)),
        )
        return {row["partition_start"] for row in rows}

    def _decision_or_none(self, week: Interval) -> dict[str, Any] | None:
        rows = self.outside.warehouse.fetch(
            "select * from decisions where use_case = %s and as_of = %s", (self.use_case.name, week.end)
        )
        return rows[0] if rows else None

    def _decision(self, week: Interval) -> dict[str, Any]:
        found = self._decision_or_none(week)
        assert found is not None
        return found

    def _settled(self, week: Interval) -> bool:
        decision = self._decision_or_none(week)
        if decision is None or decision["decision"] != "retrain":
            return decision is not None
        rows = self.outside.warehouse.fetch(
            "select state from retrains where decision_id = %s", (decision["decision_id"],)
        )
        if rows[0]["state"] == "failed":
            raise ReplayFailed(f"the retrain of {decision['decision_id']} failed; see {self._dag('train')} in Airflow")
        return bool(rows[0]["state"] == "done")

    def _summary(self, week: Interval) -> str:
        rows = self.outside.warehouse.fetch(
            "select model_version, rows from scorings where use_case = %s and partition_start = %s",
            (self.use_case.name, week.start),
        )
        return "".join(f"{row['rows']:,} rows scored by version {row['model_version']}; " for row in rows)

    def _last_ledger(self) -> dict[str, Any]:
        rows = self.outside.warehouse.fetch(
            "select * from ledger where use_case = %s order by entry desc limit 1", (self.use_case.name,)
        )
        if not rows:
            raise ReplayFailed(f"training ended without a ledger entry; see {self._dag('train')} in Airflow")
        return rows[0]
