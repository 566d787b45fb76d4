#!/bin/sh
# PostgreSQL on port 5432, its data in $PGDATA; a new and empty database where there is none yet.
# Everybody may log in: the network of a testbed is nobody else's.
set -eu
: "${PGDATA:=/var/lib/postgresql/data}"
export PGDATA
as_postgres='setpriv --reuid=postgres --regid=postgres --init-groups'
if ! [ -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    chown postgres: "$PGDATA"
    chmod 700 "$PGDATA"
    $as_postgres initdb --auth=trust --no-locale --encoding=UTF8 --no-sync > /dev/null
    echo 'host all all all trust' >> "$PGDATA/pg_hba.conf"
fi
exec $as_postgres postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c max_connections=30 "$@"
