# SPDX-License-Identifier: Apache-2.0
"""The transport: pynetdicom's server, told what to answer by `adapter.scp.reception`.

It brings requests and data sets to the reception and its sinks, and sends what they say; it decides
nothing.  Data sets are handed over as they came, never decoded.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from adapter.dicom import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from adapter.scp.acceptance import AssociationRequest, ContextResult, ProposedContext, Rejected
from adapter.scp.reception import Reception
from adapter.scp.store import StoreCommand, StoreSink
from adapter.settings import Scp

_MAXIMUM_PDU = 131_072


class _Negotiation(ACSE):
    """Negotiates as the reception says."""

    def _negotiate_as_acceptor(self) -> None:
        assoc: Any = self.assoc
        primitive: Any = self.requestor.primitive
        self.requestor.ae_title = primitive.calling_ae_title
        request = AssociationRequest(
            calling_ae=primitive.calling_ae_title,
            called_ae=primitive.called_ae_title,
            peer_address=assoc.peer_address,
            contexts=tuple(
                ProposedContext(
                    cx.context_id, str(cx.abstract_syntax), tuple(map(str, cx.transfer_syntax))
                )
                for cx in primitive.presentation_context_definition_list
            ),
        )
        decision = assoc.reception.admit(request)
        if isinstance(decision, Rejected):
            self.send_reject(decision.result, decision.source, decision.reason)
            evt.trigger(assoc, evt.EVT_REJECTED, {})
            assoc.kill()
            return
        assoc.sink = decision
        self._accept(decision)

    def _accept(self, sink: StoreSink) -> None:
        # No role is answered: the default is that the acceptor is SCP (PS3.7 Annex D.3.3.4).
        if self.requestor.asynchronous_operations != (1, 1):
            item = AsynchronousOperationsWindowNegotiation()
            item.maximum_number_operations_invoked = 1
            item.maximum_number_operations_performed = 1
            self.acceptor.add_negotiation_item(item)
        results = [_context(result) for result in sink.accepted.contexts.values()]
        self.assoc._accepted_cx = {  # noqa: SLF001 - what pynetdicom's own ACSE does
            cx.context_id: cx for cx in results if cx.context_id is not None and cx.result == 0
        }
        self.assoc._rejected_cx = [cx for cx in results if cx.result != 0]  # noqa: SLF001
        self.send_accept()
        evt.trigger(self.assoc, evt.EVT_ACCEPTED, {})
        self.assoc.is_established = True
        evt.trigger(self.assoc, evt.EVT_ESTABLISHED, {})


def _context(result: ContextResult) -> PresentationContext:
    context = PresentationContext()
    context.context_id = result.context_id
    context.abstract_syntax = result.abstract_syntax
    # Of a refused context the transfer syntax is not significant, but it has to be there.
    context.transfer_syntax = [result.transfer_syntax or "1.2.840.10008.1.2"]
    context.result = result.result
    return context


class _Association(Association):
    """An association that hands its messages to the reception's sink."""

    def __init__(self, ae: AE, reception: Reception, peer_address: str) -> None:
        super().__init__(ae, "acceptor")
        self.acse = _Negotiation(self)
        self.reception = reception
        self.peer_address = peer_address
        self.sink: StoreSink | None = None

    def run_reactor(self) -> None:
        """Run until the association ends, and close its sink."""
        try:
            super().run_reactor()
        finally:
            if self.sink is not None:
                self.sink.close("released" if self.is_released else "aborted")

    def _serve_request(self, msg: Any, context_id: int) -> None:
        context = self.sink.accepted.contexts.get(context_id) if self.sink else None
        if self.sink is None or context is None or not context.accepted or not msg.is_valid_request:
            self.abort()
        elif isinstance(msg, C_ECHO):
            self.sink.echo()
            response = C_ECHO()
            response.AffectedSOPClassUID = msg.AffectedSOPClassUID
            self._respond(msg, response, 0, context_id)
        elif isinstance(msg, C_STORE):
            self._store(self.sink, msg, context)
        else:
            self.abort()

    def _store(self, sink: StoreSink, msg: C_STORE, context: ContextResult) -> None:
        command = StoreCommand(
            str(msg.AffectedSOPClassUID or ""), str(msg.AffectedSOPInstanceUID or ""), context
        )
        receive = sink.begin(command)
        if msg.DataSet is not None:
            receive.data(msg.DataSet.getbuffer())
        answer = receive.finish()
        response: Any = C_STORE()
        response.AffectedSOPClassUID = msg.AffectedSOPClassUID
        response.AffectedSOPInstanceUID = msg.AffectedSOPInstanceUID
        if answer.comment:
            response.ErrorComment = answer.comment
        self._respond(msg, response, answer.status, context.context_id)

    def _respond(self, request: Any, response: Any, status: int, context_id: int) -> None:
        response.MessageIDBeingRespondedTo = request.MessageID
        response.Status = status
        self.dimse.send_msg(response, context_id)


