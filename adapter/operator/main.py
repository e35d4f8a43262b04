# SPDX-License-Identifier: Apache-2.0
"""The operator's process: its threads put together, started and stopped.

The adapter is opened as soon as its ledger answers; what the API server says is read meanwhile.
A thread that hangs on a peer dies with the process: it holds nothing that anybody waits for.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from alembic.util import CommandError
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

from adapter import metrics
from adapter.core import Adapter, open_adapter
from adapter.errors import AdapterError
from adapter.heartbeat import Heart
from adapter.log import get_logger
from adapter.operator.applying import Applying
from adapter.operator.client import Client
from adapter.operator.collection import ResourceCollection
from adapter.operator.metrics import OperatorCollector
from adapter.operator.resources import KINDS
from adapter.operator.status import StatusWriter
from adapter.operator.watch import Watch
from adapter.settings import Settings
from adapter.spool import Spool

log = get_logger(__name__)

ROLE = "operator"

#: Seconds between attempts to open the adapter.
_AGAIN_SECONDS = 1.0
#: Seconds that all threads together get to end.
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
        self._client = Client(settings)
        self._adapter: Adapter | None = None
        self._applying: Applying | None = None
        self._reason = "the adapter is being opened"
        self._stop = threading.Event()
        self._changed = threading.Event()
        kubernetes = settings.kubernetes
        self._collections = [ResourceCollection(kind, self._changed) for kind in KINDS]
        self._writer = StatusWriter(self._client, kubernetes, self._stop)
        watches = [
            Watch(self._client, collection, kubernetes, self._stop)
            for collection in self._collections
        ]
        self._threads = [self._writer.thread, *(watch.thread for watch in watches)]
        self._opening = threading.Thread(target=self._open, name="open", daemon=True)
        self._heart = Heart(Spool(settings.spool_path), ROLE, self._say)
        self._endpoint: metrics.Endpoint | None = None

    @property
    def problem(self) -> list[str]:
        """What keeps the custom resources from being in force, in words; nothing if they are."""
        applying = self._applying
        found = [self._reason if applying is None else applying.problem]
        found += [collection.problem for collection in self._collections]
        found.append(self._writer.problem)
        return list(dict.fromkeys(text for text in found if text is not None))

    @property
    def broken(self) -> bool:
        """Whether a thread has died that should not have: only a new process helps."""
        last = self._opening if self._applying is None else self._applying.thread
        return not all(thread.is_alive() for thread in [*self._threads, last])

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
            self._settings, ROLE, self._heart, lambda: self.problem, registry
        )
        self._heart.start()
        log.info("operator", namespace=self._client.namespace)
        for thread in [*self._threads, self._opening]:
            thread.start()

    def stop(self) -> None:
        """Stop; what is not applied yet is found again at the next start."""
        deadline = time.monotonic() + _STOP_SECONDS
        self._stop.set()
        self._client.close()
        self._changed.set()
        self._writer.wake()
        for thread in [*self._threads, self._opening]:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._applying is not None:
            self._applying.thread.join(max(0.0, deadline - time.monotonic()))
        self._heart.stop()
        if self._endpoint is not None:
            self._endpoint.stop()
        if self._adapter is not None:
            self._adapter.close()
        log.info("stopped")

    def _open(self) -> None:
        while not self._stop.is_set():
            try:
                adapter = open_adapter(self._settings)
            except AdapterError as error:
                self._explain(str(error))
            except (SQLAlchemyError, CommandError, OSError) as error:
                # Their text may quote addresses and statements: the type says enough.
                self._explain(f"the ledger cannot be opened ({type(error).__name__})")
            else:
                self._adapter = adapter
                applying = Applying(
                    adapter,
                    namespace=self._client.namespace,
                    collections=self._collections,
                    writer=self._writer,
                    changed=self._changed,
                    stop=self._stop,
                )
                applying.thread.start()
                self._applying = applying
                return
            self._stop.wait(_AGAIN_SECONDS)

    def _explain(self, reason: str) -> None:
        if reason != self._reason:
            log.error("the adapter cannot be opened", reason=reason)
        self._reason = reason

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
    while not ended.wait(_AGAIN_SECONDS):
        if operator.broken:
            log.critical("a thread has died: the process ends, to be started again")
            break
    operator.stop()
    return 0 if ended.is_set() else 1
