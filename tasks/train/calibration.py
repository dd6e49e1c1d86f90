"""The interval around a candidate's answers, calibrated by a twin of it that has not seen the validation rows.

The twin has the candidate's configuration and seeds, and learnt what was known before the validation rows. The
candidate learns these, too, so that the newest rows are not given up: it errs by no more than its twin, as a rule, and
what its interval really covers is watched (decision 34).
"""

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from models.bundle import Bundle
from models.ensemble import Ensemble, labels
from models.interval import ConformalInterval, calibrate_interval
from pipeline.spec import Time
from serving.predictor import Predictor
from tasks.train.split import Split
from tasks.train.trainer import split_rows


def calibrate_by_twin(
    twin: Ensemble, rows: pa.Table, moments: Split, *, coverage: float, time: Time
) -> ConformalInterval:
    """The interval of a candidate, from the labelled rows [n] known by the cut-off, which hold those that the twin saw.

    Raises:
        ValueError: too few validation rows had their time to get a label by the cut-off.
    """
    train, validation = split_rows(rows, moments)
    unseen = leave_out_unsettled(validation, moments, label_delay=time.label_delay + time.lead)
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
            f"target.interval: {error}; these are the rows between {moments.train_end:%Y-%m-%d %H:%M} and the cut-off"
            f" {moments.cutoff:%Y-%m-%d %H:%M} (train.validation_days), less the label delay before it"
        ) from error


def leave_out_unsettled(validation: pa.Table, moments: Split, *, label_delay: timedelta) -> pa.Table:
    """The rows predicted so long before the cut-off that practically all like them have their label.

    Of those after, only the ones whose outcome came soon are there: where that is what is predicted, the short ones.
    """
    last = pa.scalar(moments.cutoff - label_delay, validation.schema.field("prediction_time").type)
    return validation.filter(pc.less_equal(validation["prediction_time"], last))
