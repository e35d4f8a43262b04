#!/bin/sh
# Makes the passwords that docker-compose.yml hands to its services, each once: `make compose-secrets`.
#
# The files have to be readable in containers by users that do not exist here, so that it is their
# folder that keeps others out.
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
