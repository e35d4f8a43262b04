# SPDX-License-Identifier: Apache-2.0
"""Runs of a worker's stages: as many at a time as each stage may have, woken or not.

A stage's concurrency is its own, however its worker was started: a worker of several stages runs
no more of one than a worker of that one alone.  A wake-up that comes while a stage has all its
runs here is dropped: each run wakes the stage for the next when it ends, and the due-work poll
does it again.

A run may also begin without a wake-up (`OwnDueWork`): the broker is a convenience.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery.exceptions import Retry

from adapter import log
from adapter.errors import LeaseLost, LedgerError, NotYetVisible, SpoolError
from adapter.ledger.engines import AWAY
from adapter.stages import (
    EXPORT,
    GROUPING,
    NOTIFICATION,
    PIPELINE,
    RECLAMATION,
    STAGES,
    SUBJECTS,
    SUBMISSION,
)
from workers import export, grouping, notification, pipeline, reclamation, submission
from workers.metrics import WorkerMetrics
from workers.shutdown import Shutdown
from workers.stage import Parked, Take, TryFailed, Work, take_all

logger = log.get_logger(__name__)

#: The stages whose unit of work is a row: a run takes one, and names it in its result.
TAKES: dict[str, Take] = {
    GROUPING: grouping.take,
    SUBMISSION: submission.take,
    PIPELINE: pipeline.take,
    EXPORT: export.take,
}
#: The stages that work in batches: a run takes all that is due, and counts it in its result.
BATCHES: dict[str, Callable[[Work], dict[str, Any]]] = {
    NOTIFICATION: notification.run,
    RECLAMATION: reclamation.run,
}
assert TAKES.keys() | BATCHES.keys() == set(STAGES)

#: The result of a wake-up that came while its stage had all its runs here.
BUSY = {"outcome": "the stage has all its runs here"}
#: Polls in a row that find a stage's work due, and a run of it free, before it is taken unasked: a
#: wake-up had that long to come.
POLLS_BEFORE_OWN_RUN = 3
#: The same while the broker answers: then it is rather slow than lost, and Flower shows what it
#: brings.
POLLS_WITH_BROKER = 12


class StageRunner:
    """Runs the stages of one worker.

    Parameters
    ----------
    work : callable
        Opens the adapter, or returns what it has opened.
    stopping : threading.Event
        Set when the worker is told to stop.
    metrics : WorkerMetrics
        What the worker counts.
    """

    def __init__(
        self, work: Callable[[], Work], stopping: threading.Event, metrics: WorkerMetrics
    ) -> None:
        self.shutdown = Shutdown()
        self._work = work
        self._metrics = metrics
        self._stopping = stopping
        self._lock = threading.Lock()
        self._free: dict[str, int] = {}

    def limit(self, bounds: Mapping[str, int]) -> None:
        """Set how many runs of each stage there may be at a time."""
        with self._lock:
            self._free = dict(bounds)

    def is_free(self, stage: str) -> bool:
        """Return whether one more run of a stage may begin."""
        return self._free.get(stage, 0) > 0

    @contextmanager
    def _taken(self, stage: str) -> Iterator[bool]:
        """Hold one of a stage's runs; False if all are held."""
        with self._lock:
            free = self._free.get(stage, 0) > 0
            self._free[stage] = self._free.get(stage, 0) - free
        try:
            yield free
        finally:
            with self._lock:
                self._free[stage] += free

    def run(self, stage: str, row: str | None = None) -> dict[str, Any]:
        """Make one run of a stage, and go on while no wake-up can be sent for the next.

        Parameters
        ----------
        row : str, optional
            What to take if it is due, else the first that is.

        Returns
        -------
        dict
            The result of the task.

        Raises
        ------
        Retry
            If the ledger or the disk is away, or a lease was lost: the due-work poll wakes the
            stage again; or if a try failed.
        Parked
            If what was taken now waits for an operator.
        """
        if stage in BATCHES:
            with self._taken(stage) as free, self._counted(stage) as counts:
                if free:
                    counts.update(BATCHES[stage](self._work()))
            return dict(counts) if free else BUSY
        return self._run_unit(stage, row)

    def _run_unit(self, stage: str, row: str | None) -> dict[str, Any]:
        began = time.monotonic()
        take, subject = TAKES[stage], SUBJECTS[stage]
        with self._counted(stage) as counts:
            with self._taken(stage) as free:
                done = take(self._work(), row) if free else None
            if done is None:
                return {"outcome": "nothing is due"} if free else BUSY
            seconds = round(time.monotonic() - began, 3)
            counts.update(done.counts)
            # After the run was given back: the next may come to this worker at once.
            work = self._work()
            if not self._stopping.is_set() and not work.queues.wake_for_next(work.adapter, stage):
                with self._taken(stage) as free:
                    if free:
                        counts.update(take_all(work, take))
        if isinstance(done.failure, TryFailed):
            raise Retry(exc=done.failure)
        if done.failure is not None:
            raise done.failure
        # The outcome first: Flower's table cuts a result short, and shows the id as the argument.
        facts = {subject: done.id} if done.id else {}
        return {"outcome": done.outcome, "seconds": seconds, **facts, **done.facts}

    @contextmanager
    def _counted(self, stage: str) -> Iterator[Counter[str]]:
        """Count what a run did, and how long it took."""
        began = time.monotonic()
        done: Counter[str] = Counter()
        ended = False
        try:
            with self.shutdown.at_work():
                self._work().settle_owed()
                self._work().adapter.spool.check_whole()
                yield done
            ended = True
        except (LeaseLost, LedgerError, NotYetVisible, SpoolError, *AWAY, OSError) as error:
            name = type(error).__name__
            logger.warning("a run was cut short", stage=stage, error=name)
            raise Retry(exc=TryFailed(f"cut short: {name}")) from None
        finally:
            self._metrics.ran(stage, time.monotonic() - began, done if ended else None)
        if any(done.values()):
            logger.info(stage, **done)


class OwnDueWork:
    """Begins runs of a worker's own stages for due work that no wake-up brings.

    Parameters
    ----------
    runner : StageRunner
        Makes the runs.
    stages : list of str
        The worker's stages.
    """

    def __init__(self, runner: StageRunner, stages: list[str]) -> None:
        self.stages = stages
        self._runner = runner
        self._seen = dict.fromkeys(stages, 0)
        self._threads: list[threading.Thread] = []

    def found(self, due: Collection[str], answers: bool) -> None:
        """Take note of the stages that a poll found due; begin a run where nobody else does.

        Parameters
        ----------
        answers : bool
            Whether the broker answers.
        """
        polls = POLLS_WITH_BROKER if answers else POLLS_BEFORE_OWN_RUN
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for stage in self._seen:
            idle = stage in due and self._runner.is_free(stage)
            self._seen[stage] = self._seen[stage] + 1 if idle else 0
            if self._seen[stage] > polls:
                self._begin(stage)

    def stop(self, seconds: float) -> None:
        """Wait up to `seconds` seconds for the runs to end."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _begin(self, stage: str) -> None:
        thread = threading.Thread(target=self._run, args=(stage,), name="own-work", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self, stage: str) -> None:
        try:
            self._runner.run(stage)
        except (Retry, Parked):
            pass  # logged and counted where it happened
        except Exception as error:  # noqa: BLE001 - as in a task: the next poll finds it again
            logger.error("a run without a wake-up failed", stage=stage, error=type(error).__name__)
