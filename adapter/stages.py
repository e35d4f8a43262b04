# SPDX-License-Identifier: Apache-2.0
"""The pipeline stages: their Celery queues, wake-ups, and the poll that finds due work.

A wake-up is a Celery message that says that a stage has work.  The ledger says what is due (for
notification, the spool's incoming/ does).  No code waits until a wake-up is delivered: a broker
that is down costs seconds of delay and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.pools import ProducerPool
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Table, exists, select

import celeryconfig
from adapter.background import BackgroundLoop
from adapter.core import Adapter
from adapter.ledger import (
    cancellations,
    exports,
    groups,
    jobs,
    queries,
    reclamation,
    remote_tasks,
    runs,
    schema,
)
from adapter.log import get_logger
from adapter.settings import Settings

log = get_logger(__name__)

STAGES: tuple[str, ...] = celeryconfig.STAGES
NOTIFICATION, GROUPING, SUBMISSION, PIPELINE, EXPORT, RECLAMATION = STAGES

#: The argument of a stage's task that names the row which a wake-up is about: a hint, ids only.
SUBJECTS = {GROUPING: "group", SUBMISSION: "job", PIPELINE: "job", EXPORT: "export"}

#: Length of a stage's queue from which the poll adds no wake-up.
SHORT_QUEUE = 1
#: Length of a stage's queue from which no wake-up is added at all: enough to wake its workers, and
#: few enough that wake-ups without work left are no burden.
FULL_QUEUE = 16
#: Seconds that the broker has for each answer: a wake-up is not worth a longer wait.
ANSWER_SECONDS = 0.5
#: Seconds for which a broker that did not answer is not asked again: whoever has a wake-up to send
#: has work to do as well.
QUIET_SECONDS = 2.0
#: Seconds that a poll under way is waited for at the end.
_STOP_SECONDS = 10.0
#: Connections to the broker of one process's wake-ups.
_CONNECTIONS = 4
#: What a broker that is away raises.
_AWAY = (OperationalError, RedisError, OSError)


def password_file(settings: Settings) -> Path:
    """Return the password file of our own Redis."""
    return settings.data / "redis.password"


def broker_url(settings: Settings) -> str:
    """Return the broker's URL with its password: from the settings, or of our own Redis."""
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
    return app


def concurrency(settings: Settings) -> dict[str, int]:
    """Return how many runs of each stage a worker makes at a time, whatever else it runs."""
    return dict.fromkeys(STAGES, settings.workers.short_concurrency) | {
        PIPELINE: settings.workers.pipeline_concurrency,
        EXPORT: settings.dicom.scu.maximum_number_of_associations,
    }


def due_questions(settings: Settings) -> queries.Questions:
    """Return the conditions under which rows of the ledger are due, by stage."""
    lease = settings.workers.lease_seconds
    return {
        GROUPING: [(schema.groups, groups.close_due(lease))],
        SUBMISSION: [
            (schema.jobs, runs.step_due(lease)),
            (schema.cancellations, cancellations.cancel_due(lease)),
        ],
        PIPELINE: [(schema.jobs, jobs.run_due(lease))],
        EXPORT: [
            (schema.exports, exports.export_due(settings.dicom.scu, settings.workers)),
            (schema.tasks, remote_tasks.report_due()),
        ],
        RECLAMATION: reclamation.due_questions(settings),
    }


def due_stages(adapter: Adapter) -> list[str]:
    """Return the stages that have due work without a lease, in stage order.

    It takes one reading transaction, and one listing of incoming/ for files whose wake-up seems
    lost.

    Raises
    ------
    SpoolAway
        If the spool is away: then every stage waits.
    """
    adapter.spool.check()
    old = time.time() - adapter.settings.workers.due_work_poll_seconds
    found = {NOTIFICATION} if adapter.spool.waits_since(old) else set()
    with adapter.ledger.read() as connection:
        for stage, candidates in due_questions(adapter.settings).items():
            if _any_due(connection, candidates):
                found.add(stage)
    return [stage for stage in STAGES if stage in found]


def due_ids(adapter: Adapter, stage: str, most: int) -> list[str]:
    """Return the ids of a stage's first due rows, in the order in which they are claimed."""
    table, condition = due_questions(adapter.settings)[stage][0]
    first = select(table.c.id).where(condition).order_by(*_ORDER[stage]).limit(most)
    with adapter.ledger.read() as connection:
        return list(connection.execute(first).scalars())


def _any_due(connection: Connection, candidates: Sequence[tuple[Table, Any]]) -> bool:
    return any(
        connection.execute(select(exists().select_from(table).where(condition))).scalar()
        for table, condition in candidates
    )


