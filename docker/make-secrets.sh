#!/bin/sh
# Creates the passwords for the services of docker-compose.yml, each once: `make compose-secrets`.
#
# The files must be readable in containers by users that do not exist on the host.  So their folder
# has the restrictive permissions.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"
for name in redis-password database-password flower-password; do
    if [ ! -s "$folder/$name" ]; then
        od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name.new"
        chmod 644 "$folder/$name.new"
        mv "$folder/$name.new" "$folder/$name"
        echo "made $folder/$name"
    fi
done
