# SPDX-License-Identifier: Apache-2.0
"""Brings the ledger to what the custom resources say, whenever either of them has changed.

The resources of a kind are applied as a whole: read by the command line's rules, compared with what
is in force, and changed in one transaction.  Applying them twice, or by two operators, changes
nothing more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from adapter.background import BackgroundLoop
from adapter.core import Adapter
from adapter.errors import ConfigurationError
from adapter.ledger import configuration
from adapter.ledger.configuration import Changes
from adapter.log import get_logger
from adapter.models import Versioned
from adapter.operator.collection import ResourceCollection
from adapter.operator.plan import judge, make_plan, read
from adapter.operator.resources import Resource
from adapter.operator.status import StatusWriter

log = get_logger(__name__)

#: Seconds between looks at the ledger, where someone may have made room for a resource.
PERIOD = 1.0
#: Seconds to wait for changes that come together.
_SETTLE_SECONDS = 0.05


class Applying:
    """Applies the collections, from a background loop.

    Parameters
    ----------
    adapter : Adapter
        The adapter whose ledger is changed.
    namespace : str
        The namespace of the resources.
    collections : sequence of ResourceCollection
        What the resources say.
    writer : StatusWriter
        Writes into the resources what came of them.
    changed : threading.Event
        Set when a collection has changed.
    stop : threading.Event
        Set to end the loop; then set `changed` too.

    Attributes
    ----------
    problem : str or None
        Why the resources are not applied.
    amounts : dict of str to (int, int)
        By name of a kind, how many of its resources are in force, and how many are not.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        namespace: str,
        collections: Sequence[ResourceCollection],
        writer: StatusWriter,
        changed: threading.Event,
        stop: threading.Event,
    ) -> None:
        self.problem: str | None = None
        self.amounts: dict[str, tuple[int, int]] = {}
        self._adapter = adapter
        self._namespace = namespace
        self._collections = collections
        self._changed = changed
        self._writer = writer
        self._stop = stop
        self._version = -1
        self._due: set[ResourceCollection] = set()
        self.loop = BackgroundLoop("operator-apply", self._run, stopping=stop)

    def _run(self) -> None:
        if self._changed.wait(PERIOD):
            self._stop.wait(_SETTLE_SECONDS)
        self._changed.clear()
        try:
            self._look()
        except SQLAlchemyError as error:
            # Its text may quote a statement's values.
            self._complain(f"the ledger does not answer ({type(error).__name__})")
            self._adapter.ledger.close()
            self._stop.wait(PERIOD)
        except ConfigurationError as error:
            self._complain(str(error))
        except ValidationError:
            self._complain("the ledger holds configuration that this release cannot read")
        else:
            self.problem = None

    def _look(self) -> None:
        version = configuration.latest_version(self._adapter.ledger)
        # `news` is asked of each: it forgets.
        self._due |= {found for found in self._collections if found.news()}
        if version != self._version:
            self._due |= set(self._collections)
        for collection in [found for found in self._collections if found in self._due]:
            resources = collection.resources()
            if resources is not None:
                self._apply(collection, resources)
            self._due.discard(collection)
        self._version = version

    def _apply(self, collection: ResourceCollection, resources: list[Resource]) -> None:
        kind, ledger = collection.kind.entity, self._adapter.ledger
        pipelines = self._adapter.settings.pipelines
        readings = [read(resource, pipelines) for resource in resources]
        current = configuration.current(ledger, kind)
        plan = make_plan(readings, current, self._namespace)
        if plan.puts or plan.removals:
            # Decided again on what is in force at the change: others may have been faster.
            def decide(rows: list[Versioned[Any]]) -> Changes:
                return make_plan(readings, rows, self._namespace).changes

            current = configuration.change(ledger, kind, decide)
            log.info(
                "custom resources applied",
                kind=collection.kind.name,
                put=[entity.key for entity, _ in plan.puts],
                removed=plan.removals,
            )
            plan = make_plan(readings, current, self._namespace)
        outcomes = [(reading.resource, judge(plan, reading, current)) for reading in readings]
        ready = sum(readiness.ready for _, readiness in outcomes)
        self.amounts[collection.kind.name] = (ready, len(outcomes) - ready)
        self._writer.want(collection, outcomes)

    def _complain(self, text: str) -> None:
        if text != self.problem:
            log.error("custom resources are not applied", reason=text)
        self.problem = text
