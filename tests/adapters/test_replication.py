"""A followed source loses nothing and confirms nothing unasked, whatever happens to follower, slot and server."""

import os
import signal
import struct
from collections import deque
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
from psycopg2.extensions import cursor, make_dsn

from adapters.errors import Missing, PublicationGone, Refused, SlotGone, SlotInUse, Unavailable
from adapters.pgoutput import Relation, RowChange
from adapters.replication import ReplicationFollower
from adapters.replication_pieces import Confirmations, Idle, TransactionPiece, skip_until
from adapters.replication_setup import create_publication
from adapters.replication_stream import ReplicationStream
from adapters.retrying import retry_call, wait_until
from infra.local.stack import Stack
from tests.adapters.conftest import PATIENCE_SECONDS, TABLE, FollowedSource, following, ids, read_state, read_until

# Transactions


def test_transactions_come_whole_in_the_order_of_their_commits_with_when_they_were_committed(
    followed: FollowedSource,
) -> None:
    with closing(followed.open()) as other, other.cursor() as at, following(followed) as follower:
        at.execute("insert into t values (1)")
        before = datetime.now(UTC)
        followed.run("insert into t values (2)")
        other.commit()
        first, second = followed.read_all(follower)
        assert ids([first, second]) == [["2"], ["1"]]
        assert first.position < second.position
        assert before - timedelta(seconds=5) < first.committed_at <= second.committed_at
        assert (first.first_number, first.is_last, second.first_number, second.is_last) == (0, True, 0, True)
        assert isinstance(first.events[0], Relation)
        assert [type(event) for event in second.events] == [RowChange]


def test_a_transaction_larger_than_a_piece_comes_in_pieces_that_know_its_commit(followed: FollowedSource) -> None:
    with following(followed, rows_at_once=4) as follower:
        followed.run("insert into t select generate_series(1, 10)")
        pieces = followed.read_all(follower)
    assert ids(pieces) == [["1", "2", "3", "4"], ["5", "6", "7", "8"], ["9", "10"]]
    assert [piece.first_number for piece in pieces] == [0, 4, 8]
    assert [piece.is_last for piece in pieces] == [False, False, True]
    assert len({(piece.position, piece.committed_at) for piece in pieces}) == 1


def test_a_piece_that_is_just_full_when_the_transaction_ends_is_the_last(followed: FollowedSource) -> None:
    with following(followed, rows_at_once=4) as follower:
        followed.run("insert into t select generate_series(1, 8)")
        pieces = followed.read_all(follower)
    assert [(len(piece.events), piece.is_last) for piece in pieces] == [(5, False), (4, True)]


def test_values_are_in_utc_and_iso_whatever_the_role_and_the_database_are_set_to(source: FollowedSource) -> None:
    source.run("create table t (id int primary key, moment timestamptz, day date, d double precision)")
    source.publish("t")
    source.administer(
        f"alter role {source.name} set timezone = 'Asia/Tokyo'; alter role {source.name} set datestyle = 'German';"
        f" alter role {source.name} set extra_float_digits = -5"
    )
    with following(source) as follower:
        source.run("insert into t values (1, '2013-01-01 12:00+02', '2013-01-02', 0.1::float4)")
        [piece] = source.read_all(follower)
    [_, change] = piece.events
    assert isinstance(change, RowChange)
    assert change.row is not None
    assert tuple(change.row.values()) == ("1", "2013-01-01 10:00:00+00", "2013-01-02", "0.10000000149011612")


def test_a_domain_is_told_as_its_base_type_even_one_made_while_we_follow(source: FollowedSource) -> None:
    source.run(TABLE)
    source.publish("t")
    with following(source) as follower:
        source.run(
            "create domain amount as numeric(10, 2); create domain price as amount; create type mood as enum ('a');"
            " alter table t add p price, add m mood; insert into t values (1)"
        )
        [piece] = source.read_all(follower)
    relation = piece.events[0]
    assert isinstance(relation, Relation)
    assert (relation.columns["p"], relation.modifiers["p"]) == (1700, (10 << 16 | 2) + 4)
    assert relation.columns["m"] > 10_000


def test_rows_of_a_partitioned_table_come_under_its_name(source: FollowedSource) -> None:
    source.run(
        "create table whole (id int primary key) partition by range (id);"
        " create table low partition of whole for values from (0) to (10)"
    )
    source.publish("whole")
    with following(source) as follower:
        source.run("insert into whole values (1)")
        source.run("truncate whole")
        pieces = source.read_all(follower)
    assert [event.table for piece in pieces for event in piece.events] == ["whole"] * 3


