# SPDX-License-Identifier: Apache-2.0
"""One association: the upper layer, DIMSE and the acceptor put together, without a socket.

::

    bytes -> upper layer -> message reader -> sink
    bytes <- upper layer <- responses      <-+
"""

from __future__ import annotations

import time
from collections.abc import Callable

from adapter.dicom import pdus
from adapter.dicom.pdus import NO_REASON, SERVICE_USER
from adapter.dicom.statuses import SUCCESS
from adapter.dicom.storage_classes import storage_classes
from adapter.scp.acceptance import Caller, Parties, Rejection
from adapter.scp.acceptor import AssociationAcceptor
from adapter.scp.association_limiter import Place
from adapter.scp.dimse import (
    DataSet,
    EchoRequest,
    Message,
    MessageReader,
    ProtocolViolation,
    RefusedRequest,
    StoreRequest,
    encode_response,
)
from adapter.scp.events import note
from adapter.scp.sink import StoreSink
from adapter.scp.store import Answer, Receive, StoreCommand
from adapter.scp.upper_layer import (
    Aborted,
    Fragment,
    Indication,
    Limits,
    Received,
    Released,
    RequestBegun,
    Requested,
    UpperLayer,
)
from adapter.settings import ScpSettings

#: Pieces of a data set that are held at most before they are handed on; a peer may send empty ones.
_MOST_PIECES = 32


