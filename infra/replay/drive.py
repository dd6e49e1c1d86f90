"""Drives the real scheduler through a year of data, week by week, waiting on durable state and on data time.

Where the state already says done, nothing is started: a replay that was stopped, or whose parts were killed, goes on
where it was. A step is woken up only where none of its runs is under way.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from adapters.connect import Outside
from adapters.retrying import wait_until
from infra.replay import incident
from infra.replay.api import AirflowApi
from infra.replay.data_time import AskedTime, DataTime
from infra.replay.live_source import LiveSource
from infra.replay.progress import ReplayProgress
from infra.replay.replayed import Replayed
from infra.replay.runs import Runs
from infra.replay.state import ReplayError, ReplayState
from infra.replay.traffic import Traffic
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks import score
from tasks.build_features import build
from tasks.deploy.deployments import find_ongoing_deployment
from tasks.monitor import monitor
from tasks.promote import promote

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
    "deploy",
    "watch",
    "experiment",
)
_PAGED_WITHIN_SECONDS = 60.0  # after the end of the week in which a feed broke
_AFTERWARDS_PER_SECOND = 40.0  # requests, once data time is over


@dataclass(frozen=True, kw_only=True)
class ReplayPlan:
    """What to replay: history up to `first_as_of` trains the first champion; then `weeks` partitions as if live."""

    first_as_of: datetime
    weeks: int
    incident_week: int | None  # 1-based; None: no incident
    mended_after: timedelta  # in data time, from when somebody is paged about it
    seconds_per_hour: float | None  # None: data time goes on when a week is wanted


class Replay:
    """One replay of one use case against a running stack."""

    def __init__(
        self,
        *,
        use_case: UseCase,
        replayed: Replayed,
        outside: Outside,
        source: LiveSource,
        api: AirflowApi,
        progress: ReplayProgress,
    ) -> None:
        self.use_case, self.outside, self.api, self.progress = use_case, outside, api, progress
        self.source, self.replayed = source, replayed
        self.state = ReplayState(use_case=use_case, outside=outside)
        self.runs = Runs(api=api, state=self.state, progress=progress)
        self.traffic = Traffic(use_case, outside, source)
        self._broken: incident.BreakingFeed | None = None

    def run(self, plan: ReplayPlan) -> None:
        """History, first champion, then week by week, as data time goes by.

        Raises:
            ReplayError: where a stage ends in failure, or does not end.
        """
        weeks = self._list_weeks(plan)
        if self._is_done(weeks):
            with self.traffic:
                self._await_rollouts(weeks[-1])
            self.progress.say("replay", "every week is decided and every retrain judged: there is nothing to do")
            return
        self._open_dags()
        self._load_history(plan.first_as_of)
        self._train_first_champion(plan.first_as_of)
        self._await_first_deployment()
        with self.traffic, self._data_time(plan, weeks) as data_time:
            for number, week in enumerate(weeks, start=1):
                self._play_week(week, data_time, label=f"week {number}/{plan.weeks}")
            self._await_rollouts(weeks[-1])

    def _await_rollouts(self, week: Interval) -> None:
        """A version on its way to the clients waits for requests, and nothing is due any more."""

        def is_over() -> bool:
            is_training = self.api.count_active_runs(self.runs.dag("train"))
            return not is_training and find_ongoing_deployment(self.use_case, self.outside) is None

        if not is_over():
            self._ask_about_all(week)
            self.runs.wait_for("online", "the last version to answer everyone", is_over)

    def _ask_about_all(self, week: Interval) -> None:
        self.traffic.ask_about(week.start, week.end, per_second=_AFTERWARDS_PER_SECOND)

    def _data_time(self, plan: ReplayPlan, weeks: list[Interval]) -> DataTime | AskedTime:
        if plan.seconds_per_hour is None:
            return AskedTime(self.source)
        self._broken = self._find_broken(plan, weeks)
        return DataTime(
            self.use_case,
            self.source,
            until=weeks[-1].end,
            seconds_per_hour=plan.seconds_per_hour,
            broken=self._broken,
            then=self.traffic.ask_about,
        )

    def _find_broken(self, plan: ReplayPlan, weeks: list[Interval]) -> incident.BreakingFeed | None:
        """The feed that breaks in a week: the planned one, or the one in which it began to."""
        begun = {known.partition_key for known in self.replayed.list_injected(self.outside.source)}
        planned = [weeks[plan.incident_week - 1]] if plan.incident_week else []
        broken = [week for week in weeks if self.use_case.grid.key(week) in begun] if begun else planned
        return incident.BreakingFeed(self.use_case, self.outside, broken[0], plan.mended_after) if broken else None

    def _await_first_deployment(self) -> None:
        """Data time goes on once the first champion answers: an event that nobody could ask about would be lost."""
        if self.outside.gateway is not None and self.use_case.endpoint is not None:
            self.runs.wait_for("online", "the first version to answer", self.state.has_deployed)

    def _list_weeks(self, plan: ReplayPlan) -> list[Interval]:
        length = timedelta(days=self.use_case.grid.days)
        starts = [plan.first_as_of + number * length for number in range(plan.weeks)]
        return [Interval(start, start + length) for start in starts]

    def _is_done(self, weeks: list[Interval]) -> bool:
        mended = all(known.state == "mended" for known in self.replayed.list_injected(self.outside.source))
        return mended and all(self.state.is_settled(week) for week in weeks)

    def _open_dags(self) -> None:
        wanted = {"alerts.flush", "alerts.digest", *(self.runs.dag(verb) for verb in VERBS)}

        def are_parsed() -> bool:
            if errors := self.api.list_import_errors():
                raise ReplayError("a DAG file does not parse:\n" + "\n".join(errors))
            return wanted <= set(self.api.list_dag_ids())

        self.runs.wait_for("airflow", "the DAG files to be parsed", are_parsed)
        for dag_id in sorted(wanted - {self.runs.dag("build_features")}):
            self.api.unpause(dag_id)

    def _load_history(self, until: datetime) -> None:
        grid = self.use_case.grid
        weeks = grid.covering(Interval(utc(grid.first), until))

        def is_landed() -> bool:
            return {week.start for week in weeks} <= self.state.list_clean_partitions()

        def describe_backfill() -> str:
            clean = len(self.state.list_clean_partitions())
            return f"the backfill: {clean} of {len(weeks)} weeks are ingested and validated"

        def backfill() -> None:
            self.api.backfill(self.runs.dag("ingest"), weeks[0].start, weeks[-1].start, at_once=2)

        if not is_landed():
            self.progress.say("history", f"backfill of {len(weeks)} weeks from {weeks[0].start:%d %b %Y}")
            if not self.api.count_active_runs(self.runs.dag("ingest")):
                backfill()
            self.runs.finish_work("history", "ingest", describe_backfill, is_landed, wake=backfill)
        # Opened only now, so that history is built in one go and not once a week.
        self.api.unpause(self.runs.dag("build_features"))
        if not self._is_built(until):
            self.api.trigger(self.runs.dag("build_features"), f"history__{until:%Y-%m-%d}")
        self._build_features("history", until)
        self.progress.say("history", f"{len(weeks)} weeks ingested, validated and built into features")

    def _train_first_champion(self, as_of: datetime) -> None:
        if promote.current(self.use_case, self.outside) is not None:
            began = self.state.find_ledger_entry(None)["as_of"]
            if began != as_of:
                raise ReplayError(
                    f"the first champion here is of {began:%d %b %Y}, and a replay from {as_of:%d %b %Y} on was asked"
                    " for: leave that out to go on, or `make clean` first"
                )
            return
        self.progress.say("first champion", f"search, refit and judgement as of {as_of:%d %b}")
        conf = {"as_of": f"{as_of:%Y-%m-%d}", "reason": "first champion"}
        self.runs.run_to_end("first champion", "train", f"first__{as_of:%Y-%m-%d}", conf=conf)
        entry = self.state.find_ledger_entry(None)
        if promote.current(self.use_case, self.outside) is None:
            raise ReplayError(f"the first candidate was not promoted: {entry['reason']}")
        self.progress.say("first champion", f"version {entry['model_version']} promoted: {entry['reason']}")

    def _play_week(self, week: Interval, data_time: DataTime | AskedTime, *, label: str) -> None:
        if not self.state.is_settled(week):
            self._play_live(week, data_time, label=label)
        decision = self.state.find_decision(week)
        if decision is None:
            raise ReplayError(f"{label}: monitoring had nothing to decide on; was the week scored?")
        concluded = f"{decision['decision']}: {'; '.join(decision['reasons'])}"
        self.progress.say(label, f"{week.start:%d %b}: {self.state.describe_scoring(week)}; {concluded}")
        if self.state.has_asked(decision["decision_id"]):
            self.runs.wait_for(label, "the model it asked for", lambda: self.state.is_settled(week))
            entry = self.state.find_ledger_entry(decision["decision_id"])
            self.progress.say(label, f"{entry['action']} version {entry['model_version']}: {entry['reason']}")
        self._repair(week, label=label)

    def _play_live(self, week: Interval, data_time: DataTime | AskedTime, *, label: str) -> None:
        key = self.use_case.grid.key(week)
        self.runs.wait_for(label, self._describe_time, lambda: data_time.has_reached(week.end))
        for broken in self.replayed.list_injected(self.outside.source):
            if broken.partition_key == key:
                self.progress.say(label, f"{week.start:%d %b}: INJECTED: {broken.describe()}")
                if broken.state == "broken" and broken.began_at is not None and self._broken is not None:
                    self._await_page(self._broken, week)
        if week.start not in self.state.list_clean_partitions():
            self.runs.run_to_end(label, "ingest", f"replay__{key}", partition_key=key)
        if data_time.is_still:  # nothing is due, and a rollout waits for requests
            self._ask_about_all(week)
        self._build_features(label, week.end)
        self._write_scores(label)
        self.runs.finish_work(
            label, "monitor", "monitoring", lambda: not monitor.find_undecided(self.use_case, self.outside)
        )

    def _await_page(self, broken: incident.BreakingFeed, week: Interval) -> None:
        """It comes within hours of data time, and those of a week's end may go by faster than the stream reads."""
        if self.use_case.source.follow is not None and not wait_until(
            lambda: broken.note_page(week.end) is not None, within_seconds=_PAGED_WITHIN_SECONDS
        ):
            raise ReplayError(f"nobody was paged about the feed that broke on {week.start:%d %b}: the log of `stream`")

    def _describe_time(self) -> str:
        return f"the week's end; data time is {self.source.told_until:%d %b %H:%M}"

    def _repair(self, week: Interval, *, label: str) -> None:
        """The feed's operator sends the true records; the partition is ingested again, beside the old one."""
        key = self.use_case.grid.key(week)
        if key not in {
            i.partition_key for i in self.replayed.list_injected(self.outside.source) if i.state == "broken"
        }:
            return
        with incident.restored_feed(self.outside.source, key):
            self.runs.run_to_end(label, "ingest", f"mend__{key}", partition_key=key)
            self._build_features(label, week.end)
            self._write_scores(label)
        self.progress.say(label, f"{week.start:%d %b}: feed mended; ingested again, features and scores restated")

    def _build_features(self, label: str, until: datetime) -> None:
        self.runs.finish_work(label, "build_features", "features", lambda: self._is_built(until))

    def _is_built(self, until: datetime) -> bool:
        reached = self.state.built_until()
        return reached is not None and reached >= until and not build.pending_partitions(self.use_case, self.outside)

    def _write_scores(self, label: str) -> None:
        self.runs.finish_work(label, "score", "scores", lambda: not score.find_unscored(self.use_case, self.outside))
