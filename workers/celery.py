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
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import (
    setup_logging,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.utils.sysinfo import is_auto_concurrency

from adapter import log
from adapter.core import open_adapter
from adapter.errors import ConfigurationError
from adapter.ledger.engines import SPARE_CONNECTIONS, name_process
from adapter.rights import keep_files_private
from adapter.settings import CONFIG_VARIABLE, DATA_VARIABLE, Settings, load
from adapter.stages import (
    STAGES,
    SUBJECTS,
    StageQueues,
    concurrency,
    make_app,
    password_file,
)
from workers.background import WorkerBackgroundTasks
from workers.metrics import WorkerMetrics
from workers.runner import OwnDueWork, StageRunner
from workers.stage import Parked, Work

_stopping = threading.Event()
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


runner = StageRunner(work, _stopping, metrics)


# A task takes any arguments: whoever sends one by hand wakes the stage, and no more.


def _add_task(app: Celery, stage: str) -> None:
    @app.task(name=stage, throws=(Parked,))
    def run_stage(*_args: Any, **hint: Any) -> dict[str, Any]:
        """Take the row that the wake-up names if it is due, else what is."""
        row = hint.get(SUBJECTS.get(stage, ""))
        return runner.run(stage, None if row is None else str(row))


keep_files_private()

if "flower" in sys.argv:
    from workers.flower import guard  # in no other process: it imports Flower

    guard(settings())

app = make_app(settings())
for _stage in STAGES:
    _add_task(app, _stage)


_background: list[WorkerBackgroundTasks] = []


@setup_logging.connect
def _log(**_: Any) -> None:
    log.configure()


@worker_init.connect
def _start(sender: Any, **_: Any) -> None:
    stages = [stage for stage in STAGES if stage in sender.app.amqp.queues.consume_from]
    bounds = {stage: concurrency(settings())[stage] for stage in stages}
    if is_auto_concurrency(sender.concurrency):
        sender.concurrency = sum(bounds.values())
    elif len(stages) == 1:
        bounds[stages[0]] = sender.concurrency
    runner.limit(bounds)
    most = sum(bounds.values()) + SPARE_CONNECTIONS
    name_process(f"worker {','.join(stages)}", most)
    own_work = OwnDueWork(runner, stages)
    background = WorkerBackgroundTasks(settings(), work, metrics, sender.hostname, own_work)
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
    runner.shutdown.begin()


@worker_shutdown.connect
def _stop(**_: Any) -> None:
    for background in _background:
        background.stop()
    if work.cache_info().currsize:
        work().headers.close()
        work().adapter.close()
