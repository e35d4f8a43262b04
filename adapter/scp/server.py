# SPDX-License-Identifier: Apache-2.0
"""The SCP on the wire: listens, and gives each connection a thread of its own.

It decides nothing about associations.  It bounds the connections that have none: they cost a peer
nothing, so when there are too many the oldest is closed, and a peer that asks for an association
at once gets through.
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import threading

from adapter.addresses import peer_address
from adapter.background import BackgroundLoop
from adapter.scp.acceptor import AssociationAcceptor
from adapter.scp.connection import AcceptorConnection
from adapter.settings import ScpSettings

#: Connections that may wait to be accepted.
_BACKLOG = 512
#: Seconds between looks at whether to stop.
_LOOK_SECONDS = 0.2
#: Seconds that another process gets to accept the next connection.
_TURN_SECONDS = 0.002
#: Seconds that associations get to send their A-ABORT at the end.
_ABORT_SECONDS = 2.0


def listen(settings: ScpSettings) -> socket.socket:
    """Return a socket that listens, on both IPv6 and IPv4 if no address is set.

    Raises
    ------
    OSError
        If the address cannot be listened on.
    """
    for host in [settings.host] if settings.host else ["::", "0.0.0.0"]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            if settings.host:
                raise
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, settings.port))
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            if settings.host or error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
        else:
            return sock
    raise OSError(errno.EADDRNOTAVAIL, "neither IPv6 nor IPv4 is there")


class Server:
    """Serves the connections of one process.

    Parameters
    ----------
    settings : ScpSettings
        Where to listen, deadlines and limits.
    acceptor : AssociationAcceptor
        Decides about associations.
    listener : socket, optional
        What to accept from, if other processes share it.
    tls : ssl.SSLContext, optional
        Speak TLS.
    """

    def __init__(
        self,
        settings: ScpSettings,
        acceptor: AssociationAcceptor,
        listener: socket.socket | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._acceptor = acceptor
        self._listener = listener
        self._shared = listener is not None
        self._tls = tls
        self._changed = threading.Condition()
        self._all: dict[AcceptorConnection, threading.Thread] = {}
        # Those without an association, the oldest first.
        self._half_open: dict[AcceptorConnection, None] = {}
        self._port: int | None = None
        # A process that cannot accept at all has to be replaced, whatever the error is.
        self._loop = BackgroundLoop("scp-listener", self._accept, outside=())

    def start(self) -> int:
        """Listen, and return the port.

        Raises
        ------
        OSError
            If the address cannot be listened on.
        """
        self._listener = self._listener or listen(self._settings)
        # Processes that wait in accept itself are woken by the kernel in turn, one for each
        # connection.  So the kernel also limits how long accept waits.
        _accept_at_most(self._listener, _LOOK_SECONDS)
        self._loop.start()
        self._port = int(self._listener.getsockname()[1])
        return self._port

    @property
    def listening(self) -> bool:
        """Whether connections are accepted."""
        loop = self._loop
        return (
            self._port is not None and not loop.stopping.is_set() and loop.state.state == "running"
        )

    def stop(self, grace: float) -> None:
        """Stop listening; after `grace` seconds abort the associations that have not ended."""
        if self._port is None:
            return
        self._loop.stop()
        self._acceptor.metrics.counters.set_listening(False)
        self._port = None
        if self._listener is not None:
            self._listener.close()
        with self._changed:
            self._changed.wait_for(lambda: len(self._all) <= len(self._half_open), timeout=grace)
            for connection in self._all:
                connection.stop()
            self._changed.wait_for(lambda: not self._all, timeout=_ABORT_SECONDS)
            threads = list(self._all.values())
            for connection in self._all:
                connection.drop()
        for thread in threads:
            thread.join(timeout=_ABORT_SECONDS)

    def _accept(self) -> None:
        """Accept one connection, if one comes in time."""
        assert self._listener is not None
        self._acceptor.end_superfluous()
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # nobody came, or has gone again
            return
        self._begin(sock, str(peer_address(address[0])))
        if self._shared:
            self._loop.stopping.wait(_TURN_SECONDS)

    def _begin(self, sock: socket.socket, address: str) -> None:
        """Serve a connection from a thread of its own.

        Raises
        ------
        RuntimeError
            If the system has no thread left; this connection is closed.
        """
        connection = AcceptorConnection(sock, address, self._settings, self._acceptor, self._tls)
        thread = threading.Thread(
            target=self._serve, args=(connection,), name="scp-association", daemon=True
        )
        with self._changed:
            self._all[connection] = thread
            self._without_association(connection)
        try:
            thread.start()
        except BaseException:
            self._forget(connection)
            sock.close()
            self._acceptor.drop()
            raise

    def _serve(self, connection: AcceptorConnection) -> None:
        try:
            connection.run(self._progress)
        finally:
            self._forget(connection)

    def _forget(self, connection: AcceptorConnection) -> None:
        with self._changed:
            self._half_open.pop(connection, None)
            self._all.pop(connection, None)
            self._changed.notify_all()

    def _progress(self, connection: AcceptorConnection, established: bool) -> None:
        with self._changed:
            if established:
                self._half_open.pop(connection, None)
            else:
                self._without_association(connection)
            self._changed.notify_all()

    def _without_association(self, connection: AcceptorConnection) -> None:
        self._half_open[connection] = None
        if len(self._half_open) > self._settings.maximum_half_open:
            oldest = next(iter(self._half_open))
            del self._half_open[oldest]
            oldest.drop()


def _accept_at_most(listener: socket.socket, seconds: float) -> None:
    listener.setblocking(True)
    whole = int(seconds)
    micros = int((seconds - whole) * 1_000_000)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", whole, micros))
