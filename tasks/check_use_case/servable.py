"""What can be checked without the source: what is declared, and events of a built dataset, asked as a client asks."""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime

from adapters.connect import Outside
from expectations.vocabulary import Suite
from features import FeatureSet
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.manifest import clean_files
from tasks.check_use_case.declared_check import (
    check_blanks,
    check_definition,
    check_suites,
    find_definition,
    find_suites,
)
from tasks.check_use_case.mistakes import Mistake
from tasks.check_use_case.online_check import check_online
from tasks.check_use_case.params_check import check_training_params


def check_declared(use_case: UseCase) -> tuple[list[Mistake], FeatureSet | None, Mapping[str, Suite]]:
    """What is wrong with a use case's modules; its features, if it has any, and its suites."""
    declared, without_suites = find_suites(use_case)
    definition, without_features = find_definition(use_case)
    found = [*without_suites, *without_features, *check_blanks(use_case)]
    if not without_suites:
        found += check_suites(use_case, declared)
    if definition is not None and not without_suites:
        found += check_definition(use_case, definition, declared)
    return found, definition, declared


def require_servable(use_case: UseCase, snapshot: Snapshot, as_of: datetime, outside: Outside) -> None:
    """No search begins on what could not be judged, or would answer otherwise than batch.

    Of `make check-use-case` this is what bears on a training and what comes of it. It reads the dataset, which is of
    today's features, and no source. Keys that contradict each other are told and stop nothing: what they make
    impossible shows on the rows, and what trained yesterday trains today.

    Raises:
        ValueError: naming each mistake with its place and what to set; a second attempt would find the same.
    """
    began = time.monotonic()
    for advice in check_training_params(use_case, as_of.date()):
        print(advice.describe(use_case.name, outside.settings.params), flush=True)
    found = list(_check_servable(use_case, snapshot, outside))
    if found:
        told = "\n".join(each.describe(use_case.name, outside.settings.params) for each in found)
        raise ValueError(f"{use_case.name}: no search begins, {len(found)} to be changed:\n{told}")
    print(f"nothing stands against a search of {use_case.name} ({time.monotonic() - began:.1f} s)", flush=True)


def _check_servable(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> Iterator[Mistake]:
    """The cheapest first; events of the latest partition that has any are asked once nothing else is wrong."""
    found, definition, _ = check_declared(use_case)
    yield from found
    if found or definition is None or use_case.endpoint is None:
        return
    for latest in reversed(use_case.grid.covering(Interval(snapshot.start, snapshot.end))):
        points = dataset.load_points(snapshot.version, use_case, outside, start=latest.start, end=latest.end)
        if points.num_rows:
            tables = clean_files(snapshot, latest, outside, definition)
            yield from check_online(use_case, definition, tables, kept=latest, asked_in=latest, points=points)
            return
