# SPDX-License-Identifier: Apache-2.0
"""TCP ports: checks that the roles' ports are free; errors name the setting of a port."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from threading import Event

from adapter.embedded.roles import metrics_ports
from adapter.errors import ConfigurationError
from adapter.settings import Settings

#: Seconds that the roles of a killed supervisor get to close their ports.
_WAIT_SECONDS = 10.0


def listening(settings: Settings) -> dict[str, tuple[str, int]]:
    """Return the host and port of each listening role on this machine, by the port's setting."""
    found = {"dicom > scp > port": (settings.dicom.scp.host, settings.dicom.scp.port)}
    if settings.broker.url is None:
        found["broker > port"] = ("127.0.0.1", settings.broker.port)
    found["api > port"] = (settings.api.host, settings.api.port)
    if settings.flower.enabled:
        found["flower > port"] = (settings.flower.host, settings.flower.port)
    for role, port in metrics_ports(settings).items():
        found[f"metrics > port ({role})"] = (settings.metrics.host, port)
    return found


def check_free(settings: Settings, print_line: Callable[[str], None], stopping: Event) -> None:
    """Wait a moment until every port is free, and raise an error for those still in use.

    Raises
    ------
    ConfigurationError
        Names the setting of each port that is in use, configured twice, or cannot be opened.
    """
    needed = listening(settings)
    twice = [
        f"DicomAdapter > {name}: {port} is the port of another role too"
        for name, (_, port) in needed.items()
        if sum(port == other for _, other in needed.values()) > 1
    ]
    if twice:
        raise ConfigurationError(twice)
    end = time.monotonic() + _WAIT_SECONDS
    waited = False
    while problems := [text for name, at in needed.items() if (text := _problem(name, *at))]:
        if time.monotonic() > end or stopping.is_set():
            raise ConfigurationError(problems)
        if not waited:
            print_line("waiting for a TCP port that is still in use ...")
            waited = True
        stopping.wait(0.5)


def _problem(name: str, host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            where = f"DicomAdapter > {name}: TCP port {port}"
            if error.errno == errno.EADDRINUSE:
                return f"{where} is in use by another program; stop it or choose another port"
            return f"{where} cannot be opened on {host or 'any address'}: {error.strerror}"
    return None
