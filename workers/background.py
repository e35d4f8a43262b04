# SPDX-License-Identifier: Apache-2.0
"""What runs beside the tasks of a worker, from its first moment on, whatever is away.

===========  =====================================================================================
thread       does
===========  =====================================================================================
heartbeat    beats, and needs neither ledger nor Redis for it
metrics      answers for metrics and probes, if a port is set; needs neither of them
open         opens the adapter, as soon as its ledger answers; then there is work to do beside:
poll         wakes stages that have due work
poll         asks a remote Results Service for tasks, if there is one and the worker exports
===========  =====================================================================================
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from adapter import metrics as role_metrics
from adapter.errors import AdapterError
from adapter.heartbeat import Heart
from adapter.log import get_logger
from adapter.settings import Settings
from adapter.spool import Spool
from adapter.stages import EXPORT, DueWorkPoll
from workers.clients.results_service import Poller
from workers.metrics import WorkerMetrics
from workers.stage import Work

log = get_logger(__name__)

ROLE = "worker"

#: Seconds between attempts to open the adapter.
_AGAIN_SECONDS = 1.0
_STOP_SECONDS = 10.0


class BackgroundTasks:
    """The threads beside a worker's tasks.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    work : callable
        Opens the adapter, or returns what it has opened.
    metrics : WorkerMetrics
        What the worker counts.
    name : str
        The worker's name.
    stages : list of str
        The stages whose queues it consumes.
    """

    def __init__(
        self,
        settings: Settings,
        work: Callable[[], Work],
        metrics: WorkerMetrics,
        name: str,
        stages: list[str],
    ) -> None:
        self._settings = settings
        self._work = work
        self._metrics = metrics
        self._facts = {"worker": name, "stages": stages}
        self._stages = stages
        self._consumer: Any = None
        self._opened: list[DueWorkPoll | Poller] = []
        self._stop = threading.Event()
        self._heart = Heart(Spool(settings.spool_path), ROLE, self._say)
        self._opening = threading.Thread(target=self._open, name="open", daemon=True)
        self._endpoint: role_metrics.Endpoint | None = None

    def start(self) -> None:
        """Start the threads.

        Raises
        ------
        ConfigurationError
            If the address for metrics cannot be listened on.
        """
        self._metrics.serve(self._stages)
        self._endpoint = role_metrics.serve_role(
            self._settings, ROLE, self._heart, self._unready, self._metrics.registry
        )
        self._heart.start()
        self._opening.start()

    def consume(self, consumer: Any) -> None:
        """Take note that the worker consumes."""
        self._consumer = consumer
        self._heart.beat()

    def stop(self) -> None:
        """Stop the threads."""
        self._stop.set()
        self._opening.join(_STOP_SECONDS)
        for thread in reversed(self._opened):
            thread.stop()
        self._heart.stop()
        if self._endpoint is not None:
            self._endpoint.stop()

    def _say(self) -> dict[str, Any] | None:
        """Return what the heartbeat says: a worker is not one before it consumes."""
        return None if self._consumer is None else self._facts

    def _unready(self) -> list[str]:
        reasons = []
        # Celery takes the connection away from its consumer while the broker is.
        if self._consumer is None or self._consumer.connection is None:
            reasons.append("the broker is away: nothing is consumed")
        if not self._opened:
            reasons.append("the ledger has not been opened yet")
        return reasons

    def _open(self) -> None:
        complained = False
        while not self._stop.is_set():
            try:
                work = self._work()
            except (AdapterError, SQLAlchemyError, OSError) as error:
                # Only our own errors' text is safe to show: others' may quote addresses.
                if not complained:
                    text = str(error) if isinstance(error, AdapterError) else type(error).__name__
                    log.error("the adapter cannot be opened yet", reason=text)
                complained = True
                self._stop.wait(_AGAIN_SECONDS)
            else:
                self._begin(work)
                return

    def _begin(self, work: Work) -> None:
        threads: list[DueWorkPoll | Poller] = [DueWorkPoll(work.adapter, work.queues)]
        if EXPORT in self._stages:
            threads.append(Poller(work.adapter, work.queues))
        for thread in threads:
            thread.start()
            self._opened.append(thread)
