# SPDX-License-Identifier: Apache-2.0
"""What a stage's run is given."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from adapter.core import Adapter
from adapter.stages import StageQueues
from workers.clients.headers import HeaderReaders
from workers.metrics import WorkerMetrics


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
    """

    adapter: Adapter
    queues: StageQueues
    stopping: threading.Event = field(default_factory=threading.Event)
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    headers: HeaderReaders = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", HeaderReaders(self.adapter.settings.notification))
