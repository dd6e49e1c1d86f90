"""params.yaml -> frozen, validated use cases; a wrong key or value is named with its path and what was expected."""

from collections.abc import Mapping
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.partitions import Grid


def _identifier(name: str) -> str:
    if not name.replace("_", "a").isalnum() or not name[0].isalpha() or name != name.lower() or not name.isascii():
        raise ValueError(f"expected lower-case letters, digits and underscores, starting with a letter; got {name!r}")
    return name


Identifier = Annotated[str, AfterValidator(_identifier)]
Share = Annotated[float, Field(ge=0, le=1)]
Metric = Literal["log_loss", "auc", "pr_auc", "brier", "calibration_gap", "mae", "rmse", "bias"]


class Block(BaseModel):
    """A block of params.yaml: frozen, and no key is ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Table(Block):
    """One source table. Rows belong to the partition in which they became known (`available_at`)."""

    key: tuple[Identifier, ...] = Field(min_length=1)
    available_at: Identifier
    event_time: Identifier
    min_rows: int = Field(ge=0)
    max_rows: int = Field(gt=0)
    max_quarantined_share: Share

    @model_validator(mode="after")
    def _rows(self) -> "Table":
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is above max_rows {self.max_rows}")
        return self


class Source(Block):
    """Where rows come from and by which grid they are taken. Row limits of a table are per partition.

    `last_partition` is for a source that has ended: nothing is scheduled after it. None: rows still arrive.
    """

    first_partition: date
    last_partition: date | None
    partition_days: int = Field(gt=0)
    cron: str
    tables: Mapping[Identifier, Table] = Field(min_length=1)


class Target(Block):
    """What is predicted."""

    kind: Literal["binary", "regression"]
    meaning: str


class Time(Block):
    """The time rule: prediction_time = event_time - lead; a label is mature `label_delay_hours` after it."""

    lead_minutes: int = Field(ge=0)
    history_days: int = Field(gt=0)
    label_delay_hours: int = Field(ge=0)

    @property
    def lead(self) -> timedelta:
        """How long before the event the prediction is made."""
        return timedelta(minutes=self.lead_minutes)

    @property
    def history(self) -> timedelta:
        """The longest look-back any feature takes."""
        return timedelta(days=self.history_days)

    @property
    def label_delay(self) -> timedelta:
        """After this, practically every label has matured."""
        return timedelta(hours=self.label_delay_hours)


class Train(Block):
    """How a candidate is searched for and fitted."""

    metric: Metric
    trials: int = Field(gt=0)
    rungs: tuple[int, ...] = Field(min_length=1)
    keep_share: Annotated[float, Field(gt=0, le=1)]
    patience_epochs: int = Field(gt=0)
    batch_rows: int = Field(gt=0)
    ensemble_seeds: int = Field(gt=0)
    validation_days: int = Field(gt=0)
    holdout_days: int = Field(gt=0)
    min_rows: int = Field(gt=0)
    hidden_units: tuple[int, ...] = Field(min_length=1)
    layers: tuple[int, ...] = Field(min_length=1)
    dropout: tuple[float, float]
    learning_rate: tuple[float, float]
    weight_decay: tuple[float, float]

    @model_validator(mode="after")
    def _increasing(self) -> "Train":
        for name in ("dropout", "learning_rate", "weight_decay"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}: expected [low, high] with 0 <= low <= high, got [{low}, {high}]")
        if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise ValueError(f"rungs: expected increasing epoch counts from 1 on, got {list(self.rungs)}")
        return self


class LeakAlarm(Block):
    """A result too good to be true: above (or, for errors, below) this a candidate is refused."""

    metric: Metric
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one(self) -> "LeakAlarm":
        if (self.above is None) == (self.below is None):
            raise ValueError("expected exactly one of `above` and `below`")
        return self


class Gate(Block):
    """When a candidate may replace the champion. Effects are champion minus candidate, in units of the metric."""

    metric: Metric
    min_effect: float = Field(ge=0)
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: int = Field(ge=200)
    min_rows: int = Field(gt=0)
    min_days: int = Field(gt=1)
    slices: tuple[Identifier, ...]
    min_slice_rows: int = Field(gt=0)
    max_slice_loss: float = Field(ge=0)
    max_calibration_gap: float = Field(gt=0)
    max_latency_ms: float = Field(gt=0)
    leak_alarm: LeakAlarm
    approval_hours: int = Field(gt=0)


class Limit(Block):
    """A performance limit; outside it the model is degraded."""

    min: float | None = None
    max: float | None = None


class Monitor(Block):
    """How drift and performance are measured, and when they lead to which decision."""

    min_rows: int = Field(ge=500)
    bins: int = Field(ge=2)
    calibration_quantile: Annotated[float, Field(gt=0.5, le=1)]
    threshold_margin: float = Field(ge=1)
    min_threshold_psi: float = Field(gt=0)
    persistence_breaches: int = Field(gt=0)
    persistence_of: int = Field(gt=0)
    min_drifted_features: int = Field(gt=0)
    broken_missing_share: Share
    structural_features: tuple[Identifier, ...]
    performance_days: int = Field(gt=0)
    min_labelled: int = Field(gt=0)
    min_coverage: Share
    limits: Mapping[Metric, Limit]
    max_age_days: int = Field(gt=0)
    max_new_rows_share: float = Field(gt=0)
    cooldown_days: int = Field(ge=0)
    monthly_retrains: int = Field(gt=0)
    breaker_refusals: int = Field(gt=0)
    breaker_days: int = Field(gt=0)

    @model_validator(mode="after")
    def _persistence(self) -> "Monitor":
        if self.persistence_breaches > self.persistence_of:
            raise ValueError("persistence_breaches is above persistence_of")
        return self


class UseCase(Block):
    """One block of params.yaml. Its name is its file name in every package."""

    name: Identifier
    title: str
    owner: str
    risk: Literal["low", "high"]
    seed: int = Field(ge=0)
    endpoint: str | None
    target: Target
    time: Time
    source: Source
    train: Train
    gate: Gate
    monitor: Monitor

    @property
    def grid(self) -> Grid:
        """The partitions of this use case's data."""
        return Grid(first=self.source.first_partition, days=self.source.partition_days)


def parse_use_cases(text: str, *, origin: str) -> dict[str, UseCase]:
    """Every use case in a params.yaml text.

    Raises:
        ValueError: naming, one a line, the path of each wrong key or value and what was expected there.
    """
    try:
        blocks = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{origin} is not YAML: {error}") from error
    if not isinstance(blocks, dict) or not blocks:
        raise ValueError(f"{origin}: expected one block per use case, got {type(blocks).__name__}")
    found, problems = {}, []
    for name, block in blocks.items():
        if not isinstance(block, dict):
            problems.append(f"{name}: expected a block of keys, got {block!r}")
            continue
        try:
            found[str(name)] = UseCase(name=name, **block)
        except ValidationError as error:
            problems += [
                f"{'.'.join(map(str, (name, *p['loc'])))}: {p['msg']}, got {p['input']!r}" for p in error.errors()
            ]
        except TypeError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("\n".join([f"{origin} has {len(problems)} wrong place(s):", *problems]))
    return found


@cache
def use_cases(path: Path) -> dict[str, UseCase]:
    """The use cases of a params.yaml file, by name."""
    return parse_use_cases(path.read_text(), origin=str(path))
