"""What a reader of a source hands on: rows that came or went since the step before, and how far the source is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from tasks.build_features.followed_rows import FollowedRow


@dataclass(frozen=True, kw_only=True)
class LogPlace:
    """How far a log was read: a transaction, and the number of its last change."""

    position: int
    number: int


@dataclass(frozen=True, kw_only=True)
class SourceStep:
    """Rows by table and identity, each as it is after the step.

    `gone` are rows that were deleted, of which no more than their identity is told. `known_until`: all that became
    known before it is in this step or one before; None: that is not known. `truncated` are tables that lost all.
    """

    rows: Mapping[tuple[str, str], FollowedRow] = field(default_factory=dict)
    gone: frozenset[tuple[str, str]] = frozenset()
    truncated: frozenset[str] = frozenset()
    known_until: datetime | None = None
    place: LogPlace | None = None

    @property
    def changes_rows(self) -> bool:
        """Whether there is more to it than the time."""
        return bool(self.rows or self.gone or self.truncated)

    def after(self, waiting: "SourceStep") -> "SourceStep":
        """This step, and what one before it told that changed no row."""
        told = [moment for moment in (waiting.known_until, self.known_until) if moment is not None]
        return replace(self, known_until=max(told, default=None), place=self.place or waiting.place)


class SourceReader(Protocol):
    """Reads a source in steps. What was read and not settled is read again after a restart."""

    publication_oid: int | None  # of what is read by the log
    is_reading_tables: bool  # what they hold already, of which a part was handed on

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read(self, timeout_seconds: float) -> SourceStep | None:
        """The next step; None where nothing was told in this time."""

    def settle(self, step: SourceStep) -> None:
        """A step, and all before it, is kept."""
