"""Events scored again by the versions that answered them: what batch works out afterwards is restated, never served."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import pyarrow as pa

from adapters.connect import Outside
from features import FeatureSet
from pipeline.spec import UseCase
from tasks.build_features.learnt_features import load_learnt_definition
from tasks.score import load_batch_predictor

EventKey = tuple[str, datetime]  # entity key, event time in UTC


def list_event_keys(rows: pa.Table) -> list[EventKey]:
    """The event of each row [n], by its columns `entity_key` and `event_time`."""
    moments: list[datetime] = rows["event_time"].to_pylist()
    return list(zip(rows["entity_key"].to_pylist(), (moment.astimezone(UTC) for moment in moments), strict=True))


def rescore_events(
    use_case: UseCase,
    versions: Mapping[EventKey, str],
    load_features: Callable[[FeatureSet], pa.Table],
    outside: Outside,
) -> dict[EventKey, float]:
    """Each event's score by the version named for it, on the features that are loaded by that version's definition.

    An event that has no features is left out.

    Raises:
        UncomputableFeatures: this code cannot compute any more what a version learnt.
        Missing, Corrupt: a bundle is not there, or is not the one that was registered.
    """
    scores: dict[EventKey, float] = {}
    for version in sorted(set(versions.values())):
        table = load_features(load_learnt_definition(use_case, version, outside))
        every = dict(
            zip(
                list_event_keys(table),
                load_batch_predictor(use_case, version, outside).predict(table).tolist(),
                strict=True,
            )
        )
        scores |= {key: every[key] for key, named in versions.items() if named == version and key in every}
    return scores
