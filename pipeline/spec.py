"""params.yaml -> frozen, validated use cases; a wrong key or value is named with its path and what was expected."""

import json
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from pipeline.fields import (
    BLOCK_DAYS,
    FEWEST_BLOCKS,
    INTERVAL_METRICS,
    METRICS,
    RANKINGS,
    Block,
    Identifier,
    Kind,
    Metric,
    ResampledBlock,
    default_block,
    refuse_classes,
)
from pipeline.monitoring import Monitor
from pipeline.online import EndpointSettings, ExperimentSettings
from pipeline.params_text import explain, read_blocks
from pipeline.partitions import Grid
from pipeline.source import Source
from pipeline.training import Train


class IntervalSettings(Block):
    """An interval around each answer, that is to hold the label in a share `coverage` of rows.

    The coverage that is watched is wrong from `max_gap` off the declared one on, where that is not by chance.
    """

    coverage: Annotated[float, Field(ge=0.5, le=0.99)]
    max_gap: Annotated[float, Field(gt=0, lt=0.5)]


class Target(Block):
    """What is predicted."""

    kind: Annotated[Kind, BeforeValidator(refuse_classes)]
    meaning: str
    interval: IntervalSettings | None = None

    def _contradictions(self) -> Iterator[str]:
        if self.interval and self.kind != "regression":
            yield (
                f"interval: expected null for a {self.kind} target: its answer is a probability, and says how sure"
                " it is, got an interval"
            )


class Time(Block):
    """The time rule: prediction_time = event_time - lead; a label is mature `label_delay_hours` after the event."""

    lead_minutes: int = Field(ge=0)
    label_delay_hours: int = Field(ge=0)

    @property
    def lead(self) -> timedelta:
        """How long before the event the prediction is made."""
        return timedelta(minutes=self.lead_minutes)

    @property
    def label_delay(self) -> timedelta:
        """This long after the event practically every label has matured."""
        return timedelta(hours=self.label_delay_hours)

    @property
    def label_lag(self) -> timedelta:
        """This long after the prediction practically every label has matured."""
        return self.lead + self.label_delay


