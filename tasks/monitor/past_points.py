"""The points before a partition, as the champion learnt its features: what its window had, and what came since."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adapters.connect import Outside
from features import FeatureSet
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.learnt_features import find_training_snapshot, is_made_by
from tasks.monitor.broken.columns import read_columns
from tasks.monitor.broken.find import MOST_PARTITIONS, find_faults
from tasks.monitor.broken.signs import Fault
from tasks.monitor.observed import Action, OtherDecision

_JUST_AFTER = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class WatchedModel:
    """What a model version learnt: the distributions of its training data, and the definition that made them."""

    version: str
    profile: dict[str, Any]
    definition: FeatureSet


@dataclass(frozen=True, kw_only=True)
class PastPoints:
    """Points [rows] in the order of prediction time, from the beginning of the champion's training window on."""

    table: pa.Table
    begin: datetime
    learnt_until: datetime  # the newest prediction time that it was trained on

    def training_window(self) -> pa.Table:
        """The points of the training window: not the rows fitted, which are those with labels."""
        return self._between(None, self.learnt_until + _JUST_AFTER)

    def find_faults(
        self, use_case: UseCase, partition: Interval, points: pa.Table, history: Sequence[OtherDecision]
    ) -> list[Fault] | None:
        """What is broken in the points of a partition, beside the earlier partitions that nobody blocked.

        None where these are too few, or have too few rows, to tell.

        Who trains on partitions that were blocked takes them for healthy: a change that lasts is left behind that way.
        """
        blocked = {decision.as_of for decision in history if decision.decision == Action.BLOCK}
        if self.table.num_rows == 0 or self.begin >= partition.start:
            return None
        earlier = [
            one
            for one in use_case.grid.covering(Interval(self.begin, partition.start))
            if one.end <= partition.start and (one.end not in blocked or one.start <= self.learnt_until)
        ]
        past = [self._between(one.start, one.end) for one in earlier[-MOST_PARTITIONS:]]
        return find_faults([read_columns(table) for table in past if table.num_rows], read_columns(points))

    def _between(self, start: datetime | None, end: datetime) -> pa.Table:
        times = self.table["prediction_time"]
        inside = pc.less(times, pa.scalar(end, times.type))
        if start is not None:
            inside = pc.and_(inside, pc.greater_equal(times, pa.scalar(start, times.type)))
        return self.table.filter(inside)


def load_past_points(
    use_case: UseCase,
    partition: Interval,
    model: WatchedModel,
    outside: Outside,
    *,
    snapshot_version: str,
) -> PastPoints:
    """The points before a partition, from the snapshot that was scored.

    Of a champion that learnt another definition they are those that it was trained on.
    """
    start, last = (datetime.fromisoformat(model.profile[key]).astimezone(UTC) for key in ("start", "end"))
    if not is_made_by(model.definition, snapshot_version, use_case, outside):
        snapshot_version = find_training_snapshot(use_case, model.version, outside)
    table = dataset.load_points(
        snapshot_version, use_case, outside, start=start, end=max(partition.start, last + _JUST_AFTER)
    )
    return PastPoints(table=table, begin=start, learnt_until=last)
