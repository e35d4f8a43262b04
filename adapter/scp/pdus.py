# SPDX-License-Identifier: Apache-2.0
"""The control PDUs: what is on the wire beside data, read with suspicion, encoded by pynetdicom.

Only bytes and PDU objects here; the order in which PDUs may come is ``adapter.scp.upper_layer``'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any

from pynetdicom.pdu import (
    A_ABORT_RQ,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RP,
)
from pynetdicom.pdu_items import PDU_ITEM_TYPES, MaximumLengthSubItem

#: PDU types (PS3.8 section 9.3.1).
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

#: Bytes before the variable items of an A-ASSOCIATE-RQ (PS3.8 Table 9-11).
FIXED_LENGTH = 74

#: The least maximum length that lets a peer be sent anything: one fragment of two bytes.
LEAST_MAXIMUM_LENGTH = 8

_ITEM = Struct(">BxH")
_USER_INFORMATION = 0x50
_AE_TITLES = slice(10, 42)


class MalformedPDU(ValueError):
    """Bytes that are no PDU of the type that they claim to be."""


def decode_request(pdu: bytes) -> A_ASSOCIATE_RQ:
    """Return the A-ASSOCIATE-RQ that whole PDU bytes encode.

    Items and sub-items of types unknown to the Standard are left out (PS3.8 section 9.3.1).

    Raises
    ------
    MalformedPDU
        If they encode none, an AE title is blank or not printable ASCII (PS3.5 section 6.2), or the
        peer says that nothing can be sent to it.
    """
    if len(pdu) < FIXED_LENGTH:
        raise MalformedPDU("an A-ASSOCIATE-RQ is longer")
    for title in (pdu[10:26], pdu[26:42]):
        # Looked at before pynetdicom does, which would quote it in its log.
        if not title.strip(b" ") or not all(0x20 <= c <= 0x7E and c != 0x5C for c in title):
            raise MalformedPDU("an AE title is blank or not printable")
    request = A_ASSOCIATE_RQ()
    try:
        request.decode(pdu[:FIXED_LENGTH] + b"".join(_known_items(pdu[FIXED_LENGTH:])))
        length = maximum_length(request)
    except Exception as error:  # noqa: BLE001 - the protocol boundary: pynetdicom stumbles in any way
        raise MalformedPDU(type(error).__name__) from None
    if 0 < length < LEAST_MAXIMUM_LENGTH:
        raise MalformedPDU("the peer's maximum length has no room for a fragment")
    return request


def _known_items(items: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(items):
        if at + _ITEM.size > len(items):
            raise MalformedPDU("an item's header is cut short")
        kind, length = _ITEM.unpack_from(items, at)
        item = items[at : at + _ITEM.size + length]
        if len(item) < _ITEM.size + length:
            raise MalformedPDU("an item is cut short")
        at += len(item)
        if kind == _USER_INFORMATION:
            inner = b"".join(_known_items(item[_ITEM.size :]))
            yield _ITEM.pack(kind, len(inner)) + inner
        elif kind in PDU_ITEM_TYPES:
            yield item


def maximum_length(pdu: A_ASSOCIATE_RQ | A_ASSOCIATE_AC) -> int:
    """Return the longest P-DATA-TF that the sender of `pdu` takes; 0 is no limit (Annex D.1)."""
    information: Any = pdu.user_information
    for item in information.user_data if information else ():
        if isinstance(item, MaximumLengthSubItem):
            return int(item.maximum_length_received or 0)
    return 0


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """Return an A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
    pdu = A_ASSOCIATE_RJ()
    pdu.result, pdu.source, pdu.reason_diagnostic = result, source, reason
    return pdu.encode()


def encode_abort(source: int, reason: int) -> bytes:
    """Return an A-ABORT (PS3.8 section 9.3.8)."""
    pdu = A_ABORT_RQ()
    pdu.source, pdu.reason_diagnostic = source, reason
    return pdu.encode()


def encode_release_response() -> bytes:
    """Return an A-RELEASE-RP (PS3.8 section 9.3.7)."""
    return A_RELEASE_RP().encode()
