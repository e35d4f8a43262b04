# SPDX-License-Identifier: Apache-2.0
"""The acceptor: decides about every association request, counts it, and gives it its sink.

A transport asks `decide` and then talks to the sink; it needs nothing else of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from adapter.addresses import peer_address
from adapter.log import get_logger
from adapter.scp import acceptance, events
from adapter.scp.acceptance import AssociationRequest, Rejection
from adapter.scp.association_limiter import AssociationLimiter
from adapter.scp.configuration import LiveConfiguration
from adapter.scp.events import ScpEvents, printable
from adapter.scp.metrics import ProcessMetrics
from adapter.scp.sink import StoreSink
from adapter.scp.store import StoreContext
from adapter.settings import Settings
from adapter.spool import Spool

log = get_logger(__name__)


class AssociationAcceptor:
    """Decides about association requests.

    Parameters
    ----------
    settings : Settings
        The static settings.
    spool : Spool
        Where instances are stored.
    configuration : LiveConfiguration
        AE titles and sources.
    scp_events : ScpEvents
        Where events and counts go.
    on_stored : callable
        Called for each instance that is stored.
    limiter : AssociationLimiter, optional
        The limit of associations, if other processes share it.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        configuration: LiveConfiguration,
        scp_events: ScpEvents,
        on_stored: Callable[[], None],
        *,
        limiter: AssociationLimiter | None = None,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._configuration = configuration
        self._events = scp_events
        self._context = StoreContext(
            spool,
            scp_events,
            self._storage_low,
            on_stored,
            instance_bytes=settings.dicom.scp.maximum_instance_bytes,
            durable=settings.storage.durability == "instance",
            strict_uids=settings.dicom.scp.strict_uids,
        )
        scp = settings.dicom.scp
        self._limiter = limiter or AssociationLimiter(
            scp.maximum_number_of_associations, scp.maximum_associations_per_peer
        )

    @property
    def active(self) -> int:
        """How many associations of this process are open."""
        return self._limiter.taken

    @property
    def metrics(self) -> ProcessMetrics:
        """Where metrics are counted."""
        return self._events.metrics

    def refuses(self) -> str | None:
        """Return why no instance can be stored at present; None if it can, as far as is known."""
        return "low on storage" if self._storage_low() else self._events.failure

    def close(self) -> None:
        """Give up the places for associations."""
        self._limiter.close()

    def decide(self, request: AssociationRequest) -> StoreSink | Rejection:
        """Decide about a request: return the association's sink, or how to reject it.

        Every sink has to be closed, however the association ends.
        """
        request = replace(request, peer_address=str(peer_address(request.peer_address)))
        # Taken before anything is decided: requests that come together meet the same limit.
        place = self._limiter.acquire(request.peer_address)
        scp = self._settings.dicom.scp
        decision = acceptance.decide(
            request,
            self._configuration.snapshot,
            scp,
            no_place=place is None,
            storage_low=self._storage_low,
        )
        give_back = partial(self._limiter.release, place)
        if isinstance(decision, Rejection):
            give_back()
            self.reject(request, decision)
            return decision
        self._events.count("accepted")
        self._events.metrics.accepted(decision.called_ae)
        return StoreSink(self._context, decision, request.peer_address, give_back)

    def _storage_low(self) -> bool:
        try:
            return self._spool.space(self._settings.storage).low
        except OSError:  # a disk that cannot be read cannot be written either
            return True

    def drop(self) -> None:
        """Count a connection that was closed because no thread could be started for it."""
        self._events.count("dropped")
        self._events.metrics.dropped()

    def reject(self, request: AssociationRequest, rejected: Rejection) -> None:
        """Count and log a rejection, and record its event."""
        detail: dict[str, Any] = {
            "calling": printable(request.calling_ae),
            "called": printable(request.called_ae),
            "peer": request.peer_address,
            "result": rejected.result,
            "source": rejected.source,
            "reason": rejected.reason,
            "cause": rejected.cause,
        }
        if rejected.nearest is not None:
            detail["nearest"] = rejected.nearest
        self._events.count("rejected")
        self._events.metrics.rejected(rejected.cause)
        self._events.record(events.REJECTED, **detail)
        log.warning("association rejected", **detail)
