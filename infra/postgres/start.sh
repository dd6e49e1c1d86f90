#!/bin/sh
# Makes the cluster at the first start, whole or not at all, and becomes PostgreSQL.
set -eu
if [ ! -e "$PGDATA" ]; then
    fresh=$PGDATA.new
    rm -rf "$fresh"
    umask 077
    printf '%s' "$POSTGRES_PASSWORD" >/tmp/password
    initdb --pgdata="$fresh" --username=windsock --auth=scram-sha-256 --pwfile=/tmp/password --encoding=UTF8 --locale=C.UTF-8
    rm /tmp/password
    echo 'host all all all scram-sha-256' >>"$fresh/pg_hba.conf"
    mv "$fresh" "$PGDATA"
fi
unset POSTGRES_PASSWORD
exec postgres -c unix_socket_directories= -c 'listen_addresses=*' "$@"
