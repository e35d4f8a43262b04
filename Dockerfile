# One image for every role: the role is the command, e.g. `docker run IMAGE worker export`.
#
# It is built in two stages, so the final image has nothing that only the build needs.  It uses no
# feature of BuildKit, so any builder works.  BASE may be any Debian with Python 3.11 or newer and
# pip; both stages use the same one, because a virtual environment depends on its interpreter.

ARG BASE=python:3.12-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build

# Read by pip; for a mirror: --build-arg PIP_INDEX_URL=...  It is not in the final image.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The dependencies are a separate layer: a change of the code does not download them again.
COPY requirements.txt ./
RUN python3 -m venv --without-pip /opt/dicom-adapter \
    && python3 -m pip --python /opt/dicom-adapter/bin/python3 install \
        --quiet --no-compile --only-binary :all: --require-hashes --requirement requirements.txt

COPY pyproject.toml README.md LICENSE celeryconfig.py ./
COPY adapter adapter
COPY workers workers
# Packages that only install the project are removed; `pip check` checks the others.  The root folder
# is read-only in use, so everything is compiled here, with hashes that are never checked again.
RUN python3 -m pip --python /opt/dicom-adapter/bin/python3 install \
        --quiet --no-compile --no-deps --no-build-isolation . \
    && python3 -m pip --python /opt/dicom-adapter/bin/python3 uninstall --quiet --yes \
        editables hatchling pathspec pluggy trove-classifiers \
    && python3 -m pip --python /opt/dicom-adapter/bin/python3 check \
    && /opt/dicom-adapter/bin/python3 -m compileall \
        -q -j 0 --invalidation-mode unchecked-hash /opt/dicom-adapter/lib


# hadolint ignore=DL3006
FROM ${BASE}

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="DICOM adapter" \
    org.opencontainers.image.description="A durable gateway between DICOM imaging and AI pipelines, built on Celery." \
    org.opencontainers.image.licenses="Apache-2.0 AND LGPL-3.0-only" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}"

# The init reaps the orphans of pipelines, and passes signals on to the role alone: a worker that gets
# SIGTERM ends its work first.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
        /usr/local/lib/python3.*/site-packages/pip* /usr/local/bin/pip* \
    && groupadd --gid 10001 adapter \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
        --home-dir /var/lib/dicom-adapter --shell /usr/sbin/nologin adapter \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/dicom-adapter /spool

COPY --from=build /opt/dicom-adapter /opt/dicom-adapter
COPY docker/appsettings.json /etc/dicom-adapter/appsettings.json
COPY docker/healthy.py /usr/local/bin/healthy
COPY LICENSE docker/third-party.md /usr/share/doc/dicom-adapter/

ENV PATH=/opt/dicom-adapter/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    DICOMADAPTER_CONFIG=/etc/dicom-adapter/appsettings.json \
    DICOMADAPTER_DATA=/var/lib/dicom-adapter \
    DICOMADAPTER__STORAGE__TEMPORARY=/spool

# The only folders that are written, besides /tmp: the root folder may be read-only.
VOLUME ["/var/lib/dicom-adapter", "/spool"]
# DICOM, REST, Flower, metrics
EXPOSE 11112 5000 5555 9090
USER 10001:10001
WORKDIR /tmp

# `-s`: works also if another program is process 1, as in a pod with a shared process namespace.
ENTRYPOINT ["/usr/bin/tini", "-s", "--", "dicom-adapter"]
CMD ["--help"]
