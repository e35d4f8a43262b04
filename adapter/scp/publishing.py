# SPDX-License-Identifier: Apache-2.0
"""Instances whose receive time is taken and whose name is not visible yet.

A group closes when nothing for it, received before its quiet time, waits in incoming/.  Between the
moment that gives an instance its receive time and the moment that makes its name visible a process
may stall for as long as it likes.  So a process takes the time and notes it in one step, and its
heartbeat declares until when everything of it is visible; a group closes only when every receiver
that is alive has declared its quiet time.  A process that was silent for so long that it counts as
gone acknowledges nothing of that time: such an instance is withdrawn, and the sender repeats it.
"""

from __future__ import annotations

import errno
import os
import threading
import time

from adapter import heartbeat


class Publishing:
    """The instances of one process that are about to become visible."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = 0.0
        self._pending: set[Naming] = set()

    def begin(self) -> Naming:
        """Take an instance's receive time; its name has to become visible now."""
        with self._lock:
            naming = Naming(self, self._now())
            self._pending.add(naming)
        return naming

    def end(self, naming: Naming) -> None:
        """Note that an instance is visible, or will never be."""
        with self._lock:
            self._pending.discard(naming)

    def published_until(self) -> float:
        """Return a time before which no instance was received that is not visible by now.

        Seconds since 1970, UTC.  What is received later gets no earlier time.
        """
        with self._lock:
            now = self._now()
            return min((naming.received_at for naming in self._pending), default=now)

    def _now(self) -> float:
        """Return the time, which does not go back while this process lives."""
        self._latest = max(self._latest, time.time())
        return self._latest


class Naming:
    """One instance, from its receive time until its name is visible.

    Attributes
    ----------
    received_at : float
        Its receive time (seconds since 1970, UTC).
    """

    def __init__(self, publishing: Publishing, received_at: float) -> None:
        self._publishing = publishing
        self._began = time.monotonic()
        self.received_at = received_at

    def visible(self) -> None:
        """Say that the name is visible.

        Raises
        ------
        TimeoutError
            If that took so long that a group may have been closed without it.
        """
        self._publishing.end(self)
        if time.monotonic() - self._began >= heartbeat.SILENCE_SECONDS:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def end(self) -> None:
        """Say that it is visible or will not be; again does no harm."""
        self._publishing.end(self)
