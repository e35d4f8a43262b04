# SPDX-License-Identifier: Apache-2.0
"""One TCP connection to a peer, on which nothing waits without a deadline.

A peer may be silent, stop reading, or send a byte now and then.  Whatever it does, each call here
ends by its deadline.  There are only bytes here; ``adapter.scu.association`` knows what they mean.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from adapter.errors import TemporaryError

#: Buffers that one call of sendmsg takes (IOV_MAX on Linux is 1024).
BUFFERS = 1000

_RECEIVE = 65_536


class Unreachable(TemporaryError):
    """The peer does not answer at its address, or says that it cannot serve us now."""


class AssociationBroken(TemporaryError):
    """The connection or the association ended too early."""


class Deadline:
    """A time limit that starts now.

    Parameters
    ----------
    seconds : float
        The limit, in seconds.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left; never less than zero."""
        return max(0.0, self._at - time.monotonic())


def resolve(host: str, port: int, deadline: Deadline) -> list[tuple[Any, ...]]:
    """Return the addresses of a host, as `socket.getaddrinfo` does, but by a deadline.

    Raises
    ------
    Unreachable
        If the name is not known, or the resolver does not answer in time.
    """
    found: list[list[tuple[Any, ...]] | OSError] = []

    def ask() -> None:
        try:
            found.append(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            found.append(error if isinstance(error, OSError) else OSError(str(error)))

    # getaddrinfo has no time limit: when it takes too long, its thread is left to itself.
    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if not found:
        raise Unreachable(f"the name {host} could not be looked up in {deadline.seconds:g} s")
    answer = found[0]
    if isinstance(answer, OSError):
        raise Unreachable(f"the name {host} is not known: it cannot be resolved to an address")
    return answer


class RequestorConnection:
    """A connection that we opened.

    Parameters
    ----------
    host : str
        Name or address of the peer.
    port : int
        Its TCP port.
    seconds : float
        Seconds in which the connection must be made, for all addresses of the name together.

    Raises
    ------
    Unreachable
        If it is not made by then.
    """

    def __init__(self, host: str, port: int, seconds: float) -> None:
        deadline = Deadline(seconds)
        self._buffer = bytearray()
        self._socket = self._connect(host, port, deadline)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)

    @staticmethod
    def _connect(host: str, port: int, deadline: Deadline) -> socket.socket:
        where = f"{host}:{port}"
        problem = f"no connection to {where} in {deadline.seconds:g} s"
        for family, kind, protocol, _, address in resolve(host, port, deadline):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(max(deadline.left(), 0.001))
                connection.connect(address)
            except TimeoutError:
                problem = f"no answer from {where} in {deadline.seconds:g} s"
            except OSError as error:
                problem = (
                    f"nobody listens on {where} (connection refused)"
                    if error.errno == errno.ECONNREFUSED
                    else f"there is no way to {where} ({errno.errorcode.get(error.errno or 0)})"
                )
            else:
                return connection
            connection.close()
        raise Unreachable(problem)

    def send(self, buffers: Sequence[bytes | memoryview], deadline: Deadline) -> None:
        """Send bytes, all of them by the deadline.

        Raises
        ------
        AssociationBroken
            If the peer stops reading, closes the connection or aborts.
        """
        pending = [memoryview(buffer) for buffer in buffers]
        at = 0
        while at < len(pending):
            try:
                sent = self._socket.sendmsg(pending[at : at + BUFFERS])
            except BlockingIOError:
                self._wait_until_writable(deadline)
                continue
            except OSError:
                raise AssociationBroken(self._parting_words("closed the connection")) from None
            while at < len(pending) and sent >= len(pending[at]):
                sent -= len(pending[at])
                at += 1
            if sent:
                pending[at] = pending[at][sent:]

    def receive(self, amount: int, deadline: Deadline) -> bytes:
        """Return exactly so many bytes, received by the deadline.

        Raises
        ------
        AssociationBroken
            If they do not come, or the peer closes the connection.
        """
        while len(self._buffer) < amount:
            self._wait(select.POLLIN, deadline, "sent no answer")
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                raise AssociationBroken("closed the connection")
            self._buffer += data
        received = bytes(self._buffer[:amount])
        del self._buffer[:amount]
        return received

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _wait(self, events: int, deadline: Deadline, what: str) -> int:
        poll = select.poll()
        poll.register(self._socket, events)
        left = deadline.left()
        ready = poll.poll(left * 1000 + 1) if left else []
        if not ready:
            raise AssociationBroken(f"{what} in {deadline.seconds:g} s")
        return ready[0][1]

    def _wait_until_writable(self, deadline: Deadline) -> None:
        what = "took no more data"
        if self._wait(select.POLLIN | select.POLLOUT, deadline, what) & select.POLLOUT:
            return
        # The peer sends instead of reading.  If that is an A-ABORT, it will read nothing more.
        words = self._parting_words("")
        if words:
            raise AssociationBroken(words)
        self._wait(select.POLLOUT, deadline, what)

    def _parting_words(self, otherwise: str) -> str:
        """Return how the peer ended the association, judged by the bytes that are still unread."""
        try:
            first = self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return otherwise
        except OSError:
            return "closed the connection"
        if not first:
            return "closed the connection"
        return "aborted the association" if first[0] == 0x07 else otherwise
