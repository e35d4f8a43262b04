# SPDX-License-Identifier: Apache-2.0
"""The status of a custom resource: whether it is in force, or why not.

It is written only when it differs from the one that stands there, so that two operators, or one
that starts again, write nothing.  A status that the API server refuses is tried again; nothing else
waits for it.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Any

from adapter.background import BackgroundLoop
from adapter.errors import TemporaryError
from adapter.log import get_logger
from adapter.operator.client import KubernetesClient, Missing
from adapter.operator.collection import ResourceCollection
from adapter.operator.plan import Readiness
from adapter.operator.resources import Resource
from adapter.operator.watch import Backoff
from adapter.settings import Kubernetes

log = get_logger(__name__)

READY = "Ready"
#: Longest message, in characters; enough for every problem of a resource that people write.
_LONGEST_MESSAGE = 8192
#: Seconds between looks for statuses that an error put back.
_LOOK_SECONDS = 1.0


def status_of(resource: Resource, readiness: Readiness, now: datetime) -> dict[str, Any] | None:
    """Return the status that a resource is to have; None if it has it.

    Parameters
    ----------
    resource : Resource
        The resource, with the status that it has now.
    readiness : Readiness
        What came of the resource.
    now : datetime
        When the condition changed, if it did.
    """
    before = resource.status if isinstance(resource.status, dict) else {}
    conditions = [item for item in before.get("conditions") or [] if isinstance(item, dict)]
    known = next((item for item in conditions if item.get("type") == READY), {})
    condition = {
        "type": READY,
        "status": "True" if readiness.ready else "False",
        "reason": readiness.reason,
        "message": readiness.message[:_LONGEST_MESSAGE],
        "observedGeneration": resource.generation,
    }
    facts = {"observedGeneration": resource.generation, "version": readiness.version}
    if all(known.get(key) == value for key, value in condition.items()) and all(
        before.get(key) == value for key, value in facts.items()
    ):
        return None
    same = known.get("status") == condition["status"]
    since = known.get("lastTransitionTime") if same else None
    condition["lastTransitionTime"] = since or now.strftime("%Y-%m-%dT%H:%M:%SZ")
    others = [item for item in conditions if item.get("type") != READY]
    return {**facts, "conditions": [*others, condition]}


class StatusWriter:
    """Writes statuses, from a background loop; the last one wanted for a resource wins.

    Parameters
    ----------
    client : KubernetesClient
        The API server's client.
    settings : Kubernetes
        How long to wait after a failure.
    stop : threading.Event
        Set to end it.

    Attributes
    ----------
    problem : str or None
        Why a status could not be written.
    """

    def __init__(
        self, client: KubernetesClient, settings: Kubernetes, stop: threading.Event
    ) -> None:
        self.problem: str | None = None
        self._client = client
        self._stop = stop
        self._backoff = Backoff(settings.retry_minimum_seconds, settings.retry_maximum_seconds)
        self._wanted: dict[str, tuple[ResourceCollection, Resource, Readiness]] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()
        self.loop = BackgroundLoop("operator-status", self._run, stopping=stop)

    def want(
        self, collection: ResourceCollection, outcomes: list[tuple[Resource, Readiness]]
    ) -> None:
        """Replace the statuses that are wanted for the resources of a kind."""
        kind = collection.kind
        with self._lock:
            for owner in [key for key, (at, *_) in self._wanted.items() if at.kind is kind]:
                del self._wanted[owner]
            for resource, readiness in outcomes:
                if status_of(resource, readiness, datetime.now(UTC)) is not None:
                    self._wanted[resource.owner] = (collection, resource, readiness)
        self._news.set()

    def wake(self) -> None:
        """Let the loop look for work; to be called after `stop` was set, too."""
        self._news.set()

    def _run(self) -> None:
        self._news.wait(_LOOK_SECONDS)
        self._news.clear()
        while not self._stop.is_set() and (wanted := self._take()) is not None:
            began = time.monotonic()
            try:
                self._write(*wanted)
            except TemporaryError as error:
                self._put_back(*wanted)
                self._complain(str(error))
                self._stop.wait(self._backoff.delay(time.monotonic() - began, error.delay))
            except BaseException:
                self._put_back(*wanted)
                raise
            else:
                self.problem = None
        self.problem = None  # also if a status that was refused is not wanted any more

    def _write(
        self, collection: ResourceCollection, resource: Resource, readiness: Readiness
    ) -> None:
        status = status_of(resource, readiness, datetime.now(UTC))
        if status is None:
            return
        try:
            item = self._client.patch_status(resource.kind, resource.name, status)
        except Missing:
            return  # deleted meanwhile; the watch will say so
        collection.note_status(item)
        log.info(
            "custom resource",
            kind=resource.kind.name,
            resource=resource.name,
            reason=readiness.reason,
            version=readiness.version,
        )

    def _take(self) -> tuple[ResourceCollection, Resource, Readiness] | None:
        with self._lock:
            return self._wanted.pop(next(iter(self._wanted))) if self._wanted else None

    def _put_back(
        self, collection: ResourceCollection, resource: Resource, readiness: Readiness
    ) -> None:
        with self._lock:
            self._wanted.setdefault(resource.owner, (collection, resource, readiness))

    def _complain(self, text: str) -> None:
        if text != self.problem and not self._stop.is_set():
            log.warning("a status could not be written", reason=text)
        self.problem = text
