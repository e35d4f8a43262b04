# SPDX-License-Identifier: Apache-2.0
"""What the SCP reports: events for the ledger, counts for its heartbeat, and metrics.

Reporting never waits and never fails: events wait in a bounded queue for the ledger, and are only
counted when the queue is full.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

from adapter.dicom.uids import is_uid
from adapter.ledger import Ledger, events
from adapter.scp.metrics import ProcessMetrics
from adapter.scp.shared_counters import SharedCounters

# The kinds of events.
REJECTED = "association-rejected"  #: an A-ASSOCIATE-RJ, and why
ASSOCIATION = "association"  #: the summary of an association, at its end
STORE_FAILED = "store-failed"  #: a C-STORE that was not answered with Success

#: Events that wait for the ledger at most.
QUEUE_LENGTH = 10_000
#: Seconds for which a failure of the spool is told, unless an instance is stored meanwhile.
FAILING_SECONDS = 30.0
#: Events written in one transaction.
_BATCH = 200


def printable(text: str, limit: int = 64) -> str:
    """Return a peer's text in a form fit to show: escaped, and cut short."""
    return text[:limit].encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)


def shown_uid(text: str) -> str:
    """Return a peer's UID; of what is no UID only the length, since it may be patient data."""
    return text if is_uid(text) else f"no UID, of {len(text)} characters"


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}


class ScpEvents:
    """The queue of events and the counters of one SCP.

    Parameters
    ----------
    metrics : ProcessMetrics, optional
        Where metrics are counted, if other processes count too.
    """

    def __init__(self, metrics: ProcessMetrics | None = None) -> None:
        self.metrics = metrics or ProcessMetrics(SharedCounters(1).process(0))
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, float, str | None, dict[str, Any]]] = deque()
        self._counts: Counter[str] = Counter()
        self._failure: tuple[float, str] | None = None

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += by

    def stored(self, size: int) -> None:
        """Count a stored instance of `size` bytes: the spool works."""
        with self._lock:
            self._counts["stored"] += 1
            self._counts["bytes"] += size
            self._failure = None

    def spool_failed(self, error: str) -> None:
        """Take note that the spool took no instance, and why (the name of an errno)."""
        with self._lock:
            self._failure = time.monotonic(), error

    @property
    def failure(self) -> str | None:
        """Why the spool took no instance lately; None if it did."""
        with self._lock:
            if self._failure is None or time.monotonic() > self._failure[0] + FAILING_SECONDS:
                return None
            return f"the spool fails ({self._failure[1]})"

    def record(self, kind: str, *, association: str | None = None, **detail: Any) -> None:
        """Queue an event, as of now."""
        with self._lock:
            if len(self._queue) >= QUEUE_LENGTH:
                self._counts["events_dropped"] += 1
            else:
                self._queue.append((kind, time.time(), association, detail))

    def counts(self) -> dict[str, int]:
        """Return the counters, and how many events wait."""
        with self._lock:
            return {**self._counts, "events_waiting": len(self._queue)}

    def flush(self, ledger: Ledger) -> None:
        """Write the waiting events into the ledger; those that it refuses stay in the queue.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            If the ledger does not answer.
        """
        while batch := self._next_batch():
            with ledger.write() as connection:
                for kind, at, association, detail in batch:
                    events.record(connection, kind, association=association, at=at, **detail)
            with self._lock:
                for _ in batch:
                    self._queue.popleft()

    def _next_batch(self) -> list[tuple[str, float, str | None, dict[str, Any]]]:
        with self._lock:
            return [self._queue[index] for index in range(min(_BATCH, len(self._queue)))]
