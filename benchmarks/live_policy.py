"""The product's own policy on a model matrix: what its triage and its gate decide, partition by partition.

Observations are made from kept scores by the product's functions, as its DAGs make them, and every decision is its own;
but performance is restated, blocks of a window are days, nothing is expected before labels come, no feed shows signs of
being broken but by what is missing, and drift of the score is that of what the networks answer, whatever was added.
The gate compares judged models, which know nothing of the holdout. What answers is the promoted model itself, or its
refitted twin (`deployed`). One that was held and is promoted later is refitted by then: all have one recipe, so what
answers is the model of that data time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from benchmarks.hindsight import was_surely_worse
from benchmarks.model_matrix import Fit, Floats, MatrixModel, ModelMatrix, Places, to_moment
from benchmarks.retraining import Course
from models.metrics import compute_metrics
from models.recalibration import add_to_logits
from pipeline.handoffs import ReleaseOutcome, VerdictAnswer
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.monitor.drift import SCORE, FeatureDrift, measure_drift
from tasks.monitor.observed import Action, Decision, Observed, OtherDecision, RetrainState
from tasks.monitor.performance import trailing_window
from tasks.monitor.performance_bounds import WatchedRows, bound_metrics
from tasks.monitor.performance_limits import Performance, judge_performance, look_confidence, look_longer
from tasks.monitor.triage import breached_features, make_decision
from tasks.promote.evaluate import frozen_rows, recalibrate_scores
from tasks.promote.expected_effect import MeasuredEffect
from tasks.promote.gate import Judgement, decide
from tasks.promote.gate_checks import Scored, Setting
from tasks.promote.intercept_limits import explain_recalibration
from tasks.promote.standing import MOST_LOOKS, StandingChallenger
from tasks.train.recalibration import HALF_LIVES, MeasuredIntercept, weigh_intercept
from tasks.train.split import split

_OUTCOMES = {
    VerdictAnswer.PROMOTE: ReleaseOutcome.PROMOTED,
    VerdictAnswer.HOLD: ReleaseOutcome.HELD,
    VerdictAnswer.REFUSE: ReleaseOutcome.REFUSED,
    VerdictAnswer.NEED_MORE_DATA: ReleaseOutcome.NEED_MORE_DATA,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveCourse:
    """What the product did: a course, what it added to the logits of each partition, and what it decided, in words."""

    course: Course
    intercepts: tuple[float, ...]
    decisions: Mapping[str, str]


@dataclass(kw_only=True)
class _Run:
    """Where a course stands: partitions stand for models. `twin` is the champion's judged one."""

    champion: int
    twin: int
    intercept: float = 0.0
    standing: int | None = None  # who was held
    looks: int = 0  # at the latest candidate
    trainings: int = 0
    switched_at: datetime | None = None
    serving: list[int] = field(default_factory=list)
    intercepts: list[float] = field(default_factory=list)
    effects: dict[int, MeasuredEffect] = field(default_factory=dict)  # what candidates showed, latest
    history: list[OtherDecision] = field(default_factory=list)
    decisions: dict[str, str] = field(default_factory=dict)