class _Handler(RequestHandler):
    """Makes our kind of association for each connection."""

    def _create_association(self) -> Association:
        server: Any = self.server
        assoc = _Association(server.ae, server.reception, self.client_address[0])
        assoc._server = server  # noqa: SLF001 - as pynetdicom's own handler
        assoc.name = f"AcceptorThread@{self.client_address[1]}"
        assoc.set_socket(AssociationSocket(assoc, client_socket=self.request))
        assoc.acceptor.maximum_length = server.ae.maximum_pdu_size
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_version_name = server.ae.implementation_version_name
        assoc.requestor.address_info = self.remote
        return assoc


class _Server(ThreadedAssociationServer):
    """Listens on IPv6 and IPv4 if its address is ``::``."""

    request_queue_size = 128
    reception: Reception

    def server_bind(self) -> None:
        """Bind, for both families if it can be."""
        if self.address_family == socket.AF_INET6 and self.socket is not None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Server:
    """The SCP on the wire.

    Parameters
    ----------
    settings : Scp
        Where to listen, and how long to wait.
    reception : Reception
        Who decides.
    """

    def __init__(self, settings: Scp, reception: Reception) -> None:
        self._settings = settings
        self._reception = reception
        self._server: _Server | None = None

    def start(self) -> int:
        """Listen, and return the port.

        Raises
        ------
        OSError
            If the address cannot be listened on.
        """
        _config.LOG_HANDLER_LEVEL = "none"  # its handlers would log what peers send, unescaped
        ae = AE()
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = _MAXIMUM_PDU
        ae.acse_timeout = self._settings.artim_seconds
        ae.network_timeout = ae.dimse_timeout = self._settings.idle_seconds
        self._server = self._listen(ae)
        self._server.reception = self._reception
        ae._servers.append(self._server)  # noqa: SLF001 - its shutdown takes it out again
        threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="scp-listener", daemon=True
        ).start()
        return int(self._server.server_address[1])

    def stop(self, grace: float) -> None:
        """Stop listening; after `grace` seconds abort the associations that have not ended."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        deadline = time.monotonic() + grace
        while self._reception.active and time.monotonic() < deadline:
            time.sleep(0.05)
        for assoc in server.active_associations:
            assoc.abort()
            assoc.join(1)

    def _listen(self, ae: AE) -> _Server:
        hosts = [self._settings.host] if self._settings.host else ["::", "0.0.0.0"]
        for host in hosts:
            try:
                return _Server(
                    ae, (host, self._settings.port), "ANY-SCP", [], request_handler=_Handler
                )
            except OSError as error:
                no_such_family = isinstance(error, socket.gaierror) or error.errno in {
                    errno.EAFNOSUPPORT,
                    errno.EADDRNOTAVAIL,
                    errno.EPROTONOSUPPORT,
                }
                if host == hosts[-1] or not no_such_family:
                    raise
        raise AssertionError("unreachable")
