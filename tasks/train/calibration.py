"""The interval around a candidate's answers, calibrated by a twin of it that has not seen the validation rows.

The twin has the candidate's configuration and seeds, and learnt what was known before the validation rows. The
candidate learns these, too, so that the newest rows are not given up: it errs by no more than its twin, as a rule, and
what its interval really covers is watched (decision 34).
"""

import pyarrow as pa

from models.bundle import Bundle
from models.ensemble import Ensemble, labels
from models.interval import ConformalInterval, calibrate_interval
from serving.predictor import Predictor
from tasks.train.split import Split
from tasks.train.trainer import split_rows


def calibrate_by_twin(twin: Ensemble, rows: pa.Table, moments: Split, *, coverage: float) -> ConformalInterval:
    """The interval of a candidate, from the labelled rows [n] known by the cut-off, which hold those that the twin saw.

    Raises:
        ValueError: too few validation rows.
    """
    train, unseen = split_rows(rows, moments)
    predictor = Predictor(Bundle(card={}, encoder=twin.encoder, members=twin.members))
    try:
        return calibrate_interval(
            seen_score=predictor.predict(train),
            seen_label=labels(train),
            unseen_score=predictor.predict(unseen),
            unseen_label=labels(unseen),
            coverage=coverage,
        )
    except ValueError as error:
        raise ValueError(
            f"target.interval: {error}; these are the rows between {moments.train_end:%Y-%m-%d %H:%M} and"
            f" {moments.fit_until:%Y-%m-%d %H:%M} (train.validation_days)"
        ) from error
