# SPDX-License-Identifier: Apache-2.0
"""The seam between the wire and the spool: the data sets of one association, stored and counted.

::

    sink = StoreSink(...)                  one for each association
    receive = sink.begin(command)          for each C-STORE-RQ; never raises, never waits
    receive.data(fragment, ...)            the bytes as they come, any number of times
    answer = receive.finish()              durable (or withdrawn): now send the C-STORE-RSP
    receive.discard()                      instead of finish, if the message will not be completed
    sink.close("released")                 at the end of the association, however it ended

The caller brings the bytes and sends the answer, and knows nothing of files.  After a refusal it
still hands over the rest of the data set, which is dropped.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from adapter.dicom.statuses import SUCCESS
from adapter.log import get_logger
from adapter.models import ArrivalId
from adapter.scp import events
from adapter.scp.acceptance import Accepted
from adapter.scp.events import note, shown_uid
from adapter.scp.store import Answer, Receive, StoreCommand, StoreContext

log = get_logger(__name__)

#: Failures of one association that get an event of their own; its summary counts all of them.
_MOST_FAILURES = 20
#: SOP classes of refused presentation contexts that a summary names.
_MOST_CONTEXTS = 20


class StoreSink:
    """The instances of one association: numbered, counted, and summed up at its end.

    Parameters
    ----------
    context : StoreContext
        What all sinks of the SCP share.
    accepted : Accepted
        The decision that the association was accepted by, with the configuration that it keeps.
    peer_address : str
        The peer's IP address.
    ended : callable, optional
        Called once when the sink is closed.
    """

    def __init__(
        self,
        context: StoreContext,
        accepted: Accepted,
        peer_address: str,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.association = uuid.uuid4().hex[:12]
        self.accepted = accepted
        self._context = context
        self._peer_address = peer_address
        self._ended = ended
        self._began = time.monotonic()
        self._number = 0
        self._stored = self._bytes = self._ignored = self._echoes = 0
        self._failed: Counter[int] = Counter()
        self._receive: Receive | None = None
        self._closed = False

    def begin(self, command: StoreCommand) -> Receive:
        """Begin to receive an instance; `Receive.finish` says what is wrong with it."""
        self._receive = Receive(
            self._context,
            self.accepted,
            command,
            association=self.association,
            next_arrival=self._next_arrival,
            settled=self.settle,
        )
        return self._receive

    def echo(self) -> None:
        """Count a C-ECHO."""
        self._echoes += 1

    def settle(self, command: StoreCommand, answer: Answer, stored_bytes: int | None) -> None:
        """Count an answered instance; `stored_bytes` is None if nothing is in the spool."""
        self._receive = None
        stored = stored_bytes if answer.status == SUCCESS else None
        called = self.accepted.called_ae
        note(self._context.events.metrics.answered, called, answer.status, stored)
        if answer.status != SUCCESS:
            self._settle_failed(command, answer)
        elif stored_bytes is None:
            self._ignored += 1
            self._context.events.count("ignored")
        else:
            self._stored += 1
            self._bytes += stored_bytes
            self._context.events.stored(stored_bytes)
            self._context.on_stored()

    def close(self, how: str, cause: str = "") -> None:
        """Sum the association up; an instance that is still on its way is withdrawn.

        Parameters
        ----------
        how : {"released", "aborted", "lost"}
            How the association ended; ``"lost"`` means without release or abort.
        cause : str, optional
            Why, if it was not released.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._receive is not None:
                self._receive.discard()
                cause = cause or "ended within an instance"
            note(self._sum_up, how, cause)
        finally:
            self._ended()

    def _sum_up(self, how: str, cause: str) -> None:
        summary = self._summary(how) | ({"cause": cause} if cause else {})
        note(self._context.events.metrics.ended, how)
        # Monitoring sends a C-ECHO every few seconds, for years: that is not worth an event.
        due = bool(self._number or self._ignored or self._failed or cause)
        # One that brought instances belongs to a study's timeline; of others there may be too many.
        left_out = (
            due
            and not self._number
            and not self._context.events.within_rate(events.ASSOCIATION, self._peer_address)
        )
        if due and not left_out:
            self._context.events.record(events.ASSOCIATION, association=self.association, **summary)
        if not left_out:
            log.info("association ended", association=self.association, **summary)

    def _next_arrival(self, received_at: float) -> ArrivalId:
        self._number += 1
        version = self.accepted.ae_title.version
        return ArrivalId(received_at, self.association, self._number, version)

    def _settle_failed(self, command: StoreCommand, answer: Answer) -> None:
        self._failed[answer.status] += 1
        self._context.events.count("failed")
        if self._failed.total() > _MOST_FAILURES:
            return
        if not self._context.events.within_rate(events.STORE_FAILED, self._peer_address):
            return
        detail = {
            "sopClass": shown_uid(command.sop_class_uid),
            "sopInstance": shown_uid(command.sop_instance_uid),
            "status": f"{answer.status:04X}",
            "cause": answer.comment,
        }
        self._context.events.record(events.STORE_FAILED, association=self.association, **detail)
        log.warning("instance not stored", association=self.association, **detail)

    def _summary(self, how: str) -> dict[str, Any]:
        refused = Counter(
            shown_uid(cx.abstract_syntax)
            for cx in self.accepted.contexts.values()
            if not cx.accepted
        )
        return {
            "calling": self.accepted.calling_ae,
            "called": self.accepted.called_ae,
            "peer": self._peer_address,
            "version": self.accepted.ae_title.version,
            "ended": how,
            "seconds": round(time.monotonic() - self._began, 3),
            "stored": self._stored,
            "bytes": self._bytes,
            "ignored": self._ignored,
            "echoes": self._echoes,
            "failed": {f"{status:04X}": count for status, count in self._failed.items()},
            "refusedContexts": dict(refused.most_common(_MOST_CONTEXTS)),
            "refusedContextsInAll": refused.total(),
        }
