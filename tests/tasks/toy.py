"""A use case small enough to train in a second: synthetic rows in the place of a feature dataset."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

import features
from pipeline.handoffs import Snapshot
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.build_features import dataset
from tests.models import synthetic

AS_OF = synthetic.START + timedelta(days=40)
SNAPSHOT = Snapshot(
    use_case="toy", version="a" * 32 + ".dir", git_revision="0" * 40, start=synthetic.START,
    end=AS_OF, partitions=6, rows=0,
)  # fmt: skip


def install(*, rows: int = 6000, seed: int = 0) -> None:
    """Make `toy` a known feature set, and its synthetic rows the answer to every request for rows."""
    flights = features.definition("flights")
    features._DEFINITIONS["toy"] = replace(
        flights,
        name="toy",
        numeric_sql={name: name for name in synthetic.NUMERIC},
        categorical_sql={name: name for name in synthetic.CATEGORICAL},
        **dict.fromkeys(("windows", "joined"), ()),
    )
    everything = synthetic.table(rows, seed=seed)

    def load(
        _version: str, _use_case: UseCase, _outside: object, *, start: datetime, end: datetime, known_by: datetime
    ) -> pa.Table:
        def moment(value: datetime) -> pa.Scalar:
            return pa.scalar(value.astimezone(UTC), pa.timestamp("us", "UTC"))

        inside = pc.and_(
            pc.greater_equal(everything["prediction_time"], moment(start)),
            pc.less(everything["prediction_time"], moment(end)),
        )
        return everything.filter(pc.and_(inside, pc.less_equal(everything["label_time"], moment(known_by))))

    dataset.load_rows = load


def use_case(**train: object) -> UseCase:
    """The shipped use case's block under another name, with small settings for training."""
    shipped = use_cases(REPOSITORY / "params.yaml")["flights"]
    small = {
        "validation_days": 7,
        "holdout_days": 7,
        "min_rows": 500,
        "batch_rows": 128,
        "rungs": (1, 2, 4),
        "trials_at_once": 3,
    }
    small |= {"hidden_units": (16, 32), "layers": (1, 2), "ensemble_seeds": 2, "networks": ("mlp",)}
    return shipped.model_copy(
        update={
            "name": "toy",
            "train": shipped.train.model_copy(update={**small, **train}),
            "gate": shipped.gate.model_copy(update={"slices": ("carrier",)}),
        }
    )
