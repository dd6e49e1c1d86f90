"""The features that a model version learnt: today's, or those of a definition that has changed since.

A dataset is of one definition, the one in features/. What a champion of an older one needs is worked out from the same
clean objects when it is asked, by the definition that its bundle carries, until a champion of the new one has taken
over.
"""

from collections.abc import Iterator
from datetime import datetime

import pyarrow as pa

import features
from adapters.connect import Outside
from features import FeatureSet
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.manifest import clean_files
from tasks.common.ledger import current


class UncomputableFeatures(ValueError):  # noqa: N818  # reads as what it is
    """A model learnt features by a definition that this code computes no more; only a training or other code helps."""


def load_learnt_definition(use_case: UseCase, version: str, outside: Outside) -> FeatureSet:
    """The definition that a model version learnt.

    Raises:
        UncomputableFeatures: this code cannot compute it any more.
        Missing, Corrupt: the bundle is not there, or is not the one that was registered.
    """
    from models.bundle import load_bundle, read_definition

    folder = outside.registry.download_bundle(use_case.name, version)
    digest = load_bundle(folder).card["features"]["digest"]
    try:
        return features.learnt_definition(use_case.name, digest, read_definition(folder))
    except ValueError as error:
        raise UncomputableFeatures(
            f"version {version} of {use_case.name} learnt other features than features/ defines now, and they cannot be"
            f" computed any more ({error}): run {use_case.name}.train, or put the old definition back"
        ) from error


def find_learnt_definition(use_case: UseCase, version: str, outside: Outside) -> FeatureSet | None:
    """The definition that a model version learnt; None where this code cannot compute it any more."""
    try:
        return load_learnt_definition(use_case, version, outside)
    except UncomputableFeatures:
        return None


def iterate_definitions_in_use(use_case: UseCase, outside: Outside) -> Iterator[FeatureSet]:
    """Today's definition, which needs no registry, and then those that the champion and the one before it learnt."""
    yield (today := features.definition(use_case.name))
    champion, digests = current(use_case, outside), {today.digest()}
    for version in (champion.version, champion.previous_version) if champion else ():
        learnt = find_learnt_definition(use_case, version, outside) if version is not None else None
        if learnt is not None and learnt.digest() not in digests:
            digests.add(learnt.digest())
            yield learnt


def load_learnt_points(
    definition: FeatureSet,
    snapshot_version: str,
    use_case: UseCase,
    outside: Outside,
    *,
    start: datetime,
    end: datetime,
) -> pa.Table:
    """Rows to predict by some definition: those of `dataset.load_points`, or worked out from the same clean objects."""
    if definition.digest() == features.definition(use_case.name).digest():
        return dataset.load_points(snapshot_version, use_case, outside, start=start, end=end)
    interval = Interval(start, end)
    snapshot = dataset.find_snapshot(snapshot_version, use_case, outside)
    tables = clean_files(snapshot, interval, outside, definition)
    points, _ = features.build(definition, tables, interval, use_case.time.lead, engine=use_case.engine)
    return points
