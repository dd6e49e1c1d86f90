"""In the benchmark of drift, what has moved is what both say has moved."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from benchmarks.drift import evidently, halves
from pipeline.spec import UseCase
from tasks.build_features.profile import make_profile
from tasks.monitor.drift import measure_drift


def test_both_find_the_feature_that_moved(use_case: UseCase) -> None:
    draw, count = np.random.default_rng(1), 6000
    moment = pa.array([datetime(2013, 1, 1 + i * 28 // count, tzinfo=UTC) for i in range(count)])
    moved = draw.normal(size=count) + np.where(np.arange(count) < count // 2, 0, 2)
    table = pa.table({"prediction_time": moment, "label_time": moment, "same": draw.normal(size=count), "moved": moved})
    reference, judged = halves(table, 5000)
    assert (reference.num_rows, judged.num_rows) == (5000, 5000)
    ours = {
        m.feature: m.value
        for m in measure_drift(make_profile(reference, use_case), judged, use_case.monitor)
        if m.measure == "psi"
    }
    theirs = evidently(reference, judged, ["same", "moved"])
    for found in (ours, theirs):
        assert found["same"] is not None
        assert found["moved"] is not None
        assert found["same"] < 0.1
        assert found["moved"] > 1
