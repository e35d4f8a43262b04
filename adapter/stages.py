# SPDX-License-Identifier: Apache-2.0
"""The pipeline stages: their Celery queues, wake-ups, and the poll that finds due work.

A wake-up is a Celery message that says that a stage has work.  What is due stands in the ledger
(and, for notification, in the spool's incoming/).  Nobody waits for a wake-up to be delivered: a
broker that is away costs seconds of delay and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import exists, select

import celeryconfig
from adapter.background import BackgroundLoop
from adapter.core import Adapter
from adapter.ledger import exports, groups, jobs, queries, reclamation, remote_tasks, schema
from adapter.log import get_logger
from adapter.settings import Settings

log = get_logger(__name__)

STAGES: tuple[str, ...] = celeryconfig.STAGES
NOTIFICATION, GROUPING, SUBMISSION, PIPELINE, EXPORT, RECLAMATION = STAGES

#: Wake-ups that may wait in a stage's queue before the poll adds none.
SHORT_QUEUE = 1
#: Wake-ups that may wait in a stage's queue before nobody adds any: enough to wake its workers, and
#: few enough that those which come too late flood nothing.
FULL_QUEUE = 16
#: Seconds that a poll under way is waited for at the end.
_STOP_SECONDS = 10.0


def password_file(settings: Settings) -> Path:
    """Return the file that holds the password of our own Redis."""
    return settings.data / "redis.password"


def broker_url(settings: Settings) -> str:
    """Return the URL of the broker, with its password: the setting's, or that of our own Redis."""
    if settings.broker.whole_url is not None:
        return settings.broker.whole_url
    try:
        password = password_file(settings).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        password = ""
    return f"redis://:{quote(password)}@127.0.0.1:{settings.broker.port}/0"


def make_app(settings: Settings) -> Celery:
    """Return the Celery application of one adapter."""
    app = Celery("dicom-adapter", set_as_current=False)
    app.config_from_object(celeryconfig)
    app.conf.broker_url = broker_url(settings)
    app.conf.worker_concurrency = settings.workers.short_concurrency
    return app


def due_questions(settings: Settings) -> queries.Questions:
    """Return what makes work of the ledger due, by stage."""
    lease = settings.workers.lease_seconds
    return {
        GROUPING: [(schema.groups, groups.close_due(lease))],
        SUBMISSION: [(schema.jobs, jobs.submission_due(lease))],
        PIPELINE: [(schema.jobs, jobs.run_due(lease))],
        EXPORT: [
            (schema.exports, exports.export_due(settings.dicom.scu, settings.workers)),
            (schema.tasks, remote_tasks.report_due()),
        ],
        RECLAMATION: reclamation.due_questions(settings),
    }


def due_stages(adapter: Adapter) -> list[str]:
    """Return the stages that have due work which nobody holds, in stage order.

    One reading transaction, and one look into incoming/ for files whose wake-up seems lost.
    """
    old = time.time() - adapter.settings.workers.due_work_poll_seconds
    found = {NOTIFICATION} if adapter.spool.waits_since(old) else set()
    with adapter.ledger.read() as connection:
        for stage, candidates in due_questions(adapter.settings).items():
            for table, condition in candidates:
                if connection.execute(
                    select(exists().select_from(table).where(condition))
                ).scalar():
                    found.add(stage)
                    break
    return [stage for stage in STAGES if stage in found]


class StageQueues:
    """Wakes stages, and reads how many wake-ups wait.

    Parameters
    ----------
    app : Celery
        The adapter's application.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    def wake(self, *stages: str) -> bool:
        """Wake stages; False if the broker does not take it, which costs one poll's delay."""
        try:
            with self._app.producer_or_acquire() as producer:
                client = producer.channel.client
                for stage in stages:
                    if client.llen(stage) < FULL_QUEUE:
                        self._app.send_task(stage, queue=stage, producer=producer, retry=False)
        except (OperationalError, RedisError, OSError) as error:
            log.debug("no stage was woken", stages=stages, error=type(error).__name__)
            return False
        return True

    def lengths(self, stages: Collection[str] = STAGES) -> dict[str, int] | None:
        """Return the length of each stage's queue, or None if the broker does not answer."""
        try:
            with self._app.connection_for_read() as connection:
                client = connection.default_channel.client
                return {stage: int(client.llen(stage)) for stage in stages}
        except (OperationalError, RedisError, OSError):
            return None


class DueWorkPoll:
    """A background loop that looks for due work and wakes stages with a short queue.

    Every worker and the API have one; any number may run.  A look writes nothing.

    Parameters
    ----------
    adapter : Adapter
        Whose work it is.
    queues : StageQueues
        What to wake stages with.
    """

    def __init__(self, adapter: Adapter, queues: StageQueues) -> None:
        self._adapter = adapter
        self._queues = queues
        self._loop = BackgroundLoop(
            "due-work-poll", self.poll, period=adapter.settings.workers.due_work_poll_seconds
        )

    def start(self) -> None:
        """Start polling."""
        self._loop.start()

    def stop(self) -> None:
        """Stop polling and wait for the thread."""
        self._loop.stop(_STOP_SECONDS)

    def poll(self) -> list[str]:
        """Look once, and return the stages that were woken."""
        due = due_stages(self._adapter)
        waiting = self._queues.lengths(due) if due else {}
        if waiting is None:
            return []
        woken = [stage for stage in due if waiting[stage] < SHORT_QUEUE]
        return woken if self._queues.wake(*woken) else []
