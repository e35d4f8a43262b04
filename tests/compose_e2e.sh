#!/usr/bin/env bash
# Runs docker-compose.yml for real, and kills what it can: `make compose-e2e`.
#
#   1. builds the image, and looks into it
#   2. starts the whole project from nothing; the demo proves the whole way
#   3. stops a busy worker: it ends warm, with exit code 0, within its grace
#   4. kills workers and Redis in mid-work, empties Redis: one more job, and no more, comes of it
#   5. takes everything down, with its volumes
#
# It needs a Docker engine and Compose 2.24 or newer; the images come from a registry, or are named by
# BASE, REDIS_IMAGE and POSTGRES_IMAGE (tests/compose_standins.sh makes some).  Everything it makes has
# a name of its own, listens on loopback, and goes again, also when it fails; KEEP=1 keeps it.
set -euo pipefail
cd "$(dirname "$0")/.."

project=dicom-adapter-e2e-$$
export COMPOSE_PROJECT_NAME=$project
export DICOM_ADAPTER_IMAGE=$project:latest
scratch=$(mktemp -d "${TMPDIR:-/tmp}/$project.XXXXXX")
export DICOM_ADAPTER_SECRETS=$scratch/secrets
export DICOM_ADAPTER_SETTINGS=$scratch/settings.json
# Free ports of the system's choice: nothing of this host's is in the way.
export DICOM_PORT=0 API_PORT=0 FLOWER_PORT=0

if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
else
    compose=(.venv/bin/docker-compose)
fi
compose() { "${compose[@]}" --profile demo "$@"; }
adapter() { compose exec -T api dicom-adapter "$@"; }

begin=$SECONDS
step() { printf '%4d s  %s\n' $((SECONDS - begin)) "$*"; }
fail() {
    step "FAILED: $*"
    exit 1
}

clean_up() {
    code=$?
    trap - EXIT
    if [ "$code" != 0 ]; then
        compose ps --all || true
        compose logs --no-color --tail 30 || true
    fi
    if [ -z "${KEEP:-}" ]; then
        compose down --volumes --timeout 5 >/dev/null 2>&1 || true
        docker image rm --force "$DICOM_ADAPTER_IMAGE" >/dev/null 2>&1 || true
        rm -rf "$scratch"
    fi
    exit "$code"
}
trap clean_up EXIT

wait_for() { # SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "$what"
        sleep 0.2
    done
}
start_demo() { # NAME: sends the study once more, and watches
    demo=$project-$1
    compose run --detach -T --name "$demo" demo >/dev/null 2>&1
}
said() { docker logs "$demo" 2>&1 | grep -q "$1"; }
end_demo() { # the demo's own verdict is its exit code
    code=$(timeout 300 docker wait "$demo")
    docker logs "$demo" 2>&1 | grep -E 'bit for bit|account|passed' || true
    [ "$code" = 0 ] || {
        docker logs "$demo" 2>&1 | tail -n 60
        fail "$demo"
    }
    docker rm "$demo" >/dev/null
}
redis_cli() {
    # shellcheck disable=SC2016
    compose exec -T redis sh -c \
        'REDISCLI_AUTH="$(cat /run/secrets/redis-password)" exec redis-cli "$@"' sh "$@" >/dev/null 2>&1
}
count_jobs() { adapter jobs list --json | grep -c '"platformJobId"'; }

step "docker $(docker version --format '{{.Server.Version}}'), compose $("${compose[@]}" version --short)"

# --- 1. the image -----------------------------------------------------------------------------------

