# SPDX-License-Identifier: Apache-2.0
"""A copy of the custom resources of one kind, filled again at every start."""

from __future__ import annotations

import threading
from typing import Any

from adapter.log import get_logger
from adapter.operator.client import WatchEvent
from adapter.operator.resources import Resource, ResourceKind

log = get_logger(__name__)


class ResourceCollection:
    """The resources of one kind, as of the last event of a watch.

    Parameters
    ----------
    kind : ResourceKind
        The kind.
    changed : threading.Event
        Set when there is something new to apply, for this kind or another.

    Attributes
    ----------
    problem : str or None
        Why the copy may be out of date.
    """

    def __init__(self, kind: ResourceKind, changed: threading.Event) -> None:
        self.kind = kind
        self.problem: str | None = None
        self._changed = changed
        self._lock = threading.Lock()
        self._resources: dict[str, Resource] | None = None
        self._news = False

    def replace(self, items: list[Any]) -> None:
        """Replace the copy with a full list."""
        found = [resource for item in items if (resource := self._parse(item)) is not None]
        with self._lock:
            self._resources = {resource.name: resource for resource in found}
            self._notify()

    def take(self, event: WatchEvent) -> None:
        """Apply an event of a watch."""
        resource = self._parse(event.item)
        if resource is None:
            return
        with self._lock:
            if self._resources is None:
                return
            if event.type == "DELETED":
                self._resources.pop(resource.name, None)
            else:
                self._resources[resource.name] = resource
            self._notify()

    def note_status(self, item: Any) -> None:
        """Apply the server's answer to our patch, unless the watch has brought a newer version."""
        resource = self._parse(item)
        with self._lock:
            if resource is None or self._resources is None:
                return
            known = self._resources.get(resource.name)
            if known and (known.uid, known.generation) == (resource.uid, resource.generation):
                self._resources[resource.name] = resource

    def news(self) -> bool:
        """Return whether something changed since the last call."""
        with self._lock:
            news, self._news = self._news, False
            return news

    def resources(self) -> list[Resource] | None:
        """Return the resources that are there to stay; None until the first full list."""
        with self._lock:
            if self._resources is None:
                return None
            return [found for found in self._resources.values() if not found.being_deleted]

    def _notify(self) -> None:
        self._news = True
        self._changed.set()

    def _parse(self, item: Any) -> Resource | None:
        try:
            return Resource.parse(self.kind, item)
        except ValueError:
            log.warning("an item of the API server cannot be read", kind=self.kind.name)
            return None
