# SPDX-License-Identifier: Apache-2.0
"""The acceptor: decides about every association request, counts it, and gives it its sink.

A transport asks `judge` and `decide`, and then talks to the sink; it needs nothing else of the
adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from adapter.dicom import pdus
from adapter.dicom.rejections import INVALID_REQUEST, LOCAL_LIMIT_EXCEEDED
from adapter.errors import SpoolAway
from adapter.log import get_logger
from adapter.scp import acceptance, events
from adapter.scp.acceptance import Caller, Parties, Rejection
from adapter.scp.association_limiter import AssociationLimiter, Place
from adapter.scp.configuration import LiveConfiguration
from adapter.scp.events import ScpEvents, note, printable
from adapter.scp.metrics import ProcessMetrics
from adapter.scp.sink import StoreSink
from adapter.scp.store import StoreContext
from adapter.settings import Settings
from adapter.spool import Spool

log = get_logger(__name__)


class AcceptedAssociation(NamedTuple):
    """An accepted association: its sink, its place, and what the request said."""

    sink: StoreSink
    place: Place
    items: pdus.AssociateItems


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
            self._why_full,
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

    def published_until(self) -> float:
        """Return a time before which no instance was received that is not visible by now."""
        return self._context.publishing.published_until()

    @property
    def metrics(self) -> ProcessMetrics:
        """Where metrics are counted."""
        return self._events.metrics

    def refuses(self) -> str | None:
        """Return why no instance can be stored at present; None if it can, as far as is known."""
        why = self._why_full()
        return acceptance.CAUSES[why] if why else self._events.failure

    def close(self) -> None:
        """Give up the places for associations."""
        self._limiter.close()

    def judge(self, caller: Caller, version: int) -> Parties | Rejection:
        """Judge who calls, by the fixed part of a request; `reject` then reports a rejection."""
        return acceptance.judge_caller(
            caller, version, self._configuration.snapshot, self._settings.dicom.scp
        )

    def decide(
        self, caller: Caller, parties: Parties, pdu: bytes, end: Callable[[], None]
    ) -> AcceptedAssociation | Rejection:
        """Decide about the request of a known caller; `reject` then reports a rejection.

        Every sink has to be closed, however the association ends.

        Parameters
        ----------
        caller, parties : Caller and Parties
            Who calls whom, before and after `judge`.
        pdu : bytes
            The A-ASSOCIATE-RQ.
        end : callable
            Ends the association when it is idle and another peer needs its place.

        Raises
        ------
        MalformedPDU
            If the request cannot be read.
        """
        # Taken before anything is decoded: requests that come together meet the same limit.
        place = self._limiter.acquire(caller.peer_address, parties.calling_ae, end)
        if place is None:
            return Rejection(*LOCAL_LIMIT_EXCEEDED, "association-limit")
        try:
            items = pdus.decode_request(pdu)
            decision = acceptance.judge_contexts(
                parties,
                items,
                self._settings.dicom.scp,
                why_full=partial(self._why_full, beginning=True),
            )
        except pdus.TooManyItems as problem:
            decision = Rejection(*INVALID_REQUEST, problem.cause)
        except BaseException:
            place.release()
            raise
        if isinstance(decision, Rejection):
            place.release()
            return decision
        note(self._events.count, "accepted")
        note(self._events.metrics.accepted, decision.called_ae)
        sink = StoreSink(self._context, decision, caller.peer_address, place.release)
        return AcceptedAssociation(sink, place, items)

    def end_superfluous(self) -> None:
        """End the idle associations whose places another peer needs."""
        self._limiter.end_superfluous()

    def _why_full(self, *, beginning: bool = False) -> str:
        """Return why nothing can be stored now; empty if it can.

        Parameters
        ----------
        beginning : bool, optional
            Whether an association begins, for which the spool's id is looked at too.
        """
        try:
            if beginning:
                self._spool.check_id()
            else:
                self._spool.check()
            low = self._spool.space(self._settings.storage).low
        except SpoolAway:
            return acceptance.SPOOL_AWAY
        except OSError:  # a disk that cannot be read cannot be written either
            low = True
        return acceptance.LOW_STORAGE if low else ""

    def drop(self) -> None:
        """Count a connection that was closed because no thread could be started for it."""
        self._events.count("dropped")
        self._events.metrics.dropped()

    def reject(self, caller: Caller, rejected: Rejection) -> None:
        """Count and log a rejection, and record its event."""
        more = {} if rejected.nearest is None else {"nearest": rejected.nearest}
        self.refuse(
            caller,
            rejected.cause,
            result=rejected.result,
            source=rejected.source,
            reason=rejected.reason,
            **more,
        )

    def refuse(self, caller: Caller, cause: str, **detail: Any) -> None:
        """Count and log a request that is not accepted, and record its event.

        Parameters
        ----------
        caller : Caller
            Who calls, as far as it is known.
        cause : str
            A key of `acceptance.CAUSES`.
        detail : optional
            What more is known.
        """
        self._events.count("rejected")
        self._events.metrics.rejected(cause)
        if not self._events.within_rate(events.REJECTED, caller.peer_address):
            return
        detail = {
            "calling": printable(caller.calling_ae),
            "called": printable(caller.called_ae),
            "peer": caller.peer_address,
            **detail,
            "cause": cause,
            "message": acceptance.CAUSES[cause],
        }
        self._events.record(events.REJECTED, **detail)
        log.warning("association rejected", **detail)

    def is_due(self, kind: str, peer: str) -> bool:
        """Tell whether one more event or log line of a kind about a peer is within its rate."""
        return self._events.within_rate(kind, peer)

    def log_stranger(self, peer: str, cause: str) -> None:
        """Log a connection that ended without a request; there may be too many to log them all."""
        if self._events.within_rate("connection-without-request", peer):
            log.info("no association", peer=peer, cause=cause)
