# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of a role: three paths, read-only, in a thread or a process of its own.

It does nothing else, so it answers while the role is busy or hangs.  A client gets a few seconds in
all and may ask for one thing; when there are too many clients the oldest is dropped.  A server from
a library does not promise this: see docs/decisions/0003.

=============  ===================================================================================
path           answers
=============  ===================================================================================
``/metrics``   200, and the metrics in Prometheus' text format
``/live``      200, or 503 if the process has to be replaced
``/ready``     200, or 503 while it does not do its work
=============  ===================================================================================
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from http import HTTPStatus

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import CollectorRegistry

from adapter.addresses import names_us
from adapter.background import BackgroundLoop
from adapter.errors import ConfigurationError
from adapter.log import get_logger
from adapter.settings import Metrics

log = get_logger(__name__)

#: Seconds that a client has to ask, and to take the answer.
CLIENT_SECONDS = 5.0
#: The longest request head that is read (bytes).
REQUEST_BYTES = 8192
#: Clients at a time.
MOST_CLIENTS = 32

#: Seconds to wait for the port of a role that has just ended.
_PORT_SECONDS = 5.0

_TEXT = "text/plain; charset=utf-8"

#: Returns why something is not as it should be; empty if it is.
Reasons = Callable[[], list[str]]


def listen(settings: Metrics) -> socket.socket | None:
    """Return a socket that listens for an `Endpoint`; None if the settings name no port.

    Raises
    ------
    ConfigurationError
        If the address cannot be listened on.
    """
    if settings.port is None:
        return None
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            return _listen(settings.host, settings.port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            where = f"cannot listen on {settings.host or 'all addresses'}, port {settings.port}"
            raise ConfigurationError(
                [f"DicomAdapter > metrics > port: {where}: {os.strerror(error.errno or 0)}"]
            ) from None


def _listen(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


class Endpoint:
    """Answers on one socket until it is stopped.

    Parameters
    ----------
    listener : socket
        The socket to accept from.
    registry : CollectorRegistry
        The metrics; collecting them must not wait for anything.
    unfit : callable
        Returns why the process has to be replaced.
    unready : callable
        Returns why it does not do its work.
    host_names : collection of str, optional
        The names by which clients reach it, besides addresses and this host's own.
    """

    def __init__(
        self,
        listener: socket.socket,
        registry: CollectorRegistry,
        unfit: Reasons,
        unready: Reasons,
        host_names: Collection[str] = (),
    ) -> None:
        self._listener = listener
        self._host_names = host_names
        self._registry = registry
        self._unfit = unfit
        self._unready = unready
        self._clients: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._loop = BackgroundLoop("metrics", self.run)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Answer from a background loop."""
        self._loop.start()

    def stop(self) -> None:
        """Stop the loop, and close the socket."""
        self._loop.finish()
        if self._running is not None:
            loop, stopped = self._running
            with suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(stopped.set)
        self._loop.stop(CLIENT_SECONDS)
        self._listener.close()

    def run(self, parent_pipe: int | None = None) -> None:
        """Answer until `stop`, or until the pipe `parent_pipe` ends."""
        asyncio.run(self._serve(parent_pipe))

    async def _serve(self, parent_pipe: int | None) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._running = loop, stopped
        if self._loop.stopping.is_set():
            return
        if parent_pipe is not None:
            loop.add_reader(parent_pipe, stopped.set)
        # A copy: the server closes its socket, and the next run needs one.
        with self._listener.dup() as listener:
            server = await asyncio.start_server(self._converse, sock=listener, limit=REQUEST_BYTES)
            self._loop.succeeded()
            try:
                await stopped.wait()
            finally:
                server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = None
        if len(self._clients) > MOST_CLIENTS:
            next(iter(self._clients)).cancel()
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits for all of it
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client is gone, is too slow, or speaks no HTTP
        except asyncio.CancelledError:
            pass  # the client makes room for another
        finally:
            self._clients.pop(task, None)
            if not writer.is_closing():  # a client that does not read would keep it for ever
                writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        try:
            return self._find(head)
        except Exception as error:  # noqa: BLE001 - the protocol boundary: one answer is missing
            log.error("a request for metrics failed", error=type(error).__name__)
            text = f"{type(error).__name__}\n".encode()
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, text)

    def _find(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        if method not in {b"GET", b"HEAD"}:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"only GET\n")
        if not names_us(_host(head), self._host_names):
            return _response(HTTPStatus.MISDIRECTED_REQUEST, _TEXT, b"see metrics > hostNames\n")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path == b"/metrics":
            body = generate_latest(self._registry)
            answer = _response(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, body)
        elif path == b"/live":
            answer = _judge("live", self._unfit())
        elif path == b"/ready":
            answer = _judge("ready", self._unready())
        else:
            answer = _response(HTTPStatus.NOT_FOUND, _TEXT, b"/metrics, /live or /ready\n")
        return answer if method == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _host(head: bytes) -> str | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"host":
            return value.decode("latin-1")
    return None


def _judge(what: str, reasons: list[str]) -> bytes:
    if reasons:
        body = "".join(f"{reason}\n" for reason in reasons)
        return _response(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, body.encode())
    return _response(HTTPStatus.OK, _TEXT, f"{what}\n".encode())


def _response(status: HTTPStatus, content_type: str, body: bytes) -> bytes:
    lines = [
        f"HTTP/1.1 {int(status)} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "Cache-Control: no-store",
        "",
        "",
    ]
    return "\r\n".join(lines).encode("ascii") + body
