# SPDX-License-Identifier: Apache-2.0
"""The A-ASSOCIATE-RQ as the reception judges it, and the A-ASSOCIATE-AC that says what it decided.

References
----------
PS3.8 sections 9.3.2 and 9.3.3; PS3.7 Annex D.3.3.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_items import (
    ApplicationContextItem,
    AsynchronousOperationsWindowSubItem,
    ImplementationClassUIDSubItem,
    ImplementationVersionNameSubItem,
    MaximumLengthSubItem,
    PresentationContextItemAC,
    TransferSyntaxSubItem,
    UserInformationItem,
)

from adapter.dicom import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from adapter.scp.acceptance import AssociationRequest, ContextResult, ProposedContext, Rejection

#: The DICOM application context name (PS3.7 Annex A.2.1).
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"


def read_request(pdu: A_ASSOCIATE_RQ, peer_address: str) -> AssociationRequest:
    """Return what is judged of an A-ASSOCIATE-RQ."""
    return AssociationRequest(
        calling_ae=pdu.calling_ae_title,
        called_ae=pdu.called_ae_title,
        peer_address=peer_address,
        contexts=tuple(
            ProposedContext(
                int(item.context_id or 0),
                str(item.abstract_syntax or ""),
                tuple(str(uid) for uid in item.transfer_syntax),
            )
            for item in pdu.presentation_context
        ),
    )


def check_request(pdu: A_ASSOCIATE_RQ, request: AssociationRequest) -> Rejection | None:
    """Return how to reject a request that nobody could accept, whoever asks whom.

    ===========================================  =====  =======================
    another application context                  1/1/2  ``application-context``
    no presentation context                      1/1/1  ``no-contexts``
    a context id that is even or comes twice     1/2/1  ``context-ids``
    ===========================================  =====  =======================
    """
    ids = [cx.context_id for cx in request.contexts]
    if str(pdu.application_context_name or "") != APPLICATION_CONTEXT:
        return Rejection(1, 1, 2, "application-context")
    if not ids:
        return Rejection(1, 1, 1, "no-contexts")
    if len(set(ids)) < len(ids) or not all(number % 2 for number in ids):
        return Rejection(1, 2, 1, "context-ids")
    return None


def make_answer(
    request: A_ASSOCIATE_RQ, results: Collection[ContextResult], maximum_length: int
) -> A_ASSOCIATE_AC:
    """Return the A-ASSOCIATE-AC.

    No role is answered: the default is that the acceptor is SCP (PS3.7 Annex D.3.3.4).  User
    identity is not supported, which is said by saying nothing (Annex D.3.3.7).

    Parameters
    ----------
    request : A_ASSOCIATE_RQ
        What is answered.
    results : collection of ContextResult
        What becomes of each presentation context.
    maximum_length : int
        The longest P-DATA-TF that the peer may send.
    """
    answer = A_ASSOCIATE_AC()
    answer.reserved_aet = request.called_ae_title
    answer.reserved_aec = request.calling_ae_title
    context: Any = ApplicationContextItem()
    context.application_context_name = APPLICATION_CONTEXT
    items: list[Any] = [context, *map(_context_item, results), _user_item(request, maximum_length)]
    answer.variable_items = items
    return answer


def _context_item(result: ContextResult) -> PresentationContextItemAC:
    item = PresentationContextItemAC()
    item.presentation_context_id = result.context_id
    item.result_reason = result.result
    syntax: Any = TransferSyntaxSubItem()
    # Of a refused context the transfer syntax is not significant, but it has to be there.
    syntax.transfer_syntax_name = result.transfer_syntax or IMPLICIT_VR_LITTLE_ENDIAN
    item.transfer_syntax_sub_item = [syntax]
    return item


def _user_item(request: A_ASSOCIATE_RQ, maximum_length: int) -> UserInformationItem:
    length, implementation, version = (
        MaximumLengthSubItem(),
        ImplementationClassUIDSubItem(),
        ImplementationVersionNameSubItem(),
    )
    length.maximum_length_received = maximum_length
    uid: Any = implementation
    uid.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    item = UserInformationItem()
    item.user_data = [length, implementation, version]
    proposed: Any = request.user_information
    if any(isinstance(one, AsynchronousOperationsWindowSubItem) for one in proposed.user_data):
        window = AsynchronousOperationsWindowSubItem()
        window.maximum_number_operations_invoked = 1
        window.maximum_number_operations_performed = 1
        item.user_data.append(window)
    return item
