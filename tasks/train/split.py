"""Which rows a training asked for at a data time may use: train, then validation, then a holdout only the gate sees.

A row is of a part only if its label had its time to come by the part's end. Of the newest rows those whose outcome came
soon have a label already; with these alone a model would learn, and be judged by, what ends soon.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.spec import UseCase


@dataclass(frozen=True, kw_only=True)
class Split:
    """Moments that part the rows. Each part's labels are those known at its end."""

    train_until: datetime  # the search fits on predictions made before,
    train_end: datetime  # by labels known by then, and validates on predictions made from then on
    fit_until: datetime  # validation and refit end with the predictions made before,
    cutoff: datetime  # by labels known by then; the holdout starts
    holdout_end: datetime  # the holdout is predictions made before, by labels known at `as_of`

    @property
    def holdout_start(self) -> datetime:
        """The holdout is predictions made from then on: what was known by then may be learnt from."""
        return self.cutoff


def split(use_case: UseCase, as_of: datetime) -> Split:
    """The split of a training asked for at `as_of`, by the use case's label lag, holdout and validation days."""
    lag = use_case.time.label_lag
    holdout_end = as_of - lag
    cutoff = holdout_end - timedelta(days=use_case.train.holdout_days)
    train_end = cutoff - lag - timedelta(days=use_case.train.validation_days)
    return Split(
        train_until=train_end - lag,
        train_end=train_end,
        fit_until=cutoff - lag,
        cutoff=cutoff,
        holdout_end=holdout_end,
    )
