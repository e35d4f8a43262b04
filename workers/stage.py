# SPDX-License-Identifier: Apache-2.0
"""What a stage's task is given, and what it says of a unit of its work."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from adapter.core import Adapter
from adapter.ledger.engines import AWAY
from adapter.models import JobState
from adapter.stages import StageQueues
from workers.clients.headers import HeaderReaders
from workers.clients.platform import Platforms
from workers.metrics import WorkerMetrics


class Turn:
    """Lets one thread of a worker at a time talk to a peer, and less often if it does not answer.

    A failure that took `t` seconds is followed by ten times `t` without a turn, so that a silent
    peer takes at most a tenth of the time of the work that goes on beside it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = self._next = 0.0

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Say whether it is the caller's turn, and hold it."""
        if not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            self._start = time.monotonic()
            yield self._start >= self._next
        finally:
            self._lock.release()

    def failed(self) -> None:
        """Note, in a turn, that the peer did not do its part."""
        now = time.monotonic()
        self._next = now + 10 * (now - self._start)


@dataclass(frozen=True)
class Work:
    """What a stage works with, kept for the life of a worker.

    Attributes
    ----------
    adapter : Adapter
        Settings, spool and ledger.
    queues : StageQueues
        Wakes the next stage.
    stopping : threading.Event
        Set when the worker is told to stop: finish or give back what is held, take nothing more.
    metrics : WorkerMetrics
        What the worker counts.
    headers : HeaderReaders
        Child processes that read headers which a peer or a pipeline wrote.
    platforms : Platforms
        Where pipelines run.
    owed : list of callable
        What is to be given back to the ledger when it answers again.
    reports : Turn
        Whose turn it is to report to the Results Service.
    """

    adapter: Adapter
    queues: StageQueues
    stopping: threading.Event = field(default_factory=threading.Event)
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    reports: Turn = field(default_factory=Turn)
    owed: list[Callable[[], None]] = field(default_factory=list)
    headers: HeaderReaders = field(init=False)
    platforms: Platforms = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "platforms", Platforms(self.adapter))
        settings = self.adapter.settings
        object.__setattr__(
            self,
            "headers",
            HeaderReaders(settings.notification, strict_uids=settings.dicom.scp.strict_uids),
        )

    def owe(self, settle: Callable[[], None]) -> None:
        """Give something back to the ledger, now or as soon as that answers."""
        self.owed.append(settle)
        with suppress(*AWAY):
            self.settle_owed()

    def settle_owed(self) -> None:
        """Give back what is owed to the ledger.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            If the ledger is away; what could not be given back is owed still.
        """
        while self.owed:
            settle = self.owed.pop()
            try:
                settle()
            except AWAY:
                self.owed.append(settle)
                raise


class TryFailed(Exception):
    """A try that failed and is made again: Celery shows the task as RETRY."""


class Parked(Exception):
    """A row that waits for an operator: Celery shows the task as FAILURE."""


def failure_of(outcome: str, text: str) -> TryFailed | Parked:
    """Return the failure of a unit by its outcome: parked, or to be tried again."""
    return (Parked if outcome == JobState.PARKED else TryFailed)(text)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of one unit of a stage's work: one group, job or export.

    Attributes
    ----------
    id : str
        The row; empty for what has none, e.g. a report.
    outcome : str
        What came of it, in one word: the label of the metric.
    failure : TryFailed or Parked, optional
        Why the unit did not succeed; its text holds no PHI.
    facts : dict
        Further ids, counts and sizes for the task's result.
    more : dict of str to int
        What the metrics count beside the outcome.
    """

    id: str
    outcome: str
    failure: TryFailed | Parked | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    more: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """What the metrics count of it."""
        return {self.outcome: 1, **self.more}


#: Takes the unit that is named if it is due, else the next one that is; None if none is.
Take = Callable[[Work, str | None], TaskResult | None]


def take_all(work: Work, take: Take, first: str | None = None) -> Counter[str]:
    """Take unit after unit until none is due, and count the outcomes: without a broker."""
    counts: Counter[str] = Counter()
    while not work.stopping.is_set() and (done := take(work, first)) is not None:
        counts.update(done.counts)
        first = None
    return counts
