# SPDX-License-Identifier: Apache-2.0
"""Shutdown: a worker that is told to stop ends when its work has ended.

While the broker is away Celery's main thread waits for it without end and ignores signals, so such
a worker would stay until somebody kills it.  Ending it loses nothing: its work is done or given
back, and the due-work poll repeats the wake-up that it holds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from adapter.log import get_logger

log = get_logger(__name__)

#: Seconds without work after which Celery has ended by itself, unless it waits for the broker.
LINGER_SECONDS = 10.0


class Shutdown:
    """Counts the runs that go on, and ends the process when it is to stop and none is left."""

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
