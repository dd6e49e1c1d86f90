"""A followed source loses nothing and confirms nothing unasked, whatever happens to follower, slot and server."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import cursor, make_dsn
from psycopg2.extras import LogicalReplicationConnection

from adapters.errors import Missing, PublicationGone, Refused, SlotGone, SlotInUse, Unavailable
from adapters.pgoutput import PgOutputDecoder, Relation, RowChange, TransactionCommit
from adapters.replication import ReplicationFollower
from adapters.replication_pieces import Confirmations, Idle, PieceBuilder, TransactionPiece, skip_until
from adapters.replication_setup import create_publication
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
        follower.acknowledge(idle.position)
        while follower.read(0.2) is not None:  # the server may write to its log by itself
            pass
        followed.run("insert into t values (1)")
        assert ids(followed.read_all(follower)) == [["1"]]


# Acknowledging


def test_what_was_not_acknowledged_comes_again_whole(followed: FollowedSource) -> None:
    followed.run("insert into t select generate_series(1, 10)")
    with following(followed, rows_at_once=4) as follower:
        first = follower.read(PATIENCE_SECONDS)
        assert isinstance(first, TransactionPiece)
        follower.acknowledge(first.position)  # of a transaction of which more is to come: nothing is confirmed
    with following(followed, rows_at_once=4) as follower:
        again = followed.read_all(follower)
    assert [piece.position for piece in again] == [first.position] * 3
    assert again[0] == first


def test_only_what_was_acknowledged_does_not_come_again(followed: FollowedSource) -> None:
    for number in range(4):
        followed.run(f"insert into t values ({number})")
    with following(followed) as follower:
        pieces = followed.read_all(follower)
        follower.acknowledge(pieces[1].position)
        follower.acknowledge(pieces[0].position)  # takes nothing back
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
        follower.acknowledge(second.position - 1)
        await_confirmed(followed, first.position)
    with following(followed) as follower:
        assert ids(followed.read_all(follower)) == [["2"]]


def test_a_position_of_which_this_session_knows_nothing_skips_nothing(followed: FollowedSource) -> None:
    followed.run("insert into t values (1)")
    with following(followed) as follower:
        follower.acknowledge(1 << 62)
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
        follower.acknowledge(idle.position)
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
        follower.acknowledge(idle.position)
        await_confirmed(followed, idle.position - 1)
    with following(followed) as follower:
        assert ids(followed.read_all(follower)) == [["1"]]


def test_a_commit_that_begins_where_the_source_was_idle_is_confirmed_by_itself_only() -> None:
    confirmations = Confirmations()
    confirmations.deliver(100, 100)
    confirmations.deliver(100, 150)
    assert confirmations.acknowledge(99) == 0
    assert confirmations.acknowledge(100) == 100
    assert confirmations.acknowledge(100) == 150


def test_idle_positions_that_nobody_acknowledges_take_no_memory_and_later_ones_count() -> None:
    confirmations = Confirmations()
    for position in range(100, 200):
        confirmations.deliver(position, position)
    assert len(confirmations._delivered) == 1
    assert confirmations.acknowledge(150) == 0
    assert confirmations.acknowledge(199) == 199


# Why psycopg2's own reader is not used


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_answered_keepalive_confirms_nothing_that_was_not_acknowledged(
    followed: FollowedSource, admin: cursor, *, is_ours: bool
) -> None:
    """A long transaction's rows lie before an acknowledged commit. While they are read, the source asks for us.

    psycopg2's reader takes the low position of the row as proof that all was acknowledged, and answers with the latest
    position: what nobody acknowledged is lost. When its twin fails here, `replication_stream` may go.
    """
    admin.execute(f"alter role {followed.name} set wal_sender_timeout = '8s'")
    with closing(followed.open()) as other, other.cursor() as at:
        at.execute("insert into t select i, repeat(md5(i::text), 60) from generate_series(100, 8099) as i")
        followed.run("insert into t values (1)")
        with following(followed, rows_at_once=100) if is_ours else read_by_psycopg2(followed) as reader:
            acknowledged = read_until(reader, lambda answer: isinstance(answer, TransactionPiece))
            reader.acknowledge(acknowledged.position)
            followed.run("insert into t values (2)")
            pending = read_until(reader, lambda answer: isinstance(answer, TransactionPiece))
            other.commit()
            await_keepalive(followed)
            read_until(reader, lambda answer: isinstance(answer, TransactionPiece))
            answers: list[TransactionPiece | Idle] = []
            read_until(reader, lambda answer: answers.append(answer) or getattr(answer, "is_last", False))
            assert not any(isinstance(answer, Idle) for answer in answers)  # amid a transaction nobody is idle
            await_reply(followed)
            confirmed = read_state(followed, admin).confirmed_position
    assert ids([acknowledged, pending]) == [["1"], ["2"]]
    assert confirmed is not None
    assert (confirmed <= pending.position) == is_ours
    with following(followed) as follower:
        again = {key for piece in ids(followed.read_all(follower)) for key in piece}
    assert ("2" in again) == is_ours


_SENDER = "select {} from pg_stat_replication join pg_replication_slots on pid = active_pid where slot_name = %s"


def await_keepalive(source: FollowedSource) -> None:
    """Wait until the source, which cannot send on, has not heard of us for so long that it has asked."""
    query = _SENDER.format("clock_timestamp() - reply_time > '4.5s'")
    assert wait_until(lambda: source.administer(query, source.name)[0][0], within_seconds=PATIENCE_SECONDS)


def await_reply(source: FollowedSource) -> None:
    query = _SENDER.format("clock_timestamp() - reply_time < '4s'")
    assert wait_until(lambda: source.administer(query, source.name)[0][0], within_seconds=PATIENCE_SECONDS)


class Psycopg2Reader:
    """As much of a follower as the test asks for, by psycopg2's means."""

    def __init__(self, at: Any) -> None:
        self._at, self._decoder, self._builder = at, PgOutputDecoder(), PieceBuilder(100)
        self._ends = dict[int, int]()

    def read(self, timeout_seconds: float) -> TransactionPiece | None:
        while True:
            message = self._at.read_message()
            if message is None:
                select.select([self._at.connection], [], [], timeout_seconds)
                continue
            for event in self._decoder.decode(message.payload):
                piece = self._builder.add(event)
                if isinstance(event, TransactionCommit):
                    self._ends[event.position] = event.end
                if piece is not None:
                    return piece

    def acknowledge(self, position: int) -> None:
        self._at.send_feedback(flush_lsn=self._ends[position], force=True)


@contextmanager
def read_by_psycopg2(source: FollowedSource) -> Iterator[Psycopg2Reader]:
    with closing(psycopg2.connect(source.dsn, connection_factory=LogicalReplicationConnection)) as opened:
        at = opened.cursor()
        at.start_replication(slot_name=source.name, options={"proto_version": "1", "publication_names": source.name})
        yield Psycopg2Reader(at)


# Followers, slots and publications that come and go


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
        follower.acknowledge(first.position)
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
