"""The product's own policy on a model matrix: what its triage and its gate decide, partition by partition.

Observations are made from kept scores by the product's functions, as its DAGs make them, and every decision is its own;
but performance is restated, blocks of a window are days, and nothing is expected before labels come.
The gate compares judged models, which know nothing of the holdout. What answers is the promoted model itself, or its
refitted twin (`deployed`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from benchmarks.model_matrix import Fit, MatrixModel, ModelMatrix, Places, to_moment
from benchmarks.retraining import Course
from models.metrics import compute_metrics
from pipeline.handoffs import ReleaseOutcome, VerdictAnswer
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.monitor.drift import SCORE, FeatureDrift, measure_drift
from tasks.monitor.performance import trailing_window
from tasks.monitor.performance_bounds import WatchedRows, bound_metrics
from tasks.monitor.performance_limits import Performance, judge_performance, look_confidence, look_longer
from tasks.monitor.triage import Action, Observed, OtherDecision, RetrainState, breached_features, make_decision
from tasks.promote.bootstrap import compare
from tasks.promote.evaluate import frozen_rows
from tasks.promote.expected_effect import MeasuredEffect
from tasks.promote.gate import Judgement, decide
from tasks.promote.gate_checks import Scored, Setting
from tasks.train.split import split

_OUTCOMES = {
    VerdictAnswer.PROMOTE: ReleaseOutcome.PROMOTED,
    VerdictAnswer.HOLD: ReleaseOutcome.HELD,
    VerdictAnswer.REFUSE: ReleaseOutcome.REFUSED,
    VerdictAnswer.NEED_MORE_DATA: ReleaseOutcome.NEED_MORE_DATA,
}
_LATER = timedelta(days=28)  # so long after a promotion is looked whether it was right


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveCourse:
    """What the product did: a course, and for each partition what was decided at its end, in words."""

    course: Course
    decisions: Mapping[str, str]


@dataclass
class LivePolicy:
    """Plays a matrix; what was measured once is not measured again for another start."""

    matrix: ModelMatrix
    deployed: Fit
    _drifts: dict[tuple[int, int], Sequence[FeatureDrift]] = field(default_factory=dict)
    _judgements: dict[tuple[int, int, tuple[MeasuredEffect, ...]], Judgement] = field(default_factory=dict)
    _courses: dict[int, LiveCourse] = field(default_factory=dict)
    _surely_worse: dict[tuple[int, int], bool | None] = field(default_factory=dict)

    def play(self, start: int) -> LiveCourse:
        """From a first champion, the model of partition `start`, to the end."""
        if start not in self._courses:
            self._courses[start] = self._play(start)
        return self._courses[start]

    def _play(self, start: int) -> LiveCourse:
        partitions = self.matrix.partitions
        champion, trainings = start, 0
        serving, decisions = [], {}
        history: list[OtherDecision] = []
        effects: list[MeasuredEffect] = []  # what candidates showed so far
        for place in range(start, len(partitions)):
            serving.append(champion)
            as_of = partitions[place].end
            observed = self._observe(champion, place)
            decision = make_decision(observed, history, self.matrix.use_case.monitor)
            outcome, words = None, f"{decision.decision}: {'; '.join(decision.reasons)}"
            retrains = decision.decision == Action.RETRAIN and place + 1 < len(partitions)
            if retrains:
                trainings += 1
                judgement = self.judge(place + 1, champion, tuple(effects))
                outcome = _OUTCOMES[judgement.answer]
                if "effect" in judgement.evidence:
                    measured = judgement.evidence["effect"]
                    effects.append(MeasuredEffect(measured["value"], measured["standard_error"]))
                words += f" -> {outcome}: {'; '.join(judgement.reasons)}"
            decisions[f"{partitions[place].start:%Y-%m-%d}"] = f"{self._model(champion).version} {words}"
            history.append(
                OtherDecision(
                    as_of=as_of,
                    model_version=observed.model_version,
                    decision=decision.decision,
                    breached=breached_features(observed.drifts),
                    state=RetrainState.DONE if retrains else None,
                    outcome=outcome,
                )
            )
            champion = place + 1 if outcome == ReleaseOutcome.PROMOTED else champion
        course = Course(start=start, serving=np.array(serving, np.intp), trainings=trainings)
        return LiveCourse(course=course, decisions=decisions)

    def judge(self, candidate: int, champion: int, past: tuple[MeasuredEffect, ...] = ()) -> Judgement:
        """The gate's answer to the model of a partition, as of its beginning, after what earlier candidates showed."""
        key = candidate, champion, past
        if key not in self._judgements:
            self._judgements[key] = self._judge(candidate, champion, past)
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
            self._surely_worse[key] = self._look_back(old, new)
        return self._surely_worse[key]

    def _model(self, place: int, fit: Fit | None = None) -> MatrixModel:
        return self.matrix.models[self.matrix.partitions[place].start, fit or self.deployed]

    def _partition_rows(self, partition: Interval) -> slice:
        return self.matrix.between(partition.start, partition.end)

    def _observe(self, champion: int, place: int) -> Observed:
        model, as_of = self._model(champion), self.matrix.partitions[place].end
        fresh = (self.matrix.label_time > to_moment(model.as_of)) & (self.matrix.label_time <= to_moment(as_of))
        return Observed(
            as_of=as_of,
            model_version=model.version,
            drifts=self.measure_drifts(champion, place),
            performance=self._measure_performance(model, as_of),
            born_at=model.as_of,
            trained_rows=model.profile["rows"],
            new_rows=int(np.count_nonzero(fresh)),
        )

    def _measure_performance(self, model: MatrixModel, as_of: datetime) -> Performance:
        """By the labels known, of what the champion answered in the latest days whose labels have matured."""

        def measure_longer(limited: UseCase) -> Performance:
            return self._judge_window(limited, model, as_of, lengths=2)

        use_case = self.matrix.use_case
        return look_longer(use_case, self._judge_window(use_case, model, as_of, lengths=1), measure_longer)

    def _judge_window(self, use_case: UseCase, model: MatrixModel, as_of: datetime, *, lengths: int) -> Performance:
        """A label that is missing after its lag is taken for one that never comes."""
        window = trailing_window(use_case, as_of, lengths)
        start, end = max(model.as_of, window.start), window.end
        answered, known = self.matrix.between(start, end), self.matrix.known(start, end, as_of)
        score, label = model.score(known), self.matrix.label[known]
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

    def _judge(self, candidate: int, champion: int, past: tuple[MeasuredEffect, ...]) -> Judgement:
        use_case, as_of = self.matrix.use_case, self.matrix.partitions[candidate].start
        moments = split(use_case, as_of)
        rows = self.matrix.known(moments.holdout_start, moments.holdout_end, as_of)
        ours, theirs = (self._scored(self._model(place, Fit.JUDGED), rows) for place in (candidate, champion))
        setting = Setting(
            gate=use_case.gate,
            kind=use_case.target.kind,
            holdout_start=moments.holdout_start,
            block=use_case.gate_block,
            latency_ms=0.0,
            seed=use_case.seed,
            past=past,
        )
        return decide(setting, frozen_rows(use_case, self.matrix.rows.take(rows)), ours, theirs)

    @staticmethod
    def _scored(model: MatrixModel, rows: Places) -> Scored:
        members = model.members[:, rows].astype(np.float64)
        return Scored(version=model.version, cutoff=model.cutoff, scores=members.mean(axis=0), members=members)

    def _look_back(self, old: int, new: int) -> bool | None:
        start = self.matrix.partitions[new].start
        if start + _LATER > self.matrix.partitions[-1].end:
            return None
        gate = self.matrix.use_case.gate
        rows = self.matrix.known(start, start + _LATER)
        effect = compare(
            gate.metric,
            label=self.matrix.label[rows],
            candidate=self._model(new).score(rows),
            champion=self._model(old).score(rows),
            block=self.matrix.prediction_time[rows].astype("datetime64[D]"),
            correlation=None,
            confidence=gate.confidence,
            resamples=gate.resamples,
            seed=self.matrix.use_case.seed,
        )
        return effect.value < -gate.min_effect and effect.high < 0
