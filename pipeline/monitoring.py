"""The block of params.yaml about monitoring."""

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field

from pipeline.fields import SHARES, Block, Identifier, Share, WatchedMetric


class Limit(Block):
    """A performance limit; outside it the model is degraded."""

    min: float | None = None
    max: float | None = None

    def _contradictions(self) -> Iterator[str]:
        if self.min is None and self.max is None:
            yield "min: expected at least one of `min` and `max`"
        if self.min is not None and self.max is not None and self.min >= self.max:
            yield f"min: expected less than max ({self.max}), got {self.min}"


class RecalibrationSettings(Block):
    """How the champion's answers are kept right on average, without a training.

    A label counts half after `half_life_days`. `spread` is how far models are off on average, in logits, beforehand; a
    new version is made where it is expected to save `min_gain` of log-loss.
    """

    half_life_days: Annotated[float, Field(gt=0)]
    spread: Annotated[float, Field(gt=0, le=1)]
    min_gain: Annotated[float, Field(gt=0)]


class Monitor(Block):
    """How drift and performance are measured, and when they lead to which decision.

    A change takes effect at the next monitoring. Two things are settled by a training, for as long as its model is
    champion: the `bins`, and which of its weeks had `min_rows`. So much worse than at the gate (`max_loss`, in units of
    `gate.metric`) a champion may be; null: only `limits` count. Without `recalibration` its answers stay as trained.
    """

    min_rows: int = Field(ge=500)
    bins: int = Field(ge=2)
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
    limits: Mapping[WatchedMetric, Limit] = Field(min_length=1)
    max_loss: Annotated[float, Field(ge=0)] | None = None
    recalibration: RecalibrationSettings | None = None
    max_age_days: int = Field(gt=0)
    max_new_rows_share: float = Field(gt=0)
    cooldown_days: int = Field(ge=0)
    monthly_retrains: int = Field(gt=0)
    breaker_refusals: int = Field(gt=0)
    breaker_days: int = Field(gt=0)

    def _contradictions(self) -> Iterator[str]:
        if self.persistence_breaches > self.persistence_of:
            yield (
                f"persistence_breaches: expected at most persistence_of ({self.persistence_of}),"
                f" got {self.persistence_breaches}"
            )
        shares = {*SHARES, "interval_coverage"}
        for name, both in self.limits.items():
            for limit, value in both:
                if name in shares and value is not None and not 0 < value < 1:  # such a limit can never be left
                    yield f"limits.{name}.{limit}: expected more than 0 and less than 1, got {value}"
