# SPDX-License-Identifier: Apache-2.0
"""The API's process: a socket, a signal, and uvicorn."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import uvicorn

from adapter.api.app import create_app
from adapter.api.opening import AdapterOpening
from adapter.errors import ConfigurationError
from adapter.log import get_logger
from adapter.settings import Settings

log = get_logger(__name__)

#: Seconds that requests in progress get to finish when the server is stopped.
_DRAIN_SECONDS = 5


def serve(settings: Settings) -> int:
    """Answer requests until SIGTERM or SIGINT, and return the process's exit code.

    Raises
    ------
    ConfigurationError
        If the API cannot listen on its address.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(AdapterOpening(settings)),
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
    )
    with _listen(settings) as listening, _signals_end_it():
        log.info("REST", host=settings.api.host, port=settings.api.port)
        server.run(sockets=[listening])
    return 0 if server.started else 1


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.api.host, settings.api.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            [f"DicomAdapter > api: cannot listen on {host} port {port}: {error.strerror}"]
        ) from None


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """End the block at SIGTERM or SIGINT; uvicorn raises the signal again after it has stopped."""

    def leave(_number: int, _frame: object) -> NoReturn:
        raise SystemExit

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
