# SPDX-License-Identifier: Apache-2.0
"""One connection: the socket under an association, and deadlines that no peer can extend.

==================  ================================================================================
deadline            what it ends
==================  ================================================================================
``artimSeconds``    TLS handshake and A-ASSOCIATE-RQ, counted from the connection: closed without a
                    PDU; and the wait for the peer to close the connection (PS3.8 section 9.1.5)
``pduSeconds``      a PDU that has begun, however slowly it trickles: A-ABORT 2/0
``idleSeconds``     silence of an association: A-ABORT 0/0; and a peer that does not read
==================  ================================================================================
"""

from __future__ import annotations

import mmap
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from struct import Struct

from adapter.dicom.pdus import SERVICE_PROVIDER
from adapter.log import get_logger
from adapter.scp.acceptor import AssociationAcceptor
from adapter.scp.association import AcceptorAssociation
from adapter.scp.upper_layer import State
from adapter.settings import ScpSettings

log = get_logger(__name__)

_TIME = Struct("@ll")

#: Bytes taken from the socket at a time, at most.
RECEIVE_BYTES = 262_144


class AcceptorConnection:
    """One connection, from accept to close.

    Parameters
    ----------
    sock : socket
        The accepted socket.
    address : str
        The peer's IP address, as `adapter.addresses` writes it.
    settings : ScpSettings
        Deadlines and limits.
    acceptor : AssociationAcceptor
        Decides which associations are accepted.
    tls : ssl.SSLContext, optional
        Serve over TLS, with this context.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        settings: ScpSettings,
        acceptor: AssociationAcceptor,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = sock
        self._address = address
        self._settings = settings
        self._tls = tls
        self._acceptor = acceptor
        self._association = AcceptorAssociation(settings, acceptor, address, self.end_idle)
        self._layer = self._association.layer
        self._opened = time.monotonic()
        self._pdu_began: float | None = None
        self._pdus_begun = 0
        self._stopping = False
        self._superfluous = False
        self._timeout = 0.0  # of the socket when it receives

    def run(self, progress: Callable[[AcceptorConnection, bool], None]) -> None:
        """Serve until the connection is closed.

        Parameters
        ----------
        progress : callable
            Called when an association begins and when it ends: with this connection, and whether
            there is an association.
        """
        try:
            self._converse(progress)
        except OSError as error:
            self._association.connection_closed()
            log.debug("connection lost", peer=self._address, error=type(error).__name__)
        except Exception:  # the protocol boundary: an error ends this connection and no other
            if self._acceptor.is_due("connection-failed", self._address):
                log.exception("connection failed", peer=self._address)
            self._association.abort("internal error")
            with suppress(OSError):
                self._send(self._layer.take_output())
        finally:
            self._association.connection_closed()
            with suppress(OSError):
                self._socket.close()

    def stop(self) -> None:
        """End the association with A-ABORT; called from another thread."""
        self._stopping = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def end_idle(self) -> None:
        """End the association with A-ABORT for another peer's; called from another thread."""
        self._superfluous = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def drop(self) -> None:
        """End the connection at once; called from another thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # -- in its own thread ---------------------------------------------------------------------

    def _converse(self, progress: Callable[[AcceptorConnection, bool], None]) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._limit(socket.SO_SNDTIMEO, self._settings.idle_seconds)
        if self._tls is not None:
            self._shake_hands(self._tls)
        # Anonymous memory: pages that a peer never fills cost nothing.
        buffer = memoryview(mmap.mmap(-1, RECEIVE_BYTES))
        association, layer, established = self._association, self._layer, False
        deadline = self._opened + self._settings.artim_seconds
        while not layer.ended:
            count = self._receive(buffer, deadline)
            if count and count < RECEIVE_BYTES:
                # Acknowledge at once.  A peer without TCP_NODELAY holds the next bytes back until
                # then (Nagle's algorithm), and a delayed acknowledgement costs 40 ms for each PDU.
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if count is None or (not count and (self._stopping or self._superfluous)):
                self._expire()
            elif count:
                association.receive(buffer[:count])
            else:
                association.connection_closed()
            self._send(layer.take_output())
            association.answered()
            if association.established is not established:
                established = not established
                progress(self, established)
            deadline = self._next_deadline()
        if layer.state is State.STA13:
            self._await_close(buffer)

    def _shake_hands(self, tls: ssl.SSLContext) -> None:
        self._socket.settimeout(self._settings.artim_seconds)
        self._socket = tls.wrap_socket(
            self._socket, server_side=True, do_handshake_on_connect=False
        )
        self._socket.do_handshake()

    def _receive(self, buffer: memoryview, deadline: float) -> int | None:
        """Return how many bytes have come, or None if none came in time."""
        while (left := deadline - time.monotonic()) > 0:
            if not left / 3 < self._timeout < left * 1.05:  # saves most of the system calls
                self._timeout = left
                self._limit(socket.SO_RCVTIMEO, left)
            with suppress(TimeoutError, BlockingIOError):
                return self._socket.recv_into(buffer)
        return None

    def _send(self, data: bytes) -> None:
        if data:
            if self._tls is not None and self._timeout < self._settings.idle_seconds:
                self._timeout = self._settings.idle_seconds
                self._socket.settimeout(self._timeout)
            self._socket.sendall(data)

    def _limit(self, which: int, seconds: float) -> None:
        """Limit how long a call waits: in the kernel, or with TLS in Python, which costs more."""
        if self._tls is not None:
            self._socket.settimeout(seconds)
        else:
            whole, part = divmod(seconds, 1)
            value = _TIME.pack(int(whole), max(1, int(part * 1e6)))  # 0 would mean no limit
            self._socket.setsockopt(socket.SOL_SOCKET, which, value)

    def _next_deadline(self) -> float:
        now, layer = time.monotonic(), self._layer
        if layer.state is State.STA2:
            return self._opened + self._settings.artim_seconds
        if not layer.in_pdu:
            self._pdu_began = None
            return now + self._settings.idle_seconds
        if self._pdu_began is None or self._pdus_begun != layer.pdus_begun:
            self._pdu_began, self._pdus_begun = now, layer.pdus_begun
        return self._pdu_began + self._settings.pdu_seconds

    def _expire(self) -> None:
        if self._layer.state is State.STA2:
            self._association.give_up()
        elif self._stopping:
            self._association.abort("the receiver stops")
        elif self._superfluous:
            self._association.abort("idle, and another peer needed its place")
        elif self._layer.in_pdu:
            self._association.abort("PDU not whole in time", source=SERVICE_PROVIDER)
        else:
            self._association.abort("idle")

    def _await_close(self, buffer: memoryview) -> None:
        """Wait for the peer to close.

        To close while it still sends makes the kernel reset the connection, and our last PDU might
        be lost.
        """
        deadline = time.monotonic() + self._settings.artim_seconds
        while not self._stopping and self._receive(buffer, deadline):
            pass
