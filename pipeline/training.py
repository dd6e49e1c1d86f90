"""The block of params.yaml about training."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipeline.fields import Block, Metric


class Train(Block):
    """How a candidate is searched for and fitted."""

    metric: Metric
    trials: int = Field(gt=0)
    trials_at_once: int = Field(gt=0)
    workers: int = Field(gt=0)
    rungs: tuple[int, ...] = Field(min_length=1)
    keep_share: Annotated[float, Field(gt=0, le=1)]
    patience_epochs: int = Field(gt=0)
    batch_rows: int = Field(gt=0)
    ensemble_seeds: int = Field(gt=0)
    validation_days: int = Field(gt=0)
    holdout_days: int = Field(gt=0)
    min_rows: int = Field(gt=0)
    networks: tuple[Literal["mlp", "tabm"], ...] = Field(min_length=1)
    hidden_units: tuple[int, ...] = Field(min_length=1)
    layers: tuple[int, ...] = Field(min_length=1)
    dropout: tuple[float, float]
    learning_rate: tuple[float, float]
    weight_decay: tuple[float, float]
    label_smoothing: tuple[float, float]

    def _contradictions(self) -> Iterator[str]:
        for name in ("dropout", "learning_rate", "weight_decay", "label_smoothing"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                yield f"{name}: expected [low, high] with 0 <= low <= high, got [{low}, {high}]"
        if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            yield f"rungs: expected increasing epoch counts from 1 on, got {list(self.rungs)}"
