"""Transactions of a followed source in pieces of bounded size, and what of them may be confirmed; all of it pure."""

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime

from adapters.pgoutput import Relation, RowChange, TransactionBegin, TransactionCommit


@dataclass(frozen=True, kw_only=True)
class TransactionPiece:
    """Changes of one transaction, in order; all its pieces have one position, and only the last may be acknowledged."""

    position: int  # of the commit
    committed_at: datetime  # UTC, by the source's clock
    first_number: int  # of the first change; where there is none, of the one that would come next
    events: tuple[Relation | RowChange, ...]  # a relation comes before the first change that it is about
    is_last: bool


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Everything that was committed before this position was delivered."""

    position: int
    server_time: datetime  # UTC, by the source's clock
    is_caught_up: bool  # the source had nothing more at that time; false: it may still be reading its own log


@dataclass
class PieceBuilder:
    """Cuts a stream of events into pieces of at most `rows_at_once` changes, none of which is empty without need."""

    rows_at_once: int
    _begin: TransactionBegin | None = field(default=None, init=False)
    _events: list[Relation | RowChange] = field(default_factory=list, init=False)
    _first: int = field(default=0, init=False)
    _changes: int = field(default=0, init=False)

    @property
    def is_between_transactions(self) -> bool:
        """Whether whatever began has been committed."""
        return self._begin is None

    def add(self, event: TransactionBegin | TransactionCommit | Relation | RowChange) -> TransactionPiece | None:
        """The piece that this event completes, if it does: its commit, or the change that has no room in it."""
        if isinstance(event, TransactionBegin):
            self._begin, self._first = event, 0
        elif isinstance(event, TransactionCommit):
            last, self._begin = self._cut(is_last=True), None
            return last
        else:
            is_full = isinstance(event, RowChange) and self._changes == self.rows_at_once
            full = self._cut(is_last=False) if is_full else None
            self._events.append(event)
            self._changes += isinstance(event, RowChange)
            return full
        return None

    def _cut(self, *, is_last: bool) -> TransactionPiece:
        assert self._begin is not None  # noqa: S101  # changes come within a transaction
        piece = TransactionPiece(
            position=self._begin.position,
            committed_at=self._begin.committed_at,
            first_number=self._first,
            events=tuple(self._events),
            is_last=is_last,
        )
        self._first, self._changes, self._events = self._first + self._changes, 0, []
        return piece


@dataclass
class Confirmations:
    """What was delivered whole and is not acknowledged yet: nothing else is ever confirmed to the source."""

    confirmed: int = 0
    _delivered: deque[tuple[int, int]] = field(default_factory=deque, init=False)  # position, what confirms it

    def deliver(self, position: int, end: int) -> None:
        """Note that a commit, or a position at which the source was idle (its own end), was handed out."""
        if self._delivered and position == end and self._delivered[-1][0] == self._delivered[-1][1]:
            self._delivered.pop()  # idle still, and further: a caller who lets that pass costs no memory
        self._delivered.append((position, end))

    @property
    def last_end(self) -> int:
        """The end of what was delivered last."""
        return self._delivered[-1][1] if self._delivered else self.confirmed

    def acknowledge(self, answer: TransactionPiece | Idle) -> int:
        """What may be confirmed once this answer, and all before it, is settled.

        The log may go on, with a commit, just where the source was idle: the idle position does not settle that commit.
        """
        with_commit = isinstance(answer, TransactionPiece) and answer.is_last
        while self._delivered:
            position, end = self._delivered[0]
            is_settled = position < answer.position or (
                position == answer.position and (with_commit or position == end)
            )
            if not is_settled:
                break
            self.confirmed = end
            self._delivered.popleft()
        return self.confirmed


def skip_until(piece: TransactionPiece, held: tuple[int, int]) -> TransactionPiece:
    """The piece without the changes up to and with `held`, (position, number) of one that the caller has already."""
    count = sum(isinstance(event, RowChange) for event in piece.events)
    events = tuple(
        event for event in piece.events if isinstance(event, Relation) or (piece.position, event.number) > held
    )
    left = sum(isinstance(event, RowChange) for event in events)
    return replace(piece, events=events, first_number=piece.first_number + count - left)
