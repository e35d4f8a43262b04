# SPDX-License-Identifier: Apache-2.0
"""The places for associations: a limit over all processes of one SCP, shared fairly.

A place is a byte of a file.  The process whose association has the place locks the byte.  The
kernel frees the locks of a process that dies, so no place is ever lost.

When no place is free, an association that is idle is ended, if its peer has more than its fair
share: of all places, if the other addresses have fewer; of one address's places (a gateway's, for
example), if the other AE titles that call from there have fewer.  An association is never ended
within a message that its peer still sends or waits for.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import NamedTuple

from adapter.addresses import peer_address

#: Seconds of silence after which an association may be ended for another peer's.
IDLE_SECONDS = 5.0
#: Seconds that a request waits for the place of an association that is being ended.
_WAIT_SECONDS = 1.0
_LOOK_SECONDS = 0.02

#: A place's record: the peer's address and calling AE title; since when it is idle (monotonic
#: seconds; 0 while it is not); whether it is to be ended.  The bytes of an IPv4 address stand
#: behind ones, which begin no IPv6 peer's address.
_RECORD = Struct("@16s16sdq")
_WORD = 8
_IDLE_SINCE, _END = 4, 5  # words of a record
_WORDS = _RECORD.size // _WORD
_NOBODY = bytes(16)


class _Peer(NamedTuple):
    address: bytes
    calling_ae: bytes


class Place:
    """The place of one association; `release` gives it back.

    Parameters
    ----------
    limiter : AssociationLimiter
        Whose place it is.
    number : int
        Which one.
    """

    def __init__(self, limiter: AssociationLimiter, number: int) -> None:
        self._limiter = limiter
        self._idle_since = limiter.idle_since
        self._at = number * _WORDS + _IDLE_SINCE
        self._number = number

    def busy(self) -> None:
        """Note that the association has work."""
        self._idle_since[self._at] = 0.0

    def idle(self) -> None:
        """Note that the association waits for its peer from now on."""
        self._idle_since[self._at] = time.monotonic()

    def release(self) -> None:
        """Give the place back."""
        self._limiter.release(self._number)


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
        self._file.truncate(total * _RECORD.size)
        memory = memoryview(mmap.mmap(self._file.fileno(), total * _RECORD.size))
        self._records = memory
        self.idle_since = memory.cast("d")
        self._words = memory.cast("q")
        self._mine: dict[int, Callable[[], None]] = {}  # places, and what ends their associations
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many places this process has."""
        return len(self._mine)

    def acquire(
        self, address: str, calling_ae: str = "", end: Callable[[], None] = lambda: None
    ) -> Place | None:
        """Take a place for a peer; return None if none is free, or none for this peer.

        Parameters
        ----------
        address : str
            The peer's IP address.
        calling_ae : str, optional
            Its AE title.
        end : callable, optional
            Called, by any thread, to end the association because it is idle.
        """
        peer = _Peer(
            peer_address(address).packed.rjust(16, b"\xff"), calling_ae.encode()[:16].ljust(16)
        )
        place, ending = self._take(peer, end, look_for_idle=True)
        deadline = time.monotonic() + _WAIT_SECONDS
        while place is None and ending and time.monotonic() < deadline:
            self.end_superfluous()
            time.sleep(_LOOK_SECONDS)
            place, _ = self._take(peer, end, look_for_idle=False)
        return place

    def end_superfluous(self) -> None:
        """End the associations of this process whose places another peer needs."""
        with self._lock:
            superfluous = [
                (place, end)
                for place, end in self._mine.items()
                if self._words[place * _WORDS + _END]
            ]
            for place, _ in superfluous:
                self._words[place * _WORDS + _END] = 0
        now = time.monotonic()
        for place, end in superfluous:
            if self._idle(place, now):
                end()

    def release(self, place: int) -> None:
        """Give a place back."""
        with self._lock:
            if self._mine.pop(place, None) is not None:
                self._write(place, _Peer(_NOBODY, _NOBODY))
                self._unlock(place)

    def close(self) -> None:
        """Close the file; places that are still taken are lost."""
        with self._lock:
            self._mine.clear()
            self._file.close()

    # -- places ------------------------------------------------------------------------------------

    def _take(
        self, peer: _Peer, end: Callable[[], None], *, look_for_idle: bool
    ) -> tuple[Place | None, bool]:
        """Return a place, or None and whether an association is being ended for one."""
        with self._lock, self._alone():
            peers = {place: self._peer(place) for place in range(self._total)}
            same = [place for place, other in peers.items() if other.address == peer.address]
            if len(same) >= self._per_peer and self._held(same) >= self._per_peer:
                # Only the places of this address help, shared among the AE titles that call there.
                among = {place: peers[place].calling_ae for place in same}
                return None, look_for_idle and self._ask_to_end(
                    among, peer.calling_ae, self._per_peer, peers
                )
            for place in range(self._total):
                if place not in self._mine and self._try(place):
                    self._mine[place] = end
                    self._write(place, peer)
                    return Place(self, place), False
            among = {place: other.address for place, other in peers.items()}
            return None, look_for_idle and self._ask_to_end(among, peer.address, self._total, peers)

    def _ask_to_end(
        self,
        among: dict[int, bytes],
        newcomer: bytes,
        limit: int,
        peers: dict[int, _Peer],
    ) -> bool:
        """Have an idle association of a sharer with more than its share ended, if there is one.

        Of the sharers with the most places the AE title with the most loses the one that is idle
        for the longest.
        """
        shares = Counter(among.values())
        titles = Counter(peers[place] for place in among)
        share = limit // len({*shares, newcomer})
        now = time.monotonic()
        candidates = [
            place
            for place, sharer in among.items()
            if shares[sharer] > share and self._idle(place, now)
        ]
        if not candidates:
            return False
        chosen = max(
            candidates,
            key=lambda place: (
                shares[among[place]],
                titles[peers[place]],
                -self.idle_since[place * _WORDS + _IDLE_SINCE],
            ),
        )
        self._words[chosen * _WORDS + _END] = 1
        return True

    def _idle(self, place: int, now: float) -> bool:
        since = self.idle_since[place * _WORDS + _IDLE_SINCE]
        return 0 < since <= now - IDLE_SECONDS

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes from taking a place meanwhile."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._total)
        try:
            yield
        finally:
            self._unlock(self._total)

    def _peer(self, place: int) -> _Peer:
        address, calling_ae, _, _ = _RECORD.unpack_from(self._records, place * _RECORD.size)
        return _Peer(address, calling_ae)

    def _write(self, place: int, peer: _Peer) -> None:
        _RECORD.pack_into(self._records, place * _RECORD.size, *peer, 0.0, 0)

    def _held(self, places: Sequence[int]) -> int:
        """Count the places that are taken; clear those of processes that died."""
        held = 0
        for place in places:
            if place not in self._mine and self._try(place):
                self._write(place, _Peer(_NOBODY, _NOBODY))
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