builder=()
[ -z "${PIP_INDEX_URL:-}" ] || builder+=(--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL")
[ -z "${BUILD_NETWORK:-}" ] || builder+=(--network "$BUILD_NETWORK")
docker build --quiet "${builder[@]}" \
    --build-arg "BASE=${BASE:-python:3.12-slim-bookworm}" --tag "$DICOM_ADAPTER_IMAGE" . >/dev/null
size=$(docker image inspect --format '{{.Size}}' "$DICOM_ADAPTER_IMAGE")
step "image built from ${BASE:-python:3.12-slim-bookworm}: $((size / 1000000)) MB"

look=(docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --network none)
"${look[@]}" "$DICOM_ADAPTER_IMAGE" --version
"${look[@]}" "$DICOM_ADAPTER_IMAGE" check-config >/dev/null || fail "the image's settings"
# shellcheck disable=SC2016
"${look[@]}" --entrypoint sh "$DICOM_ADAPTER_IMAGE" -euc '
    [ "$(id -u):$(id -g)" = 10001:10001 ] || { echo "runs as $(id)"; exit 1; }
    for tool in gcc cc make ld git; do
        ! command -v "$tool" || exit 1
    done
    cd /opt/dicom-adapter/lib/python3.*/site-packages
    for package in pip setuptools hatchling editables; do
        [ ! -e "$package" ] || { echo "$package was left behind"; exit 1; }
    done
    grep -q "GNU LESSER GENERAL PUBLIC LICENSE" psycopg-*.dist-info/licenses/LICENSE.txt
    grep -q "Version 3" /usr/share/common-licenses/LGPL-3
    grep -q psycopg /usr/share/doc/dicom-adapter/third-party.md
    [ -e adapter/__pycache__/core.cpython-3*.pyc ] || { echo "not compiled"; exit 1; }
    for folder in / /opt/dicom-adapter /etc/dicom-adapter; do
        ! touch "$folder/x" 2>/dev/null || { echo "$folder can be written"; exit 1; }
    done
    for folder in /tmp /spool /var/lib/dicom-adapter; do touch "$folder/x"; done
' || fail "the image is not as it should be"
step "without root, build tools and a writable root folder, with its licences"

# --- 2. the whole way -------------------------------------------------------------------------------

sh docker/make-secrets.sh "$DICOM_ADAPTER_SECRETS" >/dev/null
# A pipeline that takes its time, so that there is a middle to kill in; and a disk that may be full.
python3 - docker/compose-settings.json >"$DICOM_ADAPTER_SETTINGS" <<'END'
import json, sys
document = json.load(open(sys.argv[1]))
section = document["DicomAdapter"]
section["storage"] = {"watermarkPercent": 100, "reserveSpaceGB": 0.5}
example = section["pipelines"]["example"]
example["command"] = ["/bin/sh", "-c", 'sleep 8; exec "$0" "$@"', *example["command"]]
json.dump(document, sys.stdout)
END

started=$SECONDS
compose up --detach --no-build --wait --wait-timeout 300 \
    scp api flower notification grouping submission pipeline export reclamation demo-pacs \
    >"$scratch/up.log" 2>&1 || {
    cat "$scratch/up.log"
    fail "the project does not become healthy"
}
step "everything is healthy after $((SECONDS - started)) s"
for secret in "$DICOM_ADAPTER_SECRETS"/*; do
    ! compose config | grep -qF "$(cat "$secret")" || fail "config shows $secret"
    ! compose ps --all --quiet | xargs docker inspect | grep -qF "$(cat "$secret")" \
        || fail "the engine shows $secret"
done
[ "$(docker run --rm --network host --entrypoint python3 "$DICOM_ADAPTER_IMAGE" -c '
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(f"http://{sys.argv[1]}/workers", timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)' "$(compose port flower 5555)")" = 401 ] || fail "Flower asks for no password"

compose run --rm -T demo 2>"$scratch/run.log" | tee "$scratch/demo.log" | grep -E 'stored by the PACS|bit for bit|passed' \
    || fail "the demo"
grep -q 'bit for bit: 2 files' "$scratch/demo.log" || fail "nothing arrived"
[ "$(count_jobs)" = 1 ] || fail "not one job"
step "the demo has passed"

# --- 3. a warm stop ---------------------------------------------------------------------------------

start_demo stop
wait_for 120 "no job is started" said 'jobs  *1 started'
started=$SECONDS
compose stop pipeline >/dev/null 2>&1
container=$(compose ps --all --quiet pipeline)
code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
[ "$code" = 0 ] || fail "the busy worker ended with exit code $code"
step "a busy pipeline worker stopped warm, with exit code 0, in $((SECONDS - started)) s"
compose start pipeline >/dev/null 2>&1
end_demo
[ "$(count_jobs)" = 2 ] || fail "not one job more"
adapter jobs list --json | grep -q '"tries": [1-9]' && fail "a warm stop has cost a try"

# --- 4. sudden death --------------------------------------------------------------------------------

start_demo kill
wait_for 120 "no group is opened" said 'groups  *1 open'
compose kill grouping submission notification redis >/dev/null 2>&1
step "killed notification, grouping, submission and Redis while a group was open"
sleep 6 # the group's quiet time passes, and nobody is there
compose up --detach --no-build --no-recreate redis >/dev/null 2>&1
wait_for 120 "Redis does not come back" redis_cli ping
redis_cli flushall
compose up --detach --no-build --no-recreate notification grouping submission >/dev/null 2>&1
wait_for 120 "no job is started" said 'jobs  *1 started'
compose kill pipeline redis scp >/dev/null 2>&1
step "killed the pipeline worker in its run, Redis and the receiver"
compose up --detach --no-build --no-recreate redis pipeline scp >/dev/null 2>&1
wait_for 120 "Redis does not come back" redis_cli ping
redis_cli flushall
end_demo
[ "$(count_jobs)" = 3 ] || fail "not exactly one job more"
adapter verify --deep || fail "verify"
adapter status --json | grep -q '"status": "green"' || {
    adapter status || true
    fail "health is not green"
}
step "exactly one job, and spool and ledger account for each other"

# --- 5. the end -------------------------------------------------------------------------------------

started=$SECONDS
compose stop >/dev/null 2>&1
for container in $(compose ps --all --quiet); do
    read -r name code < <(docker inspect --format '{{.Name}} {{.State.ExitCode}}' "$container")
    case $name:$code in
    *:0 | *demo-pacs*:143) ;;
    *) fail "$name ended with exit code $code" ;;
    esac
done
step "everything stopped in $((SECONDS - started)) s, each with exit code 0"
step "passed"