def test_nothing_within_the_time_is_none_and_then_the_session_goes_on(followed: FollowedSource) -> None:
    with following(followed) as follower:
        idle = read_until(follower, lambda answer: isinstance(answer, Idle))
        follower.acknowledge(idle)
        while follower.read(0.2) is not None:  # the server may write to its log by itself
            pass
        followed.run("insert into t values (1)")
        assert ids(followed.read_all(follower)) == [["1"]]


# Acknowledging


def test_what_was_not_acknowledged_comes_again_whole(followed: FollowedSource) -> None:
    followed.run("insert into t select generate_series(1, 10)")
    with following(followed, rows_at_once=4) as follower:
        first = read_until(follower, lambda answer: isinstance(answer, TransactionPiece))
        follower.acknowledge(first)  # of a transaction of which more is to come: nothing is confirmed
    with following(followed, rows_at_once=4) as follower:
        again = followed.read_all(follower)
    assert [piece.position for piece in again] == [first.position] * 3
    assert again[0] == first


def test_only_what_was_acknowledged_does_not_come_again(followed: FollowedSource) -> None:
    for number in range(4):
        followed.run(f"insert into t values ({number})")
    with following(followed) as follower:
        pieces = followed.read_all(follower)
        follower.acknowledge(pieces[1])
        follower.acknowledge(pieces[0])  # takes nothing back
        await_confirmed(followed, pieces[1].position)
    with following(followed) as follower:
        assert ids(followed.read_all(follower)) == [["2"], ["3"]]


def await_confirmed(source: FollowedSource, position: int) -> None:
    """Wait until the source has taken note that this commit is settled."""
    query = "select confirmed_flush_lsn - '0/0' > %s from pg_replication_slots where slot_name = %s"
    assert wait_until(lambda: source.administer(query, position, source.name)[0][0], within_seconds=PATIENCE_SECONDS)


def test_a_position_between_commits_confirms_those_before_it(followed: FollowedSource) -> None:
    followed.run("insert into t values (1)")
    followed.run("insert into t values (2)")
    with following(followed) as follower:
        first, second = followed.read_all(follower)
        follower.acknowledge(idle_at(second.position - 1))
        await_confirmed(followed, first.position)
    with following(followed) as follower:
        assert ids(followed.read_all(follower)) == [["2"]]


def test_a_position_of_which_this_session_knows_nothing_skips_nothing(followed: FollowedSource) -> None:
    followed.run("insert into t values (1)")
    with following(followed) as follower:
        follower.acknowledge(idle_at(1 << 62))
        assert ids(followed.read_all(follower)) == [["1"]]


def test_an_acknowledged_idle_position_lets_the_source_forget_its_log(followed: FollowedSource, admin: cursor) -> None:
    source_writes = "create table if not exists unpublished (id int); insert into unpublished values (1)"
    followed.run(source_writes)
    behind = read_state(followed, admin).behind_bytes
    assert behind
    admin.execute("select pg_current_wal_lsn() - '0/0'")
    [end] = admin.fetchone() or (0,)
    with following(followed) as follower:
        idle = read_until(follower, lambda answer: isinstance(answer, Idle) and answer.position >= end)
        assert idle.is_caught_up
        assert read_state(followed, admin).confirmed_position < end  # type: ignore[operator]
        follower.acknowledge(idle)
        await_confirmed(followed, int(end) - 1)


def test_an_idle_position_amid_an_open_transaction_does_not_lose_it(followed: FollowedSource, admin: cursor) -> None:
    with closing(followed.open()) as other, other.cursor() as at, following(followed) as follower:
        at.execute("insert into t values (1)")
        followed.run("create table unpublished (id int)")  # whose commit carries the log of both to the disk
        admin.execute("select pg_current_wal_lsn() - '0/0'")
        [end] = admin.fetchone() or (0,)
        idle = read_until(follower, lambda answer: isinstance(answer, Idle) and answer.position >= end)
        other.commit()  # its record begins just where the source was idle, if nothing else was written
        piece = read_until(follower, lambda answer: isinstance(answer, TransactionPiece))
        assert ids([piece]) == [["1"]]
        follower.acknowledge(idle)
        await_confirmed(followed, idle.position - 1)
    with following(followed) as follower:
        assert ids(followed.read_all(follower)) == [["1"]]