@dataclass
class LivePolicy:
    """Plays a matrix; what was measured once is not measured again for another start."""

    matrix: ModelMatrix
    deployed: Fit
    _drifts: dict[tuple[int, int], Sequence[FeatureDrift]] = field(default_factory=dict)
    _judgements: dict[tuple[int, int, tuple[MeasuredEffect, ...], int, int], Judgement] = field(default_factory=dict)
    _courses: dict[int, LiveCourse] = field(default_factory=dict)
    _surely_worse: dict[tuple[int, int], bool | None] = field(default_factory=dict)

    def play(self, start: int) -> LiveCourse:
        """From a first champion, the model of partition `start`, to the end."""
        if start not in self._courses:
            self._courses[start] = self._play(start)
        return self._courses[start]

    def _play(self, start: int) -> LiveCourse:
        partitions, run = self.matrix.partitions, _Run(champion=start, twin=start)
        added = np.zeros(self.matrix.rows.num_rows)  # to the logit of what was answered to each row
        for place in range(start, len(partitions)):
            run.serving.append(run.champion)
            run.intercepts.append(run.intercept)
            added[self._partition_rows(partitions[place])] = run.intercept
            observed = self._observe(run, place, added)
            decision = make_decision(observed, run.history, self.matrix.use_case.monitor)
            said = f"{self._model(run.champion).version} {decision.decision}: {'; '.join(decision.reasons)}"
            judgement = self._follow(run, decision, place) if place + 1 < len(partitions) else None
            outcome = _OUTCOMES[judgement.answer] if judgement else None
            if judgement:
                said += f" -> {outcome}: {'; '.join(judgement.reasons)}"
            run.decisions[f"{partitions[place].start:%Y-%m-%d}"] = said
            run.history.append(
                OtherDecision(
                    as_of=partitions[place].end,
                    network_version=observed.network_version,
                    decision=decision.decision,
                    breached=breached_features(observed.drifts),
                    state=RetrainState.DONE if judgement else None,
                    outcome=outcome,
                    challenger=decision.challenger,
                )
            )
            if outcome == ReleaseOutcome.PROMOTED:
                run.switched_at = partitions[place].end
            elif decision.recalibrates and observed.intercept:
                run.intercept = observed.intercept.fitted.value
        course = Course(start=start, serving=np.array(run.serving, np.intp), trainings=run.trainings)
        return LiveCourse(course=course, intercepts=tuple(run.intercepts), decisions=run.decisions)

    def _follow(self, run: "_Run", decision: Decision, place: int) -> Judgement | None:
        """Train, or judge again who stands, as of a partition's end; None: nothing was asked for."""
        if decision.challenger is not None and run.standing is not None:
            candidate = run.standing
        elif decision.decision == Action.RETRAIN:
            candidate, run.looks = place + 1, 0
            run.trainings += 1
        else:
            return None
        run.looks += 1
        past = tuple(effect for other, effect in run.effects.items() if other != candidate)
        judgement = self.judge(candidate, run.twin, past, now=place + 1, looks=run.looks)
        if "effect" in judgement.evidence:
            measured = judgement.evidence["effect"]
            run.effects[candidate] = MeasuredEffect(measured["value"], measured["standard_error"])
        run.standing = candidate if judgement.answer == VerdictAnswer.HOLD and run.looks < MOST_LOOKS else None
        if judgement.answer == VerdictAnswer.PROMOTE:
            run.champion, run.twin, run.intercept = place + 1, candidate, 0.0
        return judgement

    def judge(
        self,
        candidate: int,
        champion: int,
        past: tuple[MeasuredEffect, ...] = (),
        *,
        now: int | None = None,
        looks: int = 1,
    ) -> Judgement:
        """The gate's answer to the model of a partition, after what earlier candidates showed.

        As of the beginning of that partition or, of one that stands, of a later one: `now`, at so many looks.
        """
        key = candidate, champion, past, candidate if now is None else now, looks
        if key not in self._judgements:
            self._judgements[key] = self._judge(*key)
        return self._judgements[key]

    def measure_drifts(self, champion: int, place: int) -> Sequence[FeatureDrift]:
        """What has moved in a partition against what its champion learnt."""
        key = champion, place
        if key not in self._drifts:
            model, rows = self._model(champion), self._partition_rows(self.matrix.partitions[place])
            table = self.matrix.rows.slice(rows.start, rows.stop - rows.start)
            table = table.append_column(SCORE, pa.array(model.score(rows)))
            columns = [name for name in table.column_names if name in model.profile["features"]]
            self._drifts[key] = measure_drift(model.profile, table.select(columns), self.matrix.use_case.monitor)
        return self._drifts[key]

    def is_surely_worse(self, old: int, new: int) -> bool | None:
        """Whether a promotion was wrong by more than `gate.min_effect` over the four weeks after it, and surely wrong.

        None where fewer weeks follow.
        """
        key = old, new
        if key not in self._surely_worse:
            start = self.matrix.partitions[new].start
            self._surely_worse[key] = was_surely_worse(self.matrix, self._model(old), self._model(new), start)
        return self._surely_worse[key]

    def _model(self, place: int, fit: Fit | None = None) -> MatrixModel:
        return self.matrix.models[self.matrix.partitions[place].start, fit or self.deployed]

    def _partition_rows(self, partition: Interval) -> slice:
        return self.matrix.between(partition.start, partition.end)

    def _observe(self, run: "_Run", place: int, added: Floats) -> Observed:
        champion = run.champion
        model, as_of = self._model(champion), self.matrix.partitions[place].end
        fresh = (self.matrix.label_time > to_moment(model.as_of)) & (self.matrix.label_time <= to_moment(as_of))
        return Observed(
            as_of=as_of,
            model_version=model.version,
            network_version=model.version,
            drifts=self.measure_drifts(champion, place),
            performance=self._measure_performance(model, as_of, added),
            born_at=model.as_of,
            trained_rows=model.profile["rows"],
            new_rows=int(np.count_nonzero(fresh)),
            switched_at=run.switched_at,
            intercept=self._measure_intercept(model, as_of, run.intercept),
            standing=self._find_standing(run),
        )

    def _find_standing(self, run: "_Run") -> StandingChallenger | None:
        if run.standing is None:
            return None
        model = self._model(run.standing, Fit.JUDGED)
        return StandingChallenger(version=model.version, held_at=model.as_of, looks=run.looks)

    def _measure_intercept(self, model: MatrixModel, known_by: datetime, before: float) -> MeasuredIntercept | None:
        """As `tasks.train.recalibration` does, by the rows that a model has not learnt."""
        settings, lag = self.matrix.use_case.monitor.recalibration, self.matrix.use_case.time.label_lag
        if settings is None:
            return None
        end = known_by - lag
        start = max(model.cutoff, end - HALF_LIVES * timedelta(days=settings.half_life_days))
        rows = self.matrix.known(start, end, known_by) if start < end else np.zeros(0, np.intp)
        age = (to_moment(end) - self.matrix.prediction_time[rows]) / np.timedelta64(1, "D")
        return weigh_intercept(settings, before, model.score(rows), self.matrix.label[rows], age)

    def _measure_performance(self, model: MatrixModel, as_of: datetime, added: Floats) -> Performance:
        """By the labels known, of what the champion answered in the latest days whose labels have matured."""

        def measure_longer(limited: UseCase) -> Performance:
            return self._judge_window(limited, model, as_of, added, lengths=2)

        use_case = self.matrix.use_case
        return look_longer(use_case, self._judge_window(use_case, model, as_of, added, lengths=1), measure_longer)

    def _judge_window(
        self, use_case: UseCase, model: MatrixModel, as_of: datetime, added: Floats, *, lengths: int
    ) -> Performance:
        """A label that is missing after its lag is taken for one that never comes."""
        window = trailing_window(use_case, as_of, lengths)
        start, end = max(model.as_of, window.start), window.end
        answered, known = self.matrix.between(start, end), self.matrix.known(start, end, as_of)
        score, label = add_to_logits(model.score(known), added[known]), self.matrix.label[known]
        watched = WatchedRows(
            score=score,
            label=label,
            block=(self.matrix.prediction_time[known] - to_moment(start)) // np.timedelta64(1, "D"),
            is_serial=True,
            is_binary=use_case.target.kind == "binary",
        )
        metrics = compute_metrics(use_case.target.kind, score, label) if len(known) else {}
        limited = [name for name in use_case.monitor.limits if name in metrics]
        return judge_performance(
            predicted=max(0, answered.stop - answered.start),
            labelled=len(known),
            metrics=metrics,
            monitor=use_case.monitor,
            bounds=bound_metrics(watched, limited, confidence=look_confidence(use_case.gate.confidence)),
        )

    def _judge(
        self, candidate: int, champion: int, past: tuple[MeasuredEffect, ...], now: int, looks: int
    ) -> Judgement:
        use_case, as_of = self.matrix.use_case, self.matrix.partitions[now].start
        moments = split(use_case, self.matrix.partitions[candidate].start)
        rows = self.matrix.known(moments.holdout_start, split(use_case, as_of).holdout_end, as_of)
        ours, theirs = (self._scored(self._model(place, Fit.JUDGED), rows) for place in (candidate, champion))
        measured = self._measure_intercept(self._model(champion, Fit.JUDGED), moments.cutoff, 0.0)
        if measured and explain_recalibration(measured, use_case.monitor):
            theirs = recalibrate_scores(theirs, measured.fitted.value)
        setting = Setting(
            gate=use_case.gate,
            kind=use_case.target.kind,
            holdout_start=moments.holdout_start,
            block=use_case.gate_block,
            latency_ms=0.0,
            seed=use_case.seed,
            past=past,
            holdout_uses=looks,
        )
        return decide(setting, frozen_rows(use_case, self.matrix.rows.take(rows)), ours, theirs)

    @staticmethod
    def _scored(model: MatrixModel, rows: Places) -> Scored:
        members = model.members[:, rows].astype(np.float64)
        return Scored(version=model.version, cutoff=model.cutoff, scores=members.mean(axis=0), members=members)
