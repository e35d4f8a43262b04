# SPDX-License-Identifier: Apache-2.0
"""From an A-ASSOCIATE-RQ to the request to judge, and from the decision to the A-ASSOCIATE-AC.

References
----------
PS3.8 sections 9.3.2 and 9.3.3; PS3.7 Annex D.3.3.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_items import PresentationContextItemAC, TransferSyntaxSubItem

from adapter.dicom import pdus, rejections
from adapter.dicom.transfer_syntaxes import IMPLICIT_VR_LITTLE_ENDIAN
from adapter.dicom.uids import APPLICATION_CONTEXT
from adapter.scp.acceptance import AssociationRequest, ContextResult, ProposedContext, Rejection


def read_request(pdu: A_ASSOCIATE_RQ, peer_address: str) -> AssociationRequest:
    """Return the part of an A-ASSOCIATE-RQ that is judged."""
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
    """Return how to reject a request that breaks the protocol, whoever sent it.

    ===========================================  =====  =======================
    another application context                  1/1/2  ``application-context``
    no presentation context                      1/1/1  ``no-contexts``
    a context id that is even or comes twice     1/2/1  ``context-ids``
    ===========================================  =====  =======================
    """
    ids = [cx.context_id for cx in request.contexts]
    if str(pdu.application_context_name or "") != APPLICATION_CONTEXT:
        return Rejection(*rejections.APPLICATION_CONTEXT_NOT_SUPPORTED, "application-context")
    if not ids:
        return Rejection(*rejections.NO_REASON_GIVEN, "no-contexts")
    if len(set(ids)) < len(ids) or not all(number % 2 for number in ids):
        return Rejection(*rejections.INVALID_REQUEST, "context-ids")
    return None


def make_answer(
    request: A_ASSOCIATE_RQ, results: Collection[ContextResult], maximum_length: int
) -> A_ASSOCIATE_AC:
    """Return the A-ASSOCIATE-AC.

    It names no role: by default the acceptor is the SCP (PS3.7 Annex D.3.3.4).  User identity is
    not supported, and an acceptor says so by not answering it (Annex D.3.3.7).

    Parameters
    ----------
    request : A_ASSOCIATE_RQ
        The request.
    results : collection of ContextResult
        The result of each presentation context.
    maximum_length : int
        The longest P-DATA-TF that the peer may send.
    """
    answer = A_ASSOCIATE_AC()
    answer.reserved_aet = request.called_ae_title
    answer.reserved_aec = request.calling_ae_title
    items: list[Any] = [
        pdus.application_context_item(),
        *map(_context_item, results),
        pdus.user_information_item(maximum_length, window=pdus.asks_for_window(request)),
    ]
    answer.variable_items = items
    return answer


def _context_item(result: ContextResult) -> PresentationContextItemAC:
    item = PresentationContextItemAC()
    item.presentation_context_id = result.context_id
    item.result_reason = result.result
    syntax: Any = TransferSyntaxSubItem()
    # The transfer syntax of a refused context is not significant, but has to be there.
    syntax.transfer_syntax_name = result.transfer_syntax or IMPLICIT_VR_LITTLE_ENDIAN
    item.transfer_syntax_sub_item = [syntax]
    return item
