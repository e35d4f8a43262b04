# SPDX-License-Identifier: Apache-2.0
"""The Celery application of the workers: ``celery -A workers worker -Q export``.

Each stage is one task, named like its queue.  A wake-up only says
that there is work: the task takes what is due in the ledger until there is no more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
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

from adapter import log
from adapter.core import open_adapter
from adapter.embedded.roles import flower_environment
from adapter.errors import ConfigurationError, LeaseLost, NotYetVisible
from adapter.ledger.engines import AWAY
from adapter.settings import CONFIG_VARIABLE, DATA_VARIABLE, Settings, load
from adapter.stages import STAGES, StageQueues, make_app, password_file
from workers import export, grouping, notification, pipeline, reclamation, submission
from workers.background import BackgroundTasks
from workers.metrics import WorkerMetrics
from workers.shutdown import Shutdown
from workers.stage import Work

logger = log.get_logger(__name__)

#: What each stage does, in stage order.
RUNS: dict[str, Callable[[Work], dict[str, Any]]] = dict(
    zip(
        STAGES,
        (
            notification.run,
            grouping.run,
            submission.run,
            pipeline.run,
            export.run,
            reclamation.run,
        ),
        strict=True,
    )
)

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


def _add_stage(app: Celery, stage: str, run: Callable[[Work], dict[str, Any]]) -> None:
    @app.task(name=stage)
    def answer_bell() -> dict[str, Any]:
        """Take what is due until there is no more."""
        began = time.monotonic()
        done = None
        try:
            with _shutdown.at_work():
                done = run(work())
        except (LeaseLost, NotYetVisible, *AWAY, OSError) as error:
            # Another worker has it, or the ledger is away, or the disk fails: the poll wakes it.
            logger.warning("a run was cut short", stage=stage, error=type(error).__name__)
            return {}
        finally:
            metrics.ran(stage, time.monotonic() - began, done)
        if any(done.values()):
            logger.info(stage, **done)
        return done


if "flower" in sys.argv:
    # However it is started, Flower asks for the password of the data folder.
    for _name, _value in flower_environment(settings()).items():
        os.environ.setdefault(_name, _value)

app = make_app(settings())
for _stage, _run in RUNS.items():
    _add_stage(app, _stage, _run)


_background: list[BackgroundTasks] = []


@setup_logging.connect
def _log(**_: Any) -> None:
    log.configure()


@worker_init.connect
def _start(sender: Any, **_: Any) -> None:
    stages = [stage for stage in STAGES if stage in sender.app.amqp.queues.consume_from]
    background = BackgroundTasks(settings(), work, metrics, sender.hostname, stages)
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