def idle_at(position: int) -> Idle:
    return Idle(position=position, server_time=datetime.now(UTC), is_caught_up=True)


def commit_at(position: int, *, is_last: bool = True) -> TransactionPiece:
    now = datetime.now(UTC)
    return TransactionPiece(position=position, committed_at=now, first_number=0, events=(), is_last=is_last)


def test_a_commit_that_begins_where_the_source_was_idle_is_confirmed_by_itself_only() -> None:
    confirmations = Confirmations()
    confirmations.deliver(100, 100)
    confirmations.deliver(100, 150)
    assert confirmations.acknowledge(idle_at(99)) == 0
    assert confirmations.acknowledge(idle_at(100)) == 100
    assert confirmations.acknowledge(idle_at(100)) == 100, "an idle position may be told, and acknowledged, twice"
    assert confirmations.acknowledge(commit_at(100, is_last=False)) == 100
    assert confirmations.acknowledge(commit_at(100)) == 150


def test_idle_positions_that_nobody_acknowledges_take_no_memory_and_later_ones_count() -> None:
    confirmations = Confirmations()
    for position in range(100, 200):
        confirmations.deliver(position, position)
    assert len(confirmations._delivered) == 1
    assert confirmations.acknowledge(idle_at(150)) == 0
    assert confirmations.acknowledge(idle_at(199)) == 199


class Interrupted:
    """The stream of a session into which the source asks for us once, after the first row that it sends."""

    def __init__(self, stream: ReplicationStream, position: int) -> None:
        self._stream, self._messages, self.confirmed = stream, deque[bytes](), list[int]()
        self._question: bytes | None = struct.pack("!cQqB", b"k", position, 3_600_000_000, 1)
        self.wait = stream.wait

    def next_message(self) -> bytes | None:
        if self._messages:
            return self._messages.popleft()
        message = self._stream.next_message()
        if message is not None and self._question and message[25:26] == b"I":
            self._messages.append(self._question)
            self._question = None
        return message

    def confirm(self, position: int) -> None:
        self.confirmed.append(position)
        self._stream.confirm(position)


def test_a_keepalive_amid_rows_is_answered_and_confirms_nothing_that_was_not_acknowledged(
    followed: FollowedSource,
) -> None:
    """Rows lie before commits that were sent earlier: the position in the source's question says nothing of them."""
    with following(followed, rows_at_once=4) as follower:
        follower._stream = asking = Interrupted(follower._stream, 1 << 62)  # type: ignore[assignment]
        followed.run("insert into t select generate_series(1, 10)")
        answers: list[TransactionPiece | Idle] = []
        read_until(follower, lambda answer: answers.append(answer) or getattr(answer, "is_last", False))
        pieces = answers[-3:]
        assert not any(isinstance(answer, Idle) for answer in pieces), "amid a transaction nobody is idle"
        assert asking.confirmed == [0]
    with following(followed, rows_at_once=4) as follower:
        assert followed.read_all(follower) == pieces


def test_a_session_that_was_left_says_so(followed: FollowedSource) -> None:
    followed.run("insert into t values (1)")
    with following(followed) as follower:
        [piece] = followed.read_all(follower)
    for use in (lambda: follower.read(0.1), lambda: follower.acknowledge(piece)):
        with pytest.raises(Unavailable, match="the session has ended"):
            use()


# Followers, slots and publications that come and go


def test_a_slot_that_is_not_for_this_is_not_taken_for_one_that_was_lost(followed: FollowedSource) -> None:
    """Or a wrong name in the settings would make the caller take everything anew."""
    physical = f"{followed.name}_physical"
    followed.administer("select pg_create_physical_replication_slot(%s)", physical)
    try:
        with (
            pytest.raises(ValueError, match="expected one of pgoutput"),
            ReplicationFollower(followed.dsn, physical, followed.name),
        ):
            pass
    finally:
        followed.administer("select pg_drop_replication_slot(%s)", physical)


def test_a_second_follower_is_told_that_the_slot_is_taken_and_may_have_it_later(followed: FollowedSource) -> None:
    followed.run("insert into t values (1)")
    with following(followed), pytest.raises(SlotInUse, match=f"{followed.name}.*is active"), followed.follow():
        pass
    assert issubclass(SlotInUse, Unavailable)
    with following(followed) as follower:
        assert ids(followed.read_all(follower)) == [["1"]]


