"""The features that a model version learnt: today's, or those of a definition that has changed since.

A dataset is of one definition: that of features/ when it was made. What a version of another one needs is worked out
from the same clean objects when it is asked, by the definition that its bundle carries, until a champion of the new one
has taken over.
"""

import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa

import features
from adapters.connect import Outside
from adapters.errors import Corrupt
from features import FeatureSet
from models.bundle_card import read_card, read_definition
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.manifest import clean_files

logger = logging.getLogger(__name__)

# What is champion and what a rollback would bring back; what answers, and what the watch would go back to; what is on
# its way to the server, and the arms of an experiment.
_IN_USE = """
select unnest(array[version, previous_version]) as version from champions where use_case = %(use_case)s
union select unnest(array[version, previous_version]) from (
    select * from deployments where use_case = %(use_case)s and outcome = 'full' order by position desc limit 1) latest
union select version from deployments where use_case = %(use_case)s and outcome is null
union select unnest(array[control, treatment]) from experiments where use_case = %(use_case)s and settled_at is null
order by version desc"""


class UncomputableFeatures(ValueError):  # noqa: N818  # reads as what it is
    """What a model learnt cannot be computed any more, by this code or from these data; training anew helps."""


def load_learnt_definition(use_case: UseCase, version: str, outside: Outside) -> FeatureSet:
    """The definition that a model version learnt.

    Raises:
        UncomputableFeatures: this code cannot compute it any more, or the use case takes a table no more.
        Missing, Corrupt: the bundle is not there, or is not the one that was registered.
    """
    return read_learnt_definition(use_case, version, outside.registry.download_bundle(use_case.name, version))


def read_learnt_definition(use_case: UseCase, version: str, folder: Path) -> FeatureSet:
    """The definition that a model version learnt, from its downloaded bundle.

    Raises:
        UncomputableFeatures: as `load_learnt_definition`.
    """
    digest = read_card(folder)["features"]["digest"]
    try:
        definition = features.learnt_definition(use_case.name, digest, read_definition(folder))
        if untaken := sorted(definition.sources.keys() - use_case.source.tables.keys()):
            raise ValueError(f"{use_case.name} takes no table {', '.join(untaken)}")  # noqa: TRY301  # told alike
    except ValueError as error:
        raise UncomputableFeatures(
            f"version {version} of {use_case.name} learnt other features than features/ defines now, and they cannot be"
            f" computed any more ({error}): run {use_case.name}.train, or put the old definition back"
        ) from error
    return definition


def find_learnt_definition(use_case: UseCase, version: str, outside: Outside) -> FeatureSet | None:
    """The definition that a model version learnt; None where this code cannot compute it any more."""
    try:
        return load_learnt_definition(use_case, version, outside)
    except UncomputableFeatures:
        return None


def find_training_snapshot(use_case: UseCase, version: str, outside: Outside) -> str:
    """The dataset version that a model version was trained on."""
    card = read_card(outside.registry.download_bundle(use_case.name, version))
    return str(card["data"]["snapshot_version"])


def iterate_definitions_in_use(use_case: UseCase, outside: Outside, lost: list[str]) -> Iterator[FeatureSet]:
    """Today's definition, which needs no registry, and then those of every version that answers or may come to.

    `lost` is told of versions whose bundle cannot be read: what they learnt is not known.
    """
    yield (today := features.definition(use_case.name))
    digests = {today.digest()}
    for row in outside.warehouse.query(_IN_USE, {"use_case": use_case.name}):
        if row["version"] is None:
            continue
        try:
            learnt = find_learnt_definition(use_case, row["version"], outside)
        except (ValueError, Corrupt) as error:
            logger.warning("what version %s learnt is not known: %s", row["version"], error)
            lost.append(row["version"])
            continue
        if learnt is not None and learnt.digest() not in digests:
            digests.add(learnt.digest())
            yield learnt


def is_made_by(definition: FeatureSet, snapshot_version: str, use_case: UseCase, outside: Outside) -> bool:
    """Whether a dataset has the features of a definition."""
    made_by = dataset.find_features_digest(snapshot_version, use_case, outside)
    return definition.digest() == (made_by or features.definition(use_case.name).digest())


def require_todays_features(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> None:
    """Nothing is trained on a dataset of another definition than today's.

    Raises:
        ValueError: features/ has changed since the dataset was made.
    """
    if not is_made_by(features.definition(use_case.name), snapshot.version, use_case, outside):
        raise ValueError(
            f"features/ of {use_case.name} changed after dataset version {snapshot.version} was made:"
            f" run {use_case.name}.build_features, and then train"
        )


def load_learnt_points(  # as `dataset.load_points`, and by which definition
    definition: FeatureSet,
    snapshot_version: str,
    use_case: UseCase,
    outside: Outside,
    *,
    start: datetime,
    end: datetime,
) -> pa.Table:
    """Rows to predict by some definition: those of `dataset.load_points`, or worked out from the same clean objects.

    Raises:
        UncomputableFeatures: the clean data no longer have what an older definition reads.
    """
    if is_made_by(definition, snapshot_version, use_case, outside):
        return dataset.load_points(snapshot_version, use_case, outside, start=start, end=end)
    interval = Interval(start, end)
    snapshot = dataset.find_snapshot(snapshot_version, use_case, outside)
    try:
        tables = clean_files(snapshot, interval, outside, definition)
        points, _ = features.build(definition, tables, interval, use_case.time.lead, engine=use_case.engine)
    except (ValueError, duckdb.Error) as error:
        raise UncomputableFeatures(
            f"the features {definition.digest()[:12]} of {use_case.name} cannot be computed from the clean data of"
            f" {interval} ({error}): run {use_case.name}.train, or put the old definition back"
        ) from error
    return points
