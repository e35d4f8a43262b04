# SPDX-License-Identifier: Apache-2.0
"""Shutdown: a worker that is told to stop, and has stopped working, ends.

Celery's main thread waits for a broker that is away, without an end and deaf to signals: such a
worker would sit idle until somebody kills it.  Nothing is lost by ending it at once: what it held
is done or given back, and the wake-up that it holds is sent again by the due-work poll.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from adapter.log import get_logger

log = get_logger(__name__)

#: Seconds without work in which Celery ends by itself, unless it waits for the broker.
LINGER_SECONDS = 10.0


class Shutdown:
    """Counts the runs at work, and ends the process once it is to stop and none is left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count a run while the block goes on."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def begin(self) -> None:
        """End the process as soon as no run is left and it has not ended by itself."""
        threading.Thread(target=self._end, name="shutdown", daemon=True).start()

    def _end(self) -> None:
        with self._changed:
            while self._changed.wait_for(lambda: self._running, LINGER_SECONDS):
                self._changed.wait_for(lambda: not self._running)
        log.warning("ending without Celery, which waits for the broker")
        os._exit(0)
