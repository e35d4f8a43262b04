# SPDX-License-Identifier: Apache-2.0
"""The places for associations: a limit over all processes of one SCP.

A place is a byte of a file.  The process whose association has the place locks the byte.  The
kernel frees the locks of a process that dies, so no place is ever lost.  The peer's address is
written at the place, for the limit of each peer.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from adapter.addresses import peer_address

#: Bytes of an address; those of IPv4 stand behind ones, which begin no IPv6 peer's address.
_RECORD = 16
_NOBODY = bytes(_RECORD)


class AssociationLimiter:
    """Places for associations, made before the processes that share them.

    Parameters
    ----------
    total : int
        How many there are.
    per_peer : int
        How many one address may have.
    """

    def __init__(self, total: int, per_peer: int) -> None:
        self._total = total
        self._per_peer = per_peer
        # The file lives while a process has it open.  Locks belong to processes, not to threads.
        self._file = tempfile.TemporaryFile(prefix="dicom-adapter-limiter-")  # noqa: SIM115
        self._file.truncate(total * _RECORD)
        self._peers = mmap.mmap(self._file.fileno(), total * _RECORD)
        self._mine: set[int] = set()
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many places this process has."""
        return len(self._mine)

    def acquire(self, address: str) -> int | None:
        """Take a place for a peer; return None if none is free, or none for this peer."""
        peer = _packed(address)
        with self._lock, self._alone():
            same = [place for place in range(self._total) if self._peer(place) == peer]
            if len(same) >= self._per_peer and self._held(same) >= self._per_peer:
                return None
            for place in range(self._total):
                if place not in self._mine and self._try(place):
                    self._mine.add(place)
                    self._write(place, peer)
                    return place
        return None

    def release(self, place: int | None) -> None:
        """Give a place back; None stands for no place."""
        with self._lock:
            if place is None or self._file.closed:
                return
            self._mine.discard(place)
            self._write(place, _NOBODY)
            self._unlock(place)

    def close(self) -> None:
        """Close the file; places that are still taken are lost."""
        with self._lock:
            self._mine.clear()
            self._peers.close()
            self._file.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes from taking a place meanwhile."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._total)
        try:
            yield
        finally:
            self._unlock(self._total)

    def _peer(self, place: int) -> bytes:
        return self._peers[place * _RECORD : (place + 1) * _RECORD]

    def _write(self, place: int, peer: bytes) -> None:
        self._peers[place * _RECORD : (place + 1) * _RECORD] = peer

    def _held(self, places: list[int]) -> int:
        """Count the places that are taken; clear those of processes that died."""
        held = 0
        for place in places:
            if place not in self._mine and self._try(place):
                self._write(place, _NOBODY)
                self._unlock(place)
            else:
                held += 1
        return held

    def _try(self, place: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                return False
            raise
        return True

    def _unlock(self, place: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)


def _packed(address: str) -> bytes:
    return peer_address(address).packed.rjust(_RECORD, b"\xff")