class AcceptorAssociation:
    """Reads what a connection brings, and says what to answer.

    Parameters
    ----------
    settings : ScpSettings
        The limits.
    acceptor : AssociationAcceptor
        Decides whether the association is accepted.
    peer_address : str
        The peer's IP address, as `adapter.addresses` writes it.
    end : callable, optional
        Ends the association from another thread, when it is idle and its place is needed.

    Attributes
    ----------
    layer : UpperLayer
        The association's state, and the bytes to send.
    """

    def __init__(
        self,
        settings: ScpSettings,
        acceptor: AssociationAcceptor,
        peer_address: str,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._acceptor = acceptor
        self._peer_address = peer_address
        self._end_idle = end
        self._caller: Caller | None = None
        self._parties: Parties | None = None  # once the caller is known
        self._place: Place | None = None
        self.layer = UpperLayer(Limits(settings.maximum_request_bytes, settings.maximum_pdu_bytes))
        self._sink: StoreSink | None = None
        self._reader: MessageReader | None = None
        self._receive: Receive | None = None
        self._request: StoreRequest | RefusedRequest | None = None  # whose data set is on its way
        self._began = 0.0  # when the first byte of its command came
        self._pieces: list[memoryview] = []  # of its data set, not handed on yet

    @property
    def established(self) -> bool:
        """Whether there is an association: it was accepted and has not ended."""
        return self._sink is not None

    def receive(self, data: memoryview) -> None:
        """Take what the peer sent; the layer's output then holds the answer."""
        if self._place is not None:
            self._place.busy()
        for indication in self.layer.receive(data):
            if isinstance(indication, Fragment):
                self._read(indication)
            else:
                self._control(indication)
        self._hand_on()

    def answered(self) -> None:
        """Note that the answer is sent: between two messages the association is idle now."""
        if self._place is None or self._reader is None:
            return
        if not (self.layer.in_pdu or self._reader.in_message):
            self._place.idle()

    def abort(self, cause: str, *, source: int = SERVICE_USER) -> None:
        """End the association from this side, e.g. because the peer is too slow."""
        self.layer.abort(source, NO_REASON)
        self._end("aborted", cause)

    def give_up(self) -> None:
        """Record that the peer has not asked for an association in time."""
        self.layer.artim_expired()
        self._end("lost", "no A-ASSOCIATE-RQ in time")

    def connection_closed(self) -> None:
        """Record that the connection is closed."""
        if self.layer.connection_closed():
            self._end("lost", "connection closed")

    # -- the upper layer's indications ---------------------------------------------------------

    def _control(self, indication: Indication) -> None:
        if isinstance(indication, RequestBegun):
            self._judge_caller(indication.pdu)
        elif isinstance(indication, Requested):
            self._negotiate(indication.pdu)
        elif isinstance(indication, Released):
            self.layer.release()
            self._end("released")
        elif isinstance(indication, Aborted):
            self._aborted(indication)

    def _judge_caller(self, pdu: bytes) -> None:
        """Judge the fixed part of an A-ASSOCIATE-RQ: nothing else of a stranger's is read."""
        version, called, calling = pdus.decode_fixed_part(pdu)
        self._caller = Caller(calling, called, self._peer_address)
        decision = self._acceptor.judge(self._caller, version)
        if isinstance(decision, Rejection):
            self._reject(self._caller, decision)
        else:
            self._parties = decision

    def _negotiate(self, pdu: bytes) -> None:
        if self._caller is None:  # there is nothing but the fixed part
            self._judge_caller(pdu)
        caller, parties = self._caller, self._parties
        if caller is None or parties is None:
            return
        try:
            decision = self._acceptor.decide(caller, parties, pdu, self._end_idle)
        except pdus.MalformedPDU as problem:
            self.layer.abort(SERVICE_USER, NO_REASON)
            note(self._acceptor.refuse, caller, problem.cause)
            return
        if isinstance(decision, Rejection):
            self._reject(caller, decision)
            return
        self._sink, self._place, items = decision
        contexts = self._sink.accepted.contexts.values()
        accepted = {cx.context_id: cx.abstract_syntax for cx in contexts if cx.accepted}
        stored = storage_classes(self._settings.additional_sop_classes)
        self._reader = MessageReader(accepted, stored, self._settings.maximum_command_bytes)
        answer = pdus.encode_acceptance(
            pdu,
            ((cx.context_id, cx.result, cx.transfer_syntax) for cx in contexts),
            self._settings.maximum_pdu_bytes,
            window=items.window,
        )
        self.layer.accept(answer, items.maximum_length)

    def _reject(self, caller: Caller, rejection: Rejection) -> None:
        self.layer.reject(rejection.result, rejection.source, rejection.reason)
        note(self._acceptor.reject, caller, rejection)

    def _aborted(self, indication: Aborted) -> None:
        whose = "by the peer" if indication.by_peer else "protocol violation"
        if self._sink is None and indication.received is Received.INVALID:
            # Only the length of a request can be wrong here; too long is known when it has begun.
            caller = self._caller or Caller("", "", self._peer_address)
            cause = "malformed-request" if self._caller is None else "request-too-long"
            note(self._acceptor.refuse, caller, cause)
        else:
            self._end("aborted", f"{whose}, {indication.source}/{indication.reason}")

    def _end(self, how: str, cause: str = "") -> None:
        sink, self._sink = self._sink, None
        self._place = None
        if sink is not None:
            sink.close(how, cause)
        elif cause:
            self._acceptor.log_stranger(self._peer_address, cause)

    # -- messages ------------------------------------------------------------------------------

    def _read(self, fragment: Fragment) -> None:
        if self._reader is None or self._sink is None:
            return
        if fragment.command and not self._reader.in_message:
            self._began = time.monotonic()
        try:
            message = self._reader.read(fragment)
        except ProtocolViolation as violation:
            self.layer.abort(violation.source, violation.reason)
            self._end("aborted", violation.cause)
            return
        if isinstance(message, DataSet):
            self._pieces.append(message.data)
            if message.last or len(self._pieces) == _MOST_PIECES:
                self._hand_on()
            if message.last:
                self._finish(self._sink)
        elif message is not None:
            self._begin(self._sink, message)

    def _hand_on(self) -> None:
        """Hand on the pieces of a data set that have come, all at once: one write for all."""
        if self._pieces:
            if self._receive is not None:
                self._receive.data(*self._pieces)
            self._pieces.clear()

    def _begin(self, sink: StoreSink, message: Message) -> None:
        if isinstance(message, EchoRequest):
            sink.echo()
            self.layer.send(message.context_id, encode_response(message, SUCCESS))
        elif isinstance(message, StoreRequest):
            self._request = message
            self._receive = sink.begin(self._command(sink, message))
        elif isinstance(message, RefusedRequest):
            self._request = message
            if not message.data_set_follows:
                self._finish(sink)

    def _finish(self, sink: StoreSink) -> None:
        request, receive = self._request, self._receive
        self._request = self._receive = None
        if request is None:
            return
        if receive is not None:
            answer = receive.finish()
        elif isinstance(request, RefusedRequest):
            answer = Answer(request.status, request.cause)
            note(sink.settle, self._command(sink, request), answer, None)
        self.layer.send(request.context_id, encode_response(request, answer.status, answer.comment))
        note(self._acceptor.metrics.took, time.monotonic() - self._began)

    @staticmethod
    def _command(sink: StoreSink, request: StoreRequest | RefusedRequest) -> StoreCommand:
        context = sink.accepted.contexts[request.context_id]
        return StoreCommand(request.sop_class_uid, request.sop_instance_uid, context)
