"""The rows that the online store held when an answer was given, beside those that batch has now.

The store holds a dataset's clean rows, and over them what the stream was told in steps up to some number: that is how
it is written, to the byte (decision 24), so what it held can be put together again from what is kept.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from adapters.connect import Outside
from expectations import suites
from features import FeatureSet
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow, Identities, encode_rows
from tasks.build_features.followed_versions import RowVersion
from tasks.build_features.manifest import CleanObject, clean_objects
from tasks.ingest.check import to_canonical

Place = tuple[str, str]  # table, identity
Objects = Mapping[str, Mapping[str, CleanObject]]  # table -> partition key -> what it is of


@dataclass(frozen=True, kw_only=True)
class RowDifference:
    """A row that the store had otherwise than batch; None: one of them did not have it."""

    table: str
    identity: str
    served: FollowedRow | None
    batch: FollowedRow | None

    @property
    def place(self) -> Place:
        """What tells the row apart."""
        return self.table, self.identity

    @property
    def rows(self) -> list[FollowedRow]:
        """The one or two that there are."""
        return [row for row in (self.served, self.batch) if row is not None]

    @property
    def available_at(self) -> datetime:
        """From when on it makes a difference."""
        return min(row.available_at for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class DatasetObjects:
    """The clean objects of a dataset version that a definition reads for an interval, and where the version ends."""

    snapshot: Snapshot
    objects: Objects


def read_objects(snapshot: Snapshot, interval: Interval, definition: FeatureSet, outside: Outside) -> DatasetObjects:
    """As `clean_objects` gives them, by partition."""
    inputs = clean_objects(snapshot, interval, outside, definition)
    return DatasetObjects(
        snapshot=snapshot, objects={table: {item.key: item for item in items} for table, items in inputs.items()}
    )


class CleanRows:
    """Clean objects as rows that are told apart; each is read once."""

    def __init__(self, use_case: UseCase, identities: Identities, outside: Outside) -> None:
        self._use_case, self._identities, self._outside = use_case, identities, outside
        self._read: dict[str, list[FollowedRow]] = {}

    def load_table(self, table: str, item: CleanObject) -> pa.Table:
        """The rows of an object, in the canonical schema."""
        rows = pq.read_table(self._outside.lake.local(item.uri))
        return to_canonical(rows, suites(self._use_case.name)[table])

    def list_rows(self, table: str, item: CleanObject) -> list[FollowedRow]:
        """The same, in the same order, as they are kept when they are followed."""
        if item.uri not in self._read:
            rows = self.load_table(table, item)
            self._read[item.uri] = encode_rows(self._use_case, table, rows, self._identities[table])
        return self._read[item.uri]


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """What is kept of the rows of a definition: batch's objects, and what the stream was told, in order."""

    clean: CleanRows
    batch: DatasetObjects
    versions: Sequence[RowVersion]

    @cached_property
    def by_place(self) -> Mapping[Place, Sequence[RowVersion]]:
        """The versions of each row, in the order in which they were told."""
        found = defaultdict[Place, list[RowVersion]](list)
        for version in self.versions:
            found[version.table, version.identity].append(version)
        return found

    @cached_property
    def first_told(self) -> Mapping[str, Sequence[RowVersion]]:
        """Of each table the first version of every row whose time is kept, in the order in which they were told."""
        found = defaultdict[str, list[RowVersion]](list)
        for first, *_ in self.by_place.values():
            if first.available_at is not None and first.step.known_before is not None:
                found[first.table].append(first)
        return {table: sorted(rows, key=lambda row: row.version) for table, rows in found.items()}