def test_a_follower_whose_slot_is_dropped_ends_and_no_other_begins(followed: FollowedSource) -> None:
    with following(followed) as follower:
        read_until(follower, lambda answer: isinstance(answer, Idle))
        followed.end_slot()
        with pytest.raises(Unavailable, match="terminating connection"):
            read_until(follower, lambda _: False)
        with pytest.raises(Unavailable):
            follower.read(0)
    with pytest.raises(SlotGone, match="does not exist"), followed.follow():
        pass
    assert not issubclass(SlotGone, Unavailable)


def test_a_publication_made_anew_has_another_number_and_what_was_written_between_is_gone(
    followed: FollowedSource, admin: cursor
) -> None:
    before = read_state(followed, admin).publication_oid
    assert before is not None
    with following(followed, publication_oid=before):
        pass
    admin.execute(f"drop publication {followed.name}")
    assert (read_state(followed, admin).publication_oid, read_state(followed, admin).tables) == (None, ())
    with pytest.raises(PublicationGone, match="there is no publication"), following(followed):
        pass
    followed.run("insert into t values (1)")
    assert create_publication(admin, followed.name, ["t"]) != before
    assert read_state(followed, admin).publication_oid not in (before, None)
    with pytest.raises(PublicationGone, match="made anew"), following(followed, publication_oid=before):
        pass
    with following(followed) as follower, pytest.raises(PublicationGone, match="does not exist"):
        read_until(follower, lambda _: False)  # PostgreSQL 16 does not get past the row; 18 would leave it out
    assert issubclass(PublicationGone, Missing)


def test_a_publication_dropped_under_a_follower_ends_it(followed: FollowedSource, admin: cursor) -> None:
    with following(followed) as follower:
        followed.run("insert into t values (1)")
        assert ids(followed.read_all(follower)) == [["1"]]
        admin.execute(f"drop publication {followed.name}")
        followed.run("insert into t values (2)")
        with pytest.raises(PublicationGone):
            read_until(follower, lambda _: False)


@pytest.mark.parametrize("signal_number", [signal.SIGQUIT, signal.SIGINT], ids=["crash", "shutdown"])
def test_a_server_that_restarts_loses_no_transaction(
    followed: FollowedSource, running_stack: Stack, signal_number: int
) -> None:
    """After a crash it may send again what was acknowledged: the caller knows it by its position and number."""
    followed.run("insert into t values (1)")
    followed.run("insert into t values (2), (3)")
    with following(followed) as follower:
        first, second = followed.read_all(follower)
        follower.acknowledge(first)
        end_postgres(running_stack, signal_number)
        with pytest.raises(Unavailable):  # a server that shuts down would wait for the second to be acknowledged
            read_until(follower, lambda _: False)
    held = (second.position, 0)
    with following(followed) as follower:
        followed.owner = retry_call(
            followed.open, errors=psycopg2.OperationalError, within_seconds=PATIENCE_SECONDS, pause_seconds=0.1
        )
        again = [skip_until(piece, held) for piece in followed.read_all(follower)]
    assert [one for one in ids(again) if one] == [["3"]]


def end_postgres(stack: Stack, signal_number: int) -> None:
    os.kill(stack.state()["parts"]["postgres"]["pid"], signal_number)


def test_what_the_caller_has_is_skipped_and_the_relation_is_not(followed: FollowedSource) -> None:
    with following(followed, rows_at_once=4) as follower:
        followed.run("insert into t select generate_series(1, 6)")
        first, last = followed.read_all(follower)
    assert skip_until(first, (first.position - 1, 99)) == first
    kept = skip_until(first, (first.position, 1))
    assert (ids([kept]), kept.first_number, type(kept.events[0])) == ([["3", "4"]], 2, Relation)
    rest = skip_until(first, (first.position, 4))
    assert (ids([rest]), rest.first_number, len(rest.events)) == ([[]], 4, 1)
    assert (ids([skip_until(last, (first.position, 4))]), last.is_last) == ([["6"]], True)


def test_a_source_that_is_away_is_worth_another_try_and_one_that_refuses_is_not(followed: FollowedSource) -> None:
    with pytest.raises(Unavailable), ReplicationFollower(str(make_dsn(followed.dsn, port=1)), "s", "p"):
        pass
    wrong = str(make_dsn(followed.dsn, password="wrong"))
    with pytest.raises(Refused, match="authentication failed"), ReplicationFollower(wrong, "s", "p"):
        pass
    followed.administer(f"alter role {followed.name} noreplication")
    with pytest.raises(Refused, match="WAL sender"), followed.follow():
        pass
