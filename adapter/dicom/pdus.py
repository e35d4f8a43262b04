# SPDX-License-Identifier: Apache-2.0
"""The PDUs of the upper layer (PS3.8 section 9.3), for both sides of an association.

What a peer sends is read with suspicion here, and then decoded by pynetdicom.  Of an A-ASSOCIATE-RQ
and of an A-ASSOCIATE-AC only the items that decide something are decoded; their lengths are checked
always.  All other items are left out, whatever they hold: those of unknown types (PS3.8 section
9.3.1), and those that only inform, such as a peer's implementation version name.

Only bytes and PDU objects are here.  The order in which PDUs may come is a matter of
``adapter.scp.upper_layer`` and ``adapter.scu.association``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any

from pynetdicom.pdu import (
    A_ABORT_RQ,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
)
from pynetdicom.pdu_items import (
    ApplicationContextItem,
    AsynchronousOperationsWindowSubItem,
    ImplementationClassUIDSubItem,
    ImplementationVersionNameSubItem,
    MaximumLengthSubItem,
    UserInformationItem,
)

from adapter.dicom.ae_titles import check_ae_title
from adapter.dicom.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from adapter.dicom.uids import APPLICATION_CONTEXT

#: PDU types (PS3.8 section 9.3.1).
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

#: The header of a PDU: type and length.
PDU_HEADER = Struct(">BxI")
#: The header of a presentation data value: length, context id, message control header.
PDV_HEADER = Struct(">IBB")
#: Bits of the message control header (PS3.8 Annex E.2).
COMMAND, LAST = 1, 2

#: Bytes before the variable items of an A-ASSOCIATE-RQ or -AC (PS3.8 Tables 9-11 and 9-17).
FIXED_LENGTH = 74
#: The least maximum length that lets a peer be sent anything: one fragment of two bytes.
LEAST_MAXIMUM_LENGTH = 8

#: Sources of an A-ABORT, and the reasons of one by the provider (PS3.8 Table 9-26).
SERVICE_USER, SERVICE_PROVIDER = 0, 2
NO_REASON, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 1, 2, 6

_ITEM = Struct(">BxH")
_APPLICATION_CONTEXT, _CONTEXT_RQ, _CONTEXT_AC, _USER_INFORMATION = 0x10, 0x20, 0x21, 0x50
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
_MAXIMUM_LENGTH, _ASYNCHRONOUS_WINDOW = 0x51, 0x53

#: Types of items, each with the types of its sub-items.
_Items = Mapping[int, Mapping[int, Any]]
_IN_USER_INFORMATION: _Items = {_MAXIMUM_LENGTH: {}, _ASYNCHRONOUS_WINDOW: {}}
#: The items of an A-ASSOCIATE-RQ that decide something.
_IN_REQUEST: _Items = {
    _APPLICATION_CONTEXT: {},
    _CONTEXT_RQ: {_ABSTRACT_SYNTAX: {}, _TRANSFER_SYNTAX: {}},
    _USER_INFORMATION: _IN_USER_INFORMATION,
}
#: The items of an A-ASSOCIATE-AC that decide something.
_IN_ACCEPTANCE: _Items = {
    _CONTEXT_AC: {_TRANSFER_SYNTAX: {}},
    _USER_INFORMATION: _IN_USER_INFORMATION,
}
#: Bytes of an item before its sub-items: context id, reserved, result, reserved (PS3.8 9.3.2.2).
_BEFORE_SUB_ITEMS = {_CONTEXT_RQ: 4, _CONTEXT_AC: 4, _USER_INFORMATION: 0}


class MalformedPDU(ValueError):
    """Bytes that are no PDU of the type that they claim to be."""


def decode_request(pdu: bytes) -> A_ASSOCIATE_RQ:
    """Return the A-ASSOCIATE-RQ that whole PDU bytes encode.

    Raises
    ------
    MalformedPDU
        If they encode none, an AE title is not valid (PS3.5 section 6.2), or the peer says that
        nothing can be sent to it.
    """
    if len(pdu) < FIXED_LENGTH:
        raise MalformedPDU("an A-ASSOCIATE-RQ is longer")
    for title in (pdu[10:26], pdu[26:42]):
        # Checked before pynetdicom sees it, which would quote it in its log.
        try:
            check_ae_title(title.decode("latin-1"))
        except ValueError:
            raise MalformedPDU("an AE title is not valid") from None
    request = A_ASSOCIATE_RQ()
    _decode(request, pdu[:FIXED_LENGTH], pdu, _IN_REQUEST)
    return request


def decode_acceptance(pdu: bytes) -> A_ASSOCIATE_AC:
    """Return the A-ASSOCIATE-AC that whole PDU bytes encode.

    The transfer syntax of a context that was not accepted is not significant (PS3.8 section
    9.3.3.2): it is left out.

    Raises
    ------
    MalformedPDU
        If they encode none, or the peer says that nothing can be sent to it.
    """
    if len(pdu) < FIXED_LENGTH:
        raise MalformedPDU("an A-ASSOCIATE-AC is longer")
    acceptance = A_ASSOCIATE_AC()
    # The places of the AE titles are reserved here and not tested (PS3.8 Table 9-17).
    _decode(acceptance, pdu[:10] + bytes(FIXED_LENGTH - 10), pdu, _IN_ACCEPTANCE)
    return acceptance


def _decode(
    decoded: A_ASSOCIATE_RQ | A_ASSOCIATE_AC, fixed: bytes, pdu: bytes, wanted: _Items
) -> None:
    """Let pynetdicom decode a PDU, reduced to the items that are wanted."""
    items = b"".join(_select(pdu[FIXED_LENGTH:], wanted))
    try:
        decoded.decode(fixed + items)
        length = maximum_length(decoded)
    except Exception as error:  # noqa: BLE001 - the protocol boundary: pynetdicom fails in any way
        raise MalformedPDU(type(error).__name__) from None
    if 0 < length < LEAST_MAXIMUM_LENGTH:
        raise MalformedPDU("the peer's maximum length has no room for a fragment")


def _select(items: bytes, wanted: _Items) -> Iterator[bytes]:
    """Yield the items whose types are wanted, each reduced to its sub-items that are."""
    at = 0
    while at < len(items):
        if at + _ITEM.size > len(items):
            raise MalformedPDU("an item's header is cut short")
        kind, length = _ITEM.unpack_from(items, at)
        at += _ITEM.size
        value = items[at : at + length]
        at += length
        if len(value) < length:
            raise MalformedPDU("an item is cut short")
        if kind not in wanted:
            continue
        if kind in _BEFORE_SUB_ITEMS:
            before = value[: _BEFORE_SUB_ITEMS[kind]]
            refused = kind == _CONTEXT_AC and before[2:3] != b"\0"
            inner = () if refused else _select(value[len(before) :], wanted[kind])
            value = before + b"".join(inner)
        yield _ITEM.pack(kind, len(value)) + value


def maximum_length(pdu: A_ASSOCIATE_RQ | A_ASSOCIATE_AC) -> int:
    """Return the longest P-DATA-TF that the sender of `pdu` takes; 0 is no limit (Annex D.1)."""
    for item in _user_data(pdu):
        if isinstance(item, MaximumLengthSubItem):
            return int(item.maximum_length_received or 0)
    return 0


def asks_for_window(pdu: A_ASSOCIATE_RQ) -> bool:
    """Tell whether the peer negotiates the asynchronous operations window (PS3.7 Annex D.3.3.3)."""
    return any(isinstance(item, AsynchronousOperationsWindowSubItem) for item in _user_data(pdu))


def _user_data(pdu: A_ASSOCIATE_RQ | A_ASSOCIATE_AC) -> list[Any]:
    information: Any = pdu.user_information
    return information.user_data if information else []


# -- what we say -----------------------------------------------------------------------------------


def application_context_item() -> ApplicationContextItem:
    """Return the item that names DICOM's application context (PS3.8 section 9.3.2.1)."""
    item = ApplicationContextItem()
    item.application_context_name = APPLICATION_CONTEXT
    return item


def user_information_item(maximum_length: int, *, window: bool = False) -> UserInformationItem:
    """Return what we say of ourselves, as a requestor or as an acceptor.

    Parameters
    ----------
    maximum_length : int
        The longest P-DATA-TF that we take, in bytes.
    window : bool, optional
        Say that we do one operation at a time; an acceptor says it only if it was asked.

    References
    ----------
    PS3.8 Annex D.1; PS3.7 Annex D.3.3.
    """
    length = MaximumLengthSubItem()
    length.maximum_length_received = maximum_length
    implementation: Any = ImplementationClassUIDSubItem()
    implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version = ImplementationVersionNameSubItem()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    item = UserInformationItem()
    item.user_data = [length, implementation, version]
    if window:
        operations = AsynchronousOperationsWindowSubItem()
        operations.maximum_number_operations_invoked = 1
        operations.maximum_number_operations_performed = 1
        item.user_data.append(operations)
    return item


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


def encode_release_request() -> bytes:
    """Return an A-RELEASE-RQ (PS3.8 section 9.3.6)."""
    return A_RELEASE_RQ().encode()


def encode_release_response() -> bytes:
    """Return an A-RELEASE-RP (PS3.8 section 9.3.7)."""
    return A_RELEASE_RP().encode()