class LeakAlarm(Block):
    """A result too good to be true: above (or, for errors, below) this a candidate is refused."""

    metric: Metric
    above: float | None = None
    below: float | None = None

    def _contradictions(self) -> Iterator[str]:
        if (self.above is None) == (self.below is None):
            yield "above: expected exactly one of `above` and `below`"
        elif self.metric in RANKINGS:
            if self.above is None or not 0.5 < self.above < 1:
                yield f"above: expected more than 0.5 and less than 1 for {self.metric}, got {self.above}"
        elif self.below is None or self.below <= 0:
            yield f"below: expected more than 0 for {self.metric}, got {self.below}"

    def is_beyond(self, value: float) -> bool:
        """Whether a result is too good to be true; one that is no number is not."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)


class Gate(Block):
    """When a candidate may replace the champion. A positive effect is the candidate's gain, in the metric's units.

    `block` is what rows are alike within, and resampled by; null: the shortest time that labels come within. Of the
    slices those of `protected` columns are not to be neglected: one that cannot be tested is for a person to weigh.
    """

    metric: Metric
    min_effect: float = Field(ge=0)
    max_loss_chance: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    block: ResampledBlock | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: int = Field(ge=200)
    min_rows: int = Field(gt=0)
    min_days: int = Field(gt=1)
    slices: tuple[Identifier, ...]
    protected: tuple[Identifier, ...] = ()
    min_slice_rows: int = Field(gt=0)
    max_slice_loss: float = Field(gt=0)  # nobody is better everywhere
    max_calibration_gap: float = Field(gt=0)
    max_latency_ms: float = Field(gt=0)
    leak_alarm: LeakAlarm
    approval_hours: int = Field(gt=0)

    def _contradictions(self) -> Iterator[str]:
        if unknown := sorted({*self.protected} - {*self.slices}):
            yield f"protected: expected columns of slices ({', '.join(self.slices) or 'none'}), got {unknown}"


class UseCase(Block):
    """One block of params.yaml. Its name is its file name in every package.

    `paused` says that its DAGs are there, and none runs until a person unpauses it. Airflow reads this as it sees a DAG
    for the first time; later counts what a person set.
    """

    name: Identifier
    title: str
    owner: str
    risk: Literal["low", "high"]
    seed: int = Field(ge=0)
    engine: Literal["duckdb", "spark"]
    paused: bool = Field(default=False, exclude=True)  # no part of what a dataset or a model is made of
    endpoint: EndpointSettings | None
    experiment: ExperimentSettings | None
    target: Target
    time: Time
    source: Source
    train: Train
    gate: Gate
    monitor: Monitor

    def _contradictions(self) -> Iterator[str]:
        kind, known = self.target.kind, METRICS[self.target.kind]
        named = {
            "train.metric": self.train.metric,
            "gate.metric": self.gate.metric,
            "gate.leak_alarm.metric": self.gate.leak_alarm.metric,
            **{f"monitor.limits.{metric}": metric for metric in self.monitor.limits},
        }
        for path, metric in named.items():
            if metric in INTERVAL_METRICS:
                if self.target.interval is None:
                    yield f"{path}: expected target.interval, without which no answer has one, got null"
            elif metric not in known:
                yield f"{path}: expected a metric of a {kind} target ({', '.join(known)}), got {metric!r}"
        held, limit = self.target.interval, self.monitor.limits.get("interval_coverage")
        if held and limit and not (limit.min or 0) < held.coverage < (limit.max or 1):
            yield (
                "monitor.limits.interval_coverage: expected limits on either side of target.interval.coverage"
                f" ({held.coverage}), which would else be outside whenever it is kept, got {limit.min} to {limit.max}"
            )
        if self.endpoint and (self.endpoint.costs is None) == (kind == "binary"):
            expected = "missed and needless" if kind == "binary" else "null"
            yield f"endpoint.costs: expected {expected} for a {kind} target"
        if self.experiment and (self.endpoint is None or self.endpoint.costs is None):
            yield "experiment: expected an endpoint with costs, which is what two versions are compared by"
        if self.source.follow and self.endpoint is None:
            yield "source.follow: expected null where there is no endpoint: nothing asks for what is new"
        if self.endpoint and self.endpoint.answers:
            if self.source.follow is None:
                yield "endpoint.answers: expected null where source.follow is null: nothing tells of new events"
            if self.endpoint.answers.budget > self.time.lead:
                yield (
                    f"endpoint.answers.within_minutes: expected at most time.lead_minutes ({self.time.lead_minutes}),"
                    f" after which the event has come, got {self.endpoint.answers.within_minutes}"
                )
        yield from self._contradictions_of_recalibration()
        yield from self._contradictions_of_the_holdout()

    def _contradictions_of_recalibration(self) -> Iterator[str]:
        if self.monitor.recalibration and self.target.kind != "binary":
            yield (
                f"monitor.recalibration: expected null for a {self.target.kind} target, whose answers are no"
                " probabilities"
            )
        if self.monitor.recalibration and self.risk == "high":
            yield "monitor.recalibration: expected null where risk is high: it changes the champion without a person"

    def _contradictions_of_the_holdout(self) -> Iterator[str]:
        if self.train.holdout_days < self.gate.min_days:
            yield (
                f"train.holdout_days: expected at least gate.min_days ({self.gate.min_days}), or no candidate could"
                f" ever be judged, got {self.train.holdout_days}"
            )
            return
        days = BLOCK_DAYS.get(self.gate_block, 0)
        if self.train.holdout_days < FEWEST_BLOCKS * days:
            yield (
                f"train.holdout_days: expected at least {FEWEST_BLOCKS * days}, {FEWEST_BLOCKS} blocks of"
                f" {days} days (gate.block: {self.gate_block}{'' if self.gate.block else ', as labels take so long'}),"
                f" got {self.train.holdout_days}"
            )

    @property
    def gate_block(self) -> ResampledBlock:
        """What the gate resamples: as declared, else days, or longer blocks where labels take longer."""
        return self.gate.block or default_block(self.time.label_delay_hours)

    @property
    def answers_events(self) -> bool:
        """Whether known events are answered by themselves, so that it is known how many were answered in time."""
        return self.endpoint is not None and self.endpoint.answers is not None

    @property
    def grid(self) -> Grid:
        """The partitions of this use case's data."""
        return Grid(first=self.source.first_partition, days=self.source.partition_days)


def parse_use_cases(text: str, *, origin: str) -> dict[str, UseCase]:
    """Every use case in a params.yaml text.

    Raises:
        ValueError: naming, one a line, the path of each wrong key or value and what was expected there.
    """
    found, problems = {}, []
    for name, block in read_blocks(text, origin=origin).items():
        if not isinstance(block, dict):
            problems.append(f"{name}: expected a block of keys, got {block!r}")
        elif "name" in block:
            problems.append(f"{name}.name: no such key; the block's own key is the name")
        else:
            # As JSON, where strict still takes a list for a tuple and a text for a date, but no text for a number.
            document = json.dumps({"name": name, **block}, default=str)
            try:
                found[str(name)] = UseCase.model_validate_json(document, strict=True)
            except ValidationError as error:
                problems += explain(str(name), error)
    if problems:
        raise ValueError("\n".join([f"{origin} has {len(problems)} wrong place(s):", *problems]))
    return found


@cache
def use_cases(path: Path) -> dict[str, UseCase]:
    """The use cases of a params.yaml file, by name."""
    return parse_use_cases(path.read_text(), origin=str(path))
