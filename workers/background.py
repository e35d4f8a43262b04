# SPDX-License-Identifier: Apache-2.0
"""What a worker does beside its tasks, in background loops that start before anything answers.

====================  ============================================================================
loop                  does
====================  ============================================================================
heartbeat             beats; needs neither ledger nor Redis
metrics               answers for metrics and probes, if a port is set; needs neither of them
opening               opens the adapter when its ledger answers, starts the next two, and ends;
                      tries before whether pipelines can be isolated, if the worker runs any
due-work-poll         wakes stages that have due work; begins runs of the worker's own stages
                      where no wake-up comes
results-service-poll  asks a remote Results Service for tasks, if the worker exports
====================  ============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapter import metrics as role_metrics
from adapter.background import BackgroundLoop
from adapter.heartbeat import Heart
from adapter.log import get_logger
from adapter.settings import Settings
from adapter.spool import Spool
from adapter.stages import EXPORT, PIPELINE, DueWorkPoll
from workers.clients import isolation
from workers.clients.results_service import Poller
from workers.metrics import WorkerMetrics
from workers.runner import OwnDueWork
from workers.stage import Work

log = get_logger(__name__)

ROLE = "worker"

#: Seconds that an opening under way is waited for at the end.
_STOP_SECONDS = 10.0


class WorkerBackgroundTasks:
    """The background loops of a worker.

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
    own_work : OwnDueWork
        Begins runs of the worker's stages without a wake-up.
    """

    def __init__(
        self,
        settings: Settings,
        work: Callable[[], Work],
        metrics: WorkerMetrics,
        name: str,
        own_work: OwnDueWork,
    ) -> None:
        self._settings = settings
        self._work = work
        self._metrics = metrics
        self._facts: dict[str, Any] = {"worker": name, "stages": own_work.stages}
        self._stages = own_work.stages
        self._own_work = own_work
        self._consumer: Any = None
        self._opened: list[DueWorkPoll | Poller] = []
        self._heart = Heart(Spool(settings.spool_path), ROLE, self._say)
        self._opening = BackgroundLoop("opening", self._open)
        self._endpoint: role_metrics.Endpoint | None = None

    def start(self) -> None:
        """Start the loops.

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
        """Stop the loops."""
        self._opening.stop(_STOP_SECONDS)
        for poll in reversed(self._opened):
            poll.stop()
        self._own_work.stop(self._settings.workers.stop_seconds)
        self._heart.stop()
        if self._endpoint is not None:
            self._endpoint.stop()

    def _say(self) -> dict[str, Any] | None:
        """Return what the heartbeat says; nothing before the worker consumes."""
        return None if self._consumer is None else self._facts

    def _unready(self) -> list[str]:
        reasons = []
        # Celery takes the connection away from its consumer while the broker is away.
        if self._consumer is None or self._consumer.connection is None:
            reasons.append("the broker is away: nothing is consumed")
        if not self._opened:
            reasons.append("the ledger has not been opened yet")
        return reasons

    def _open(self) -> None:
        if PIPELINE in self._stages and "problem" not in self._facts:
            self._facts["problem"] = isolation.complaints(self._settings)
            for complaint in self._facts["problem"]:
                log.warning(complaint)
        work = self._work()
        found = self._own_work.found
        kinds: list[Callable[[], DueWorkPoll | Poller]] = [
            lambda: DueWorkPoll(work.adapter, work.queues, found)
        ]
        if EXPORT in self._stages:
            kinds.append(lambda: Poller(work.adapter, work.queues))
        for make in kinds[len(self._opened) :]:  # those that an earlier attempt did not start
            poll = make()
            poll.start()
            self._opened.append(poll)
        self._opening.finish()
