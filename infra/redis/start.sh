#!/bin/sh
# Becomes Redis; the password comes by standard input, where no list of processes shows it.
set -eu
exec redis-server - <<CONFIGURATION
bind *
dir /data
appendonly yes
requirepass $REDISCLI_AUTH
CONFIGURATION
