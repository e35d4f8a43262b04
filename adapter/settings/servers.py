# SPDX-License-Identifier: Apache-2.0
"""The settings of the servers that the adapter runs, and of those that it connects to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, model_validator

from adapter import passwords
from adapter.addresses import is_loopback
from adapter.settings.section import Port, Seconds, Section

HostNames = list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]]
_HOST_NAMES = (
    "Names by which clients reach it, besides addresses, `localhost` and the host's own name; "
    "requests for others are refused (DNS rebinding)."
)


def _read_password(path: Path) -> str:
    try:
        return passwords.read(path)
    except ValueError as error:
        raise ValueError(f"passwordFile: {error}") from None


class Api(Section):
    """The REST API."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(5000, description="TCP port to listen on.")
    host_names: HostNames = Field(default_factory=list, description=_HOST_NAMES)
    without_authentication: bool = Field(
        False,
        description="Whether REST, which asks nobody for a password, may listen beyond loopback: "
        "only where the network lets nobody else in.",
    )

    @model_validator(mode="after")
    def _stay_on_loopback(self) -> Api:
        if not is_loopback(self.host) and not self.without_authentication:
            raise ValueError(
                f"host: REST asks nobody for a password, so it does not listen on "
                f"{self.host or 'all addresses'}; if the network lets nobody else in, set "
                "withoutAuthentication"
            )
        return self


class Flower(Section):
    """Flower, which shows the workers."""

    enabled: bool = Field(True, description="Whether `up` starts Flower.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(5555, description="TCP port to listen on.")
    user: str = Field("admin", description="User name.")
    read_only: bool = Field(
        True,
        description="Whether Flower only shows; if not, whoever has the password may shut workers "
        "down, change their pools and start tasks.",
    )
    password_file: Path | None = Field(
        None,
        description="File with the password; by default `flower.password` in the data folder, "
        "created on first use.",
    )

    _password: str | None = PrivateAttr(None)

    @property
    def password(self) -> str | None:
        """The password that was in the file when the settings were read."""
        return self._password

    @model_validator(mode="after")
    def _read_password(self) -> Flower:
        if self.password_file is not None:
            self._password = _read_password(self.password_file)
            if "," in self._password:
                raise ValueError(
                    f"passwordFile: {self.password_file}: Flower accepts no password with a comma"
                )
        return self


class Metrics(Section):
    """The HTTP endpoint of the receiver, the workers and the operator for metrics and probes.

    `/metrics` is for Prometheus; `/live` and `/ready` are for probes.
    """

    host: str = Field(
        "127.0.0.1", description="Address to listen on; empty means all, IPv4 and IPv6."
    )
    port: Port | None = Field(
        None,
        description="TCP port; without one there is no endpoint. With `up` it is the port of the "
        "SCP, and the workers have the next three.",
    )
    host_names: HostNames = Field(default_factory=list, description=_HOST_NAMES)


class ServerWithPassword(Section):
    """A server whose password may be in a file, which is read once, with the settings."""

    url: str | None
    password_file: Path | None = Field(
        None,
        description="File with the password of `url`, which then contains none; it is read at "
        "start and never shown.",
    )

    _password: str | None = PrivateAttr(None)

    @property
    def whole_url(self) -> str | None:
        """The URL with its password; it must never be shown."""
        if self.url is None or self._password is None:
            return self.url
        return passwords.put_into(self.url, self._password)

    @model_validator(mode="after")
    def _read_password(self) -> Self:
        if self.password_file is None:
            return self
        if self.url is None or self.url.startswith("sqlite"):
            raise ValueError("passwordFile needs the url of a server that requires a password")
        if passwords.stands_in(self.url):
            raise ValueError("both url and passwordFile contain a password; take it out of url")
        self._password = _read_password(self.password_file)
        return self


class Broker(ServerWithPassword):
    """Redis, which carries the wake-ups."""

    url: str | None = Field(
        None,
        pattern=r"^(rediss?|sentinel)://",
        description="URL of a Redis server; without one `up` starts its own.",
    )
    port: Port = Field(16379, description="TCP port of our own Redis, on loopback.")


class Database(ServerWithPassword):
    """The ledger."""

    url: str | None = Field(
        None,
        pattern=r"^(sqlite:///|postgresql(\+psycopg)?://)",
        description="SQLAlchemy URL of a PostgreSQL database, `postgresql+psycopg://...`; without "
        "one it is SQLite, `ledger.sqlite` in the data folder, which serves one host. "
        "Of several hosts (`...@db1:5432,db2:5432/...`) the one that takes writes is used.",
    )
    connections: int = Field(
        10, ge=2, le=100, description="Connections of a process to PostgreSQL, at most."
    )


class Kubernetes(Section):
    """The API server whose custom resources the operator applies."""

    endpoint: str | None = Field(
        None,
        pattern=r"^(https://[^/]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?)/?$",
        description="URL of the API server (plain HTTP on loopback only, for `kubectl proxy`); by "
        "default the one that Kubernetes gives to each pod.",
    )
    credentials: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"),
        description="Folder with `token`, `ca.crt` and `namespace`, or `tls.crt` and `tls.key`; by "
        "default the service account's.",
    )
    namespace: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Namespace whose custom resources are applied; by default the pod's own.",
    )
    request_seconds: Seconds = Field(10.0, description="Seconds that a request may take.")
    watch_seconds: int = Field(
        60, ge=1, le=600, description="Seconds after which a watch is started again."
    )
    resync_seconds: Seconds = Field(
        300.0, description="Seconds between full lists, which find what a watch missed."
    )
    retry_minimum_seconds: Seconds = Field(
        0.5, description="Seconds after which a failed request is first repeated."
    )
    retry_maximum_seconds: Seconds = Field(
        30.0, description="Longest delay between repeated requests, in seconds."
    )
