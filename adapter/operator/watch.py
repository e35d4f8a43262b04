# SPDX-License-Identifier: Apache-2.0
"""Keeps a collection up to date: list, watch from there, and begin again when that ends.

::

    list --> watch --(its time is over, or the connection broke)--> watch from the last version
      ^        |
      |        +--(410 Gone, or unreadable)--+
      +--------------(or a resync is due)----+

A request that fails is repeated after a delay that grows and is random, so that many operators do
not return at the same moment.
"""

from __future__ import annotations

import random
import threading
import time

from adapter.background import BackgroundLoop
from adapter.errors import TemporaryError
from adapter.log import get_logger
from adapter.operator.client import Gone, KubernetesClient, RequestBroken
from adapter.operator.collection import ResourceCollection
from adapter.settings import Kubernetes

log = get_logger(__name__)


class Backoff:
    """Random delays that grow from one failure to the next.

    Parameters
    ----------
    minimum, maximum : float, seconds
        The first delay, and the longest.
    """

    def __init__(self, minimum: float, maximum: float) -> None:
        self._minimum, self._maximum = minimum, maximum
        self._next = minimum

    def delay(self, lasted: float, asked: float | None = None) -> float:
        """Return the seconds to wait now.

        Parameters
        ----------
        lasted : float, seconds
            How long the last attempt worked; longer than the delay starts from the minimum again.
        asked : float, seconds, optional
            The delay that the server asks for.
        """
        if lasted > self._next:
            self._next = self._minimum
        grown, self._next = self._next, min(self._next * 2, self._maximum)
        jittered = grown * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret
        return max(jittered, min(asked or 0.0, self._maximum))


class Watch:
    """Keeps one collection up to date, from a background loop.

    Parameters
    ----------
    client : KubernetesClient
        The API server's client.
    collection : ResourceCollection
        What to keep up to date.
    settings : Kubernetes
        How long things may take.
    stop : threading.Event
        Set to end it; then close the client too.
    """

    def __init__(
        self,
        client: KubernetesClient,
        collection: ResourceCollection,
        settings: Kubernetes,
        stop: threading.Event,
    ) -> None:
        self._client = client
        self._collection = collection
        self._settings = settings
        self._stop = stop
        self._version: str | None = None
        self._listed_at = 0.0
        self._watching = False
        self._backoff = Backoff(settings.retry_minimum_seconds, settings.retry_maximum_seconds)
        self.loop = BackgroundLoop(f"watch-{collection.kind.plural}", self._run, stopping=stop)

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._look()
        except TemporaryError as error:
            if isinstance(error, Gone | RequestBroken):
                self._version = None
            self._complain(error)
            self._stop.wait(self._backoff.delay(time.monotonic() - began, error.delay))
        else:
            # A server that ends each watch at once is not asked without a pause.
            least = began + self._settings.retry_minimum_seconds - time.monotonic()
            self._stop.wait(max(0.0, least))

    def _look(self) -> None:
        """List if that is due, then watch until the watch ends."""
        kind = self._collection.kind
        due = self._listed_at + self._settings.resync_seconds
        if self._version is None or time.monotonic() >= due:
            items, self._version = self._client.list(kind)
            self._listed_at = time.monotonic()
            self._collection.replace(items)
        seconds = self._settings.watch_seconds
        with self._client.watch(kind, self._version, seconds) as events:
            self._recovered()
            for event in events:
                if event.type != "BOOKMARK":
                    self._collection.take(event)
                self._version = event.version  # an event that met an error is watched for again

    def _recovered(self) -> None:
        self._watching = True
        self.loop.succeeded()
        if self._collection.problem is not None:
            log.info("watching again", kind=self._collection.kind.name)
        self._collection.problem = None

    def _complain(self, error: TemporaryError) -> None:
        broke, self._watching = self._watching, False
        if broke or isinstance(error, Gone) or self._stop.is_set():
            return  # watches break now and then; the next attempt tells whether it lasts
        text = str(error)
        if text != self._collection.problem:
            log.warning(
                "the last known configuration stays in force",
                kind=self._collection.kind.name,
                reason=text,
            )
        self._collection.problem = text
