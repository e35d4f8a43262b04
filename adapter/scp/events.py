# SPDX-License-Identifier: Apache-2.0
"""What the SCP reports: events for the ledger, counts for its heartbeat, and metrics.

Reporting never waits and never fails: events wait in a bounded queue for the ledger, and are only
counted when the queue is full.  A peer that causes the same kind of event again and again gets a
bounded number of them a minute, in the log as well; then an event says how many were left out.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from adapter.dicom.uids import is_uid
from adapter.ledger import Ledger, events
from adapter.log import get_logger
from adapter.scp.metrics import ProcessMetrics
from adapter.scp.shared_counters import SharedCounters

log = get_logger(__name__)

# The kinds of events.
REJECTED = "association-rejected"  #: an A-ASSOCIATE-RJ, and why
ASSOCIATION = "association"  #: the summary of an association, at its end
STORE_FAILED = "store-failed"  #: a C-STORE that was not answered with Success
LEFT_OUT = "events-left-out"  #: how many events of a kind a peer caused beyond the limit

#: Events of one kind about one peer, in each period and process.
MOST_OF_A_PEER = 20
PERIOD_SECONDS = 60.0
#: Peers that are told apart; all others share one limit.
_MOST_PEERS = 1000
_OTHERS = "others"

#: Events that wait for the ledger at most.
QUEUE_LENGTH = 10_000
#: Seconds for which a failure of the spool is told, unless an instance is stored meanwhile.
FAILING_SECONDS = 30.0
#: Events written in one transaction.
_BATCH = 200


def printable(text: str, limit: int = 64) -> str:
    """Return a peer's text in a form fit to show: escaped, and cut short."""
    return text[:limit].encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)


def note(step: Callable[..., object], *arguments: object) -> None:
    """Take a step of counting or recording; an error in it costs no answer and no place."""
    try:
        step(*arguments)
    except Exception as error:  # noqa: BLE001 - what is told of an instance never decides about it
        log.error("not noted", step=step.__name__, error=type(error).__name__)


def shown_uid(text: str) -> str:
    """Return a peer's UID; of what is no UID only the length, since it may be patient data."""
    return text if is_uid(text) else f"no UID, of {len(text)} characters"


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}


class PeerRates:
    """How often each peer has caused each kind of event, in the present period."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._periods: dict[tuple[str, str], list[float]] = {}  # begin, number of events

    def within_rate(self, kind: str, peer: str) -> bool:
        """Count an event; tell whether it is to be reported."""
        with self._lock:
            key = kind, peer
            if key not in self._periods and len(self._periods) >= _MOST_PEERS:
                key = kind, _OTHERS
            period = self._periods.setdefault(key, [time.monotonic(), 0])
            period[1] += 1
            return period[1] <= MOST_OF_A_PEER

    def take_left_out(self, *, all_periods: bool = False) -> list[tuple[str, str, int]]:
        """Forget the periods that are over; return kind, peer and how many events were left out.

        Parameters
        ----------
        all_periods : bool, optional
            Also those that are not over.
        """
        now = time.monotonic()
        with self._lock:
            over = {
                key: int(number)
                for key, (began, number) in self._periods.items()
                if all_periods or now - began >= PERIOD_SECONDS
            }
            for key in over:
                del self._periods[key]
        return [
            (*key, number - MOST_OF_A_PEER)
            for key, number in over.items()
            if number > MOST_OF_A_PEER
        ]


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
        self._rates = PeerRates()

    def within_rate(self, kind: str, peer: str) -> bool:
        """Tell whether one more event of a kind about a peer is to be recorded and logged."""
        return self._rates.within_rate(kind, peer)

    def sum_up_left_out(self, *, all_periods: bool = False) -> None:
        """Record and log how many events were left out, for the periods that are over."""
        for kind, peer, number in self._rates.take_left_out(all_periods=all_periods):
            self.record(LEFT_OUT, of=kind, peer=peer, number=number)
            log.warning("events left out", of=kind, peer=peer, number=number)

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