_ORDER: dict[str, Sequence[ColumnElement[Any]]] = {
    GROUPING: groups.ORDER,
    SUBMISSION: jobs.ORDER,
    PIPELINE: jobs.ORDER,
    EXPORT: exports.ORDER,
}


class StageQueues:
    """Wakes stages, and reads how many wake-ups wait.

    A broker that is away or hangs costs a caller `ANSWER_SECONDS` at most, and after that nothing
    for `QUIET_SECONDS`.

    Parameters
    ----------
    app : Celery
        The adapter's application.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        # Not the connection that a worker consumes by: that one may wait for its broker.
        times = ("socket_timeout", "socket_connect_timeout")
        connection = app.connection_for_write(
            transport_options=dict.fromkeys(times, ANSWER_SECONDS)
        )
        self._producers = ProducerPool(connection.Pool(_CONNECTIONS), limit=_CONNECTIONS)
        self._quiet_until = 0.0

    @contextmanager
    def _producer(self) -> Iterator[Any]:
        """Provide a producer.

        Raises
        ------
        OperationalError, RedisError, OSError
            If the broker does not answer, or did not a moment ago.
        """
        if time.monotonic() < self._quiet_until:
            raise OperationalError("the broker did not answer a moment ago")
        try:
            with self._producers.acquire(block=True, timeout=ANSWER_SECONDS) as producer:
                yield producer
        except LimitExceeded as error:
            raise OperationalError("every connection waits for the broker") from error
        except _AWAY:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            raise

    def close(self) -> None:
        """Close the connections."""
        self._producers.connections.force_close_all()

    def wake(self, stage: str, *ids: str) -> bool:
        """Wake a stage: once for each row that is named, or once.

        Parameters
        ----------
        stage : str
            Which stage.
        ids : str
            The rows that the wake-ups are about, for a stage of `SUBJECTS`.

        Returns
        -------
        bool
            False if the broker does not take it, which costs one poll's delay.
        """
        hints: list[dict[str, str]] = [{SUBJECTS[stage]: one} for one in ids] or [{}]
        try:
            with self._producer() as producer:
                room = FULL_QUEUE - int(producer.channel.client.llen(stage))
                for hint in hints[: max(0, room)]:
                    self._app.send_task(
                        stage, kwargs=hint, queue=stage, producer=producer, retry=False
                    )
        except _AWAY as error:
            log.debug("a stage was not woken", stage=stage, error=type(error).__name__)
            return False
        return True

    def wake_for_next(self, adapter: Adapter, stage: str) -> bool:
        """Wake a stage for the row that is due next, unless wake-ups wait for it already.

        Each task that ends does so, which keeps as many tasks at work as there are.

        Returns
        -------
        bool
            False if the broker does not answer: whoever is at work goes on without it.
        """
        waiting = self.lengths([stage])
        if waiting is None:
            return False
        return waiting[stage] >= SHORT_QUEUE or self.wake_for_due(adapter, stage, 1)

    def wake_for_due(self, adapter: Adapter, stage: str, most: int = FULL_QUEUE) -> bool:
        """Wake a stage once for each of its first due rows, or once for other work that is due."""
        if stage in SUBJECTS:
            if ids := due_ids(adapter, stage, most):
                return self.wake(stage, *ids)
            with adapter.ledger.read() as connection:
                if not _any_due(connection, due_questions(adapter.settings)[stage][1:]):
                    return True  # another worker has taken it meanwhile
        return self.wake(stage)

    def lengths(self, stages: Collection[str] = STAGES) -> dict[str, int] | None:
        """Return the length of each stage's queue, or None if the broker does not answer."""
        try:
            with self._producer() as producer:
                client = producer.channel.client
                return {stage: int(client.llen(stage)) for stage in stages}
        except _AWAY:
            return None


class DueWorkPoll:
    """A background loop that looks for due work and wakes stages with a short queue.

    Every worker and the API run one; their number does not matter.  A poll writes nothing.

    Parameters
    ----------
    adapter : Adapter
        The adapter whose ledger and spool are polled.
    queues : StageQueues
        The queues that the wake-ups go to.
    found : callable, optional
        Given the stages that have due work, and whether the broker answers, each time; it must not
        wait.
    """

    def __init__(
        self,
        adapter: Adapter,
        queues: StageQueues,
        found: Callable[[list[str], bool], None] = lambda _due, _answers: None,
    ) -> None:
        self._adapter = adapter
        self._queues = queues
        self._found = found
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
        """Poll once, and return the stages that were woken."""
        due = due_stages(self._adapter)
        waiting = self._queues.lengths(due) if due else {}
        self._found(due, waiting is not None)
        if waiting is None:
            return []
        return [
            stage
            for stage in due
            if waiting[stage] < SHORT_QUEUE and self._queues.wake_for_due(self._adapter, stage)
        ]
