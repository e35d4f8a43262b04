# SPDX-License-Identifier: Apache-2.0
"""The operator's process: its background loops put together, started and stopped.

================  ================================================================================
loop              does
================  ================================================================================
heartbeat         beats
metrics           answers for metrics and probes, if a port is set
watch-<kind>      keeps what is known of the custom resources of one kind up to date
opening           opens the adapter when its ledger answers, starts the next one, and ends
operator-apply    brings the ledger to what the custom resources say
operator-status   writes the status of custom resources
================  ================================================================================

A loop that hangs on a peer dies with the process: nobody waits for anything that it holds.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from prometheus_client import CollectorRegistry

from adapter import background, metrics
from adapter.background import BackgroundLoop
from adapter.core import Adapter, open_adapter
from adapter.heartbeat import Heart
from adapter.log import get_logger
from adapter.operator.applying import Applying
from adapter.operator.client import KubernetesClient
from adapter.operator.collection import ResourceCollection
from adapter.operator.metrics import OperatorCollector
from adapter.operator.resources import KINDS
from adapter.operator.status import StatusWriter
from adapter.operator.watch import Watch
from adapter.settings import Settings
from adapter.spool import Spool

log = get_logger(__name__)

ROLE = "operator"

_OPENING, _CANNOT_OPEN = "the adapter is being opened", "the adapter cannot be opened"
#: Seconds between looks at whether a loop is lost.
_LOOK_SECONDS = 1.0
#: Seconds that all loops together get to end.
_STOP_SECONDS = 2.0


class Operator:
    """The operator of one adapter and one namespace.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant, and which API server.

    Raises
    ------
    ConfigurationError
        If there is no API server or no namespace to be found.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = KubernetesClient(settings)
        self._adapter: Adapter | None = None
        self._applying: Applying | None = None
        self._stop = threading.Event()
        self._changed = threading.Event()
        kubernetes = settings.kubernetes
        self._collections = [ResourceCollection(kind, self._changed) for kind in KINDS]
        self._writer = StatusWriter(self._client, kubernetes, self._stop)
        watches = [
            Watch(self._client, collection, kubernetes, self._stop)
            for collection in self._collections
        ]
        self._opening = BackgroundLoop("opening", self._open)
        self._loops = [self._writer.loop, *(watch.loop for watch in watches), self._opening]
        self._heart = Heart(Spool(settings.spool_path), ROLE, self._say)
        self._endpoint: metrics.Endpoint | None = None

    @property
    def problem(self) -> list[str]:
        """Why the custom resources are not in force; empty if they are."""
        if self._applying is None:
            reason = self._opening.problem
            found: list[str | None] = [f"{_CANNOT_OPEN}: {reason}" if reason else _OPENING]
        else:
            found = [self._applying.problem]
        found += [collection.problem for collection in self._collections]
        found.append(self._writer.problem)
        return list(dict.fromkeys(text for text in found if text is not None))

    @property
    def unready(self) -> list[str]:
        """Why the operator does not do its work: its problems, and the loops that fail."""
        failing = [name for name, loop in background.states().items() if loop["state"] != "running"]
        return self.problem + [f"the background loop {name} fails" for name in failing]

    def start(self) -> None:
        """Begin to watch, and to apply as soon as the ledger answers.

        Raises
        ------
        ConfigurationError
            If the address for metrics cannot be listened on.
        """
        registry = CollectorRegistry()
        registry.register(OperatorCollector(self._amounts, lambda: self.problem))
        self._endpoint = metrics.serve_role(
            self._settings, ROLE, self._heart, lambda: self.unready, registry
        )
        self._heart.start()
        log.info("operator", namespace=self._client.namespace)
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """Stop; the next start finds what is not applied yet."""
        deadline = time.monotonic() + _STOP_SECONDS
        self._stop.set()
        self._client.close()
        self._changed.set()
        self._writer.wake()
        self._opening.finish()
        for loop in self._loops:
            loop.stop(max(0.0, deadline - time.monotonic()))
        if self._applying is not None:
            self._applying.loop.stop(max(0.0, deadline - time.monotonic()))
        self._heart.stop()
        if self._endpoint is not None:
            self._endpoint.stop()
        if self._adapter is not None:
            self._adapter.close()
        log.info("stopped")

    def _open(self) -> None:
        adapter = self._adapter = self._adapter or open_adapter(self._settings)
        applying = Applying(
            adapter,
            namespace=self._client.namespace,
            collections=self._collections,
            writer=self._writer,
            changed=self._changed,
            stop=self._stop,
        )
        applying.loop.start()
        self._applying = applying
        self._opening.finish()

    def _say(self) -> dict[str, Any] | None:
        """Return what the heartbeat says."""
        ready, unready = map(sum, zip(*self._amounts().values(), strict=True))
        return {
            "namespace": self._client.namespace,
            "ready": ready,
            "unready": unready,
            "problem": self.problem,
        }

    def _amounts(self) -> dict[str, tuple[int, int]]:
        known = {} if self._applying is None else dict(self._applying.amounts)
        return {kind.name: known.get(kind.name, (0, 0)) for kind in KINDS}


def serve(settings: Settings) -> int:
    """Apply custom resources until SIGTERM or SIGINT, and return the process's exit code.

    Raises
    ------
    ConfigurationError
        If there is no API server or no namespace to be found.
    """
    operator = Operator(settings)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    operator.start()
    while not ended.wait(_LOOK_SECONDS):
        if lost := background.lost():
            log.critical("the process ends, to be started again", loops=lost)
            break
    operator.stop()
    return 0 if ended.is_set() else 1
