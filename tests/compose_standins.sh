#!/usr/bin/env bash
# Makes stand-ins for the images that docker-compose.yml and the Dockerfile take from a registry, out
# of Debian packages: for a machine that has a Docker engine but no registry.  As root:
#
#   tests/compose_standins.sh [FOLDER] && . FOLDER/images.env && make compose-e2e
#
# Takes some minutes and 2 GB in FOLDER (/tmp/dicom-adapter-standins), which may be deleted afterwards.
# The images behave like the real ones as far as docker-compose.yml asks for it, and are meant for
# tests on this machine alone.
set -euo pipefail
folder=${1:-/tmp/dicom-adapter-standins}
prefix=dicom-adapter-standin
# The suite's packages, from where this machine gets its own.
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk '$2 == "bookworm" && !found++ { print $1 }')}

install_into() { # ROOT PACKAGE...
    local root=$1
    shift
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    chroot "$root" apt-get -qq update
    DEBIAN_FRONTEND=noninteractive chroot "$root" \
        apt-get -qq install --yes --no-install-recommends "$@" >/dev/null 2>&1
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
}

make_root() { # NAME PACKAGE...
    local root=$folder/$1
    shift
    rm -rf "$root"
    cp -a "$folder/base" "$root"
    install_into "$root" "$@"
}

import_root() { # NAME CHANGE...
    local name=$1 changes=()
    shift
    for change in "$@"; do
        changes+=(--change "$change")
    done
    tar -C "$folder/$name" -c . | docker import "${changes[@]}" - "$prefix/$name:bookworm" >/dev/null
    rm -rf "${folder:?}/$name"
    echo "made $prefix/$name:bookworm"
}

mkdir -p "$folder"
if [ ! -e "$folder/base/usr/bin/dpkg" ]; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$folder/base" "$mirror" >/dev/null
    # Whatever this machine trusts, so that pip reaches the same index as here.
    cp /etc/ssl/certs/ca-certificates.crt "$folder/base/etc/ssl/certs/"
fi

make_root python python3 python3-pip python3-venv
import_root python 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt'

make_root redis redis-server
chroot "$folder/redis" usermod --uid 999 redis
install --directory --owner 999 --group 999 "$folder/redis/data"
import_root redis 'VOLUME /data'

make_root postgres postgresql-15
chroot "$folder/postgres" usermod --uid 999 postgres
rm -rf "$folder/postgres/var/lib/postgresql/15"
install --directory --owner 999 --group 999 --mode 1777 "$folder/postgres/var/lib/postgresql/data"
cat >"$folder/postgres/usr/local/bin/docker-entrypoint.sh" <<'END'
#!/bin/sh
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # shellcheck disable=SC2086
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl --wait --options="-c listen_addresses=''" start
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait --mode=fast stop
fi
exec "$@" -c listen_addresses='*'
END
chmod +x "$folder/postgres/usr/local/bin/docker-entrypoint.sh"
import_root postgres 'ENV PGDATA=/var/lib/postgresql/data' \
    'ENV PATH=/usr/local/bin:/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    'VOLUME /var/lib/postgresql/data' 'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["postgres"]'

cat >"$folder/images.env" <<END
export BASE=$prefix/python:bookworm
export REDIS_IMAGE=$prefix/redis:bookworm
export POSTGRES_IMAGE=$prefix/postgres:bookworm
END
echo "to use them: . $folder/images.env"
