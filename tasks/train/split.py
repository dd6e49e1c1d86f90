"""Which rows a training asked for at a data time may use: train, then validation, then a holdout only the gate sees."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.spec import UseCase


@dataclass(frozen=True, kw_only=True)
class Split:
    """Moments that part the rows. A label is used for fitting only if it was known at the moment that ends its part."""

    train_end: datetime  # the search fits on labels known by then, and validates on predictions made from then on
    cutoff: datetime  # the refit uses every label known by then
    holdout_start: datetime
    holdout_end: datetime  # nearly every label of predictions made before has matured at `as_of`


def split(use_case: UseCase, as_of: datetime) -> Split:
    """The split of a training asked for at `as_of`, by the use case's label delay, holdout and validation days."""
    holdout_end = as_of - use_case.time.label_delay
    holdout_start = holdout_end - timedelta(days=use_case.train.holdout_days)
    cutoff = holdout_start - use_case.time.label_delay
    return Split(
        train_end=cutoff - timedelta(days=use_case.train.validation_days),
        cutoff=cutoff,
        holdout_start=holdout_start,
        holdout_end=holdout_end,
    )
