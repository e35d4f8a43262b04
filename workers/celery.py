# SPDX-License-Identifier: Apache-2.0
"""The Celery application of the workers: ``celery -A workers worker -Q export``.

Each stage is one task, named like its queue.  A wake-up is a
hint: what is due stands in the ledger.  A task of a stage that works on rows takes one row, wakes
the stage for the next, and names the row and what came of it in its result; a try that failed is
shown as RETRY, a parked row as FAILURE.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from celery import Celery
from celery.exceptions import Retry
from celery.signals import (
    setup_logging,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from adapter import log
from adapter.core import open_adapter
from adapter.errors import ConfigurationError, LeaseLost, NotYetVisible
from adapter.ledger.engines import AWAY, name_process
from adapter.rights import keep_files_private
from adapter.settings import CONFIG_VARIABLE, DATA_VARIABLE, Settings, load
from adapter.stages import (
    EXPORT,
    GROUPING,
    NOTIFICATION,
    PIPELINE,
    RECLAMATION,
    STAGES,
    SUBJECTS,
    SUBMISSION,
    StageQueues,
    make_app,
    password_file,
)
from workers import export, grouping, notification, pipeline, reclamation, submission
from workers.background import WorkerBackgroundTasks
from workers.metrics import WorkerMetrics
from workers.shutdown import Shutdown
from workers.stage import Parked, Take, TryFailed, Work, take_all

logger = log.get_logger(__name__)

#: The stages whose unit of work is a row: a task takes one, and names it in its result.
TAKES: dict[str, Take] = {
    GROUPING: grouping.take,
    SUBMISSION: submission.take,
    PIPELINE: pipeline.take,
    EXPORT: export.take,
}
#: The stages that work in batches: a task takes all that is due, and counts it in its result.
RUNS: dict[str, Callable[[Work], dict[str, Any]]] = {
    NOTIFICATION: notification.run,
    RECLAMATION: reclamation.run,
}

_stopping = threading.Event()
_shutdown = Shutdown()
metrics = WorkerMetrics()


@cache
def settings() -> Settings:
    """Return the settings of the adapter that the environment names.

    Raises
    ------
    SystemExit
        With every problem in words: Celery shows any other exception with its stack.
    """
    try:
        found = load()
    except ConfigurationError as error:
        raise SystemExit("\n".join(f"error: {problem}" for problem in error.problems)) from None
    if found.broker.url is None and not password_file(found).exists():
        raise SystemExit(
            f"error: there is no adapter in {found.data} yet: `dicom-adapter up` makes one; "
            f"{DATA_VARIABLE} or {CONFIG_VARIABLE} chooses another; broker > url names its Redis"
        )
    return found


@cache
def work() -> Work:
    """Return what the stages of this process work with."""
    adapter = open_adapter(settings())
    return Work(adapter, StageQueues(app), _stopping, metrics)


@contextmanager
def _task(stage: str) -> Iterator[Counter[str]]:
    """Run the body of a task, and count what it did.

    Raises
    ------
    Retry
        If the ledger or the disk is away, or a lease was lost: the due-work poll wakes the stage
        again.
    """
    began = time.monotonic()
    done: Counter[str] = Counter()
    ended = False
    try:
        with _shutdown.at_work():
            yield done
        ended = True
    except (LeaseLost, NotYetVisible, *AWAY, OSError) as error:
        name = type(error).__name__
        logger.warning("a run was cut short", stage=stage, error=name)
        raise Retry(exc=TryFailed(f"cut short: {name}")) from None
    finally:
        metrics.ran(stage, time.monotonic() - began, done if ended else None)
    if any(done.values()):
        logger.info(stage, **done)


# A task takes any arguments: whoever sends one by hand wakes the stage, and no more.


def _add_batch_stage(app: Celery, stage: str, run: Callable[[Work], dict[str, Any]]) -> None:
    @app.task(name=stage)
    def take_batches(*_args: Any, **_hint: Any) -> dict[str, Any]:
        """Take what is due until there is no more."""
        with _task(stage) as counts:
            counts.update(run(work()))
        return dict(counts)


def _add_unit_stage(app: Celery, stage: str, take: Take) -> None:
    subject = SUBJECTS[stage]

    @app.task(name=stage, throws=(Parked,))
    def take_unit(*_args: Any, **hint: Any) -> dict[str, Any]:
        """Take the row that the wake-up names if it is due, else the first that is."""
        began = time.monotonic()
        with _task(stage) as counts:
            done = take(work(), str(hint[subject]) if subject in hint else None)
            if done is None:
                return {"outcome": "nothing is due"}
            seconds = round(time.monotonic() - began, 3)
            counts.update(done.counts)
            if not _stopping.is_set() and not work().queues.wake_for_next(work().adapter, stage):
                counts.update(take_all(work(), take))
        if isinstance(done.failure, TryFailed):
            raise Retry(exc=done.failure)
        if done.failure is not None:
            raise done.failure
        # The outcome first: Flower's table cuts a result short, and shows the id as the argument.
        row = {subject: done.id} if done.id else {}
        return {"outcome": done.outcome, "seconds": seconds, **row, **done.facts}


keep_files_private()

if "flower" in sys.argv:
    from workers.flower import guard  # in no other process: it imports Flower

    guard(settings())

app = make_app(settings())
for _stage, _run in RUNS.items():
    _add_batch_stage(app, _stage, _run)
for _stage, _take in TAKES.items():
    _add_unit_stage(app, _stage, _take)


_background: list[WorkerBackgroundTasks] = []


@setup_logging.connect
def _log(**_: Any) -> None:
    log.configure()


@worker_init.connect
def _start(sender: Any, **_: Any) -> None:
    stages = [stage for stage in STAGES if stage in sender.app.amqp.queues.consume_from]
    name_process(f"worker {','.join(stages)}")
    background = WorkerBackgroundTasks(settings(), work, metrics, sender.hostname, stages)
    try:
        background.start()
    except ConfigurationError as error:
        # Celery would go on after another exception of a signal's receiver.
        raise SystemExit("; ".join(error.problems)) from None
    _background.append(background)


@worker_ready.connect
def _consume(sender: Any, **_: Any) -> None:
    for background in _background:
        background.consume(sender)


@worker_shutting_down.connect
def _stop_taking(**_: Any) -> None:
    _stopping.set()
    _shutdown.begin()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    for background in _background:
        background.stop()
    if work.cache_info().currsize:
        work().headers.close()
        work().adapter.close()
