# SPDX-License-Identifier: Apache-2.0
"""TCP ports: whether those that the roles need are free, said by the name of their setting."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from threading import Event

from adapter.embedded.roles import metrics_ports
from adapter.errors import ConfigurationError
from adapter.settings import Settings

#: Seconds that the roles of a supervisor that was killed get to let go of their ports.
_PATIENCE = 10.0


def listening(settings: Settings) -> dict[str, tuple[str, int]]:
    """Return where the roles on this machine listen: host and port, by the port's setting."""
    found = {"dicom > scp > port": (settings.dicom.scp.host, settings.dicom.scp.port)}
    if settings.broker.url is None:
        found["broker > port"] = ("127.0.0.1", settings.broker.port)
    found["api > port"] = (settings.api.host, settings.api.port)
    if settings.flower.enabled:
        found["flower > port"] = (settings.flower.host, settings.flower.port)
    for role, port in metrics_ports(settings).items():
        found[f"metrics > port ({role})"] = (settings.metrics.host, port)
    return found


def check_free(settings: Settings, tell: Callable[[str], None], stopping: Event) -> None:
    """Wait a moment for every port that is needed, and complain about those still taken.

    Raises
    ------
    ConfigurationError
        Naming the setting of each port that is taken, asked for twice, or may not be opened.
    """
    needed = listening(settings)
    twice = [
        f"DicomAdapter > {name}: {port} is the port of another role too"
        for name, (_, port) in needed.items()
        if sum(port == other for _, other in needed.values()) > 1
    ]
    if twice:
        raise ConfigurationError(twice)
    end = time.monotonic() + _PATIENCE
    waited = False
    while problems := [text for name, at in needed.items() if (text := _problem(name, *at))]:
        if time.monotonic() > end or stopping.is_set():
            raise ConfigurationError(problems)
        if not waited:
            tell("waiting for a TCP port that is still in use ...")
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
