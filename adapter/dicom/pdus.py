# SPDX-License-Identifier: Apache-2.0
"""The PDUs of the upper layer (PS3.8 section 9.3), for both sides of an association.

What a peer sends is read with suspicion, and with tolerance where nothing depends on it.  One
decoder reads the A-ASSOCIATE-RQ of a caller and the A-ASSOCIATE-AC of a destination.  It reads the
items that decide something and checks the lengths of all.  The other items are skipped, whatever
they hold: those of unknown types (PS3.8 section 9.3.1), and those that only inform, such as a
peer's implementation version name.  Its work is bounded by `MOST_ITEMS`.

Only bytes and values are here.  The order in which PDUs may come is a matter of
``adapter.scp.upper_layer`` and ``adapter.scu.association``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from adapter.dicom import ae_titles
from adapter.dicom.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from adapter.dicom.transfer_syntaxes import IMPLICIT_VR_LITTLE_ENDIAN
from adapter.dicom.uids import APPLICATION_CONTEXT, trimmed

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
#: The most contexts of one association: their ids are the odd numbers of a byte (PS3.8 9.3.2.2).
MAXIMUM_CONTEXTS = 128
#: Items and sub-items that are read of one PDU: 128 contexts with 63 transfer syntaxes each.
MOST_ITEMS = MAXIMUM_CONTEXTS * 65

#: Sources of an A-ABORT, and the reasons of one by the provider (PS3.8 Table 9-26).
SERVICE_USER, SERVICE_PROVIDER = 0, 2
NO_REASON, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 0, 1, 2, 6

_ITEM = Struct(">BxH")
_CONTEXT = Struct(">BxBx")
_LENGTH = Struct(">I")
_APPLICATION_CONTEXT, _CONTEXT_RQ, _CONTEXT_AC, _USER_INFORMATION = 0x10, 0x20, 0x21, 0x50
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
_MAXIMUM_LENGTH, _IMPLEMENTATION_CLASS, _WINDOW, _IMPLEMENTATION_VERSION = 0x51, 0x52, 0x53, 0x55
#: Protocol version 1 (bit 0), and two reserved bytes.
_VERSION_1 = b"\0\1\0\0"


class MalformedPDU(ValueError):
    """Bytes that are no PDU of the type that they claim to be.

    Parameters
    ----------
    cause : str
        A word for log, events and metrics.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class TooManyItems(MalformedPDU):
    """More presentation contexts or syntaxes than are read."""

    def __init__(self, message: str) -> None:
        super().__init__("too-many-items", message)


class FixedPart(NamedTuple):
    """What an A-ASSOCIATE-RQ begins with: enough to know who calls whom.

    Attributes
    ----------
    version : int
        The protocol versions of the caller, as bits.
    called_ae, calling_ae : str
        The AE titles without padding; whether they are valid is not checked.
    """

    version: int
    called_ae: str
    calling_ae: str


class PresentationContext(NamedTuple):
    """A presentation context, proposed or answered; `result` counts only if it is answered."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    result: int = 0


@dataclass(slots=True)
class AssociateItems:
    """The items of an A-ASSOCIATE-RQ or -AC that decide something.

    Attributes
    ----------
    application_context : str
        The application context's name; empty if there is none.
    contexts : list of PresentationContext
        In their order.
    maximum_length : int
        The longest P-DATA-TF that the sender takes, in bytes; 0 is no limit (Annex D.1).
    window : bool
        Whether the asynchronous operations window is negotiated (PS3.7 Annex D.3.3.3).
    """

    application_context: str
    contexts: list[PresentationContext]
    maximum_length: int = 0
    window: bool = False


def decode_fixed_part(pdu: bytes) -> FixedPart:
    """Return what the first `FIXED_LENGTH` bytes of an A-ASSOCIATE-RQ say."""
    version = int.from_bytes(pdu[6:8], "big")
    return FixedPart(version, ae_titles.trimmed(pdu[10:26]), ae_titles.trimmed(pdu[26:42]))


def decode_request(pdu: bytes) -> AssociateItems:
    """Return the items of an A-ASSOCIATE-RQ.

    Raises
    ------
    MalformedPDU
        If its items cannot be told apart, are too many, or leave nothing that can be sent.
    """
    return _decode(pdu, _CONTEXT_RQ)


def decode_acceptance(pdu: bytes) -> AssociateItems:
    """Return the items of an A-ASSOCIATE-AC.

    The transfer syntax of a context that was not accepted is not significant (PS3.8 section
    9.3.3.2): it is not read.  The places of the AE titles are reserved and not tested (Table 9-17).

    Raises
    ------
    MalformedPDU
        If its items cannot be told apart, are too many, or leave nothing that can be sent.
    """
    if len(pdu) < FIXED_LENGTH:
        raise MalformedPDU("malformed-request", "it is too short")
    return _decode(pdu, _CONTEXT_AC)


def _decode(pdu: bytes, context_item: int) -> AssociateItems:
    found = AssociateItems("", [])
    left = [MOST_ITEMS]
    for kind, at, end in _items(pdu, FIXED_LENGTH, len(pdu), left):
        if kind == context_item:
            if len(found.contexts) == MAXIMUM_CONTEXTS:
                raise TooManyItems(f"more than {MAXIMUM_CONTEXTS} contexts")
            context = _context(pdu, at, end, left, answered=kind == _CONTEXT_AC)
            found.contexts.append(context)
        elif kind == _APPLICATION_CONTEXT:
            found.application_context = trimmed(pdu[at:end])
        elif kind == _USER_INFORMATION:
            _user_information(found, pdu, at, end, left)
    if 0 < found.maximum_length < LEAST_MAXIMUM_LENGTH:
        raise MalformedPDU("maximum-length", "its maximum length has no room for a fragment")
    return found


def _items(pdu: bytes, at: int, end: int, left: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield type, begin and end of each item between two places; `left` counts down."""
    while at < end:
        left[0] -= 1
        if left[0] < 0:
            raise TooManyItems(f"more than {MOST_ITEMS} items")
        if at + _ITEM.size > end:
            raise MalformedPDU("malformed-request", "an item's header is cut short")
        kind, length = _ITEM.unpack_from(pdu, at)
        at += _ITEM.size
        if at + length > end:
            raise MalformedPDU("malformed-request", "an item is cut short")
        yield kind, at, at + length
        at += length


def _context(
    pdu: bytes, at: int, end: int, left: list[int], *, answered: bool
) -> PresentationContext:
    if end - at < _CONTEXT.size:
        raise MalformedPDU("malformed-request", "a presentation context is cut short")
    context_id, result = _CONTEXT.unpack_from(pdu, at)
    abstract = ""
    transfers: list[str] = []
    result = result if answered else 0  # the byte is reserved in a proposal
    if result == 0:
        for kind, begin, stop in _items(pdu, at + _CONTEXT.size, end, left):
            if kind == _TRANSFER_SYNTAX:
                transfers.append(trimmed(pdu[begin:stop]))
            elif kind == _ABSTRACT_SYNTAX:
                abstract = trimmed(pdu[begin:stop])
    return PresentationContext(context_id, abstract, tuple(transfers), result)


def _user_information(
    found: AssociateItems, pdu: bytes, at: int, end: int, left: list[int]
) -> None:
    for kind, begin, stop in _items(pdu, at, end, left):
        if kind == _MAXIMUM_LENGTH:
            if stop - begin != _LENGTH.size:
                raise MalformedPDU("maximum-length", "its maximum length is not a number")
            (found.maximum_length,) = _LENGTH.unpack_from(pdu, begin)
        elif kind == _WINDOW:
            found.window = True


# -- what we say -----------------------------------------------------------------------------------


def encode_request(
    called_ae: str, calling_ae: str, contexts: Iterable[tuple[int, str, str]], maximum_length: int
) -> bytes:
    """Return an A-ASSOCIATE-RQ (PS3.8 section 9.3.2).

    Parameters
    ----------
    contexts : iterable of (int, str, str)
        Id, abstract syntax and the one transfer syntax of each context.
    maximum_length : int
        The longest P-DATA-TF that we take, in bytes.
    """
    titles = called_ae.encode("ascii").ljust(16) + calling_ae.encode("ascii").ljust(16)
    items = [
        _item(
            _CONTEXT_RQ,
            _CONTEXT.pack(number, 0)
            + _item(_ABSTRACT_SYNTAX, abstract.encode("ascii"))
            + _item(_TRANSFER_SYNTAX, transfer.encode("ascii")),
        )
        for number, abstract, transfer in contexts
    ]
    return _associate(ASSOCIATE_RQ, titles + bytes(32), items, maximum_length, window=False)


def encode_acceptance(
    request: bytes, results: Iterable[tuple[int, int, str]], maximum_length: int, *, window: bool
) -> bytes:
    """Return an A-ASSOCIATE-AC (PS3.8 section 9.3.3).

    It names no role: by default the acceptor is the SCP (PS3.7 Annex D.3.3.4).  User identity is
    not supported, and an acceptor says so by not answering it (Annex D.3.3.7).

    Parameters
    ----------
    request : bytes
        The A-ASSOCIATE-RQ, or its fixed part: its AE titles are sent back (Table 9-17).
    results : iterable of (int, int, str)
        Id, result and transfer syntax of each context.  The syntax of a refused context is not
        significant, but has to be there.
    maximum_length : int
        The longest P-DATA-TF that we take, in bytes.
    window : bool
        Say that we do one operation at a time (PS3.7 Annex D.3.3.3).
    """
    items = [
        _item(
            _CONTEXT_AC,
            _CONTEXT.pack(number, result)
            + _item(_TRANSFER_SYNTAX, (transfer or IMPLICIT_VR_LITTLE_ENDIAN).encode("ascii")),
        )
        for number, result, transfer in results
    ]
    return _associate(ASSOCIATE_AC, request[10:FIXED_LENGTH], items, maximum_length, window=window)


def _associate(
    kind: int, titles: bytes, contexts: list[bytes], maximum_length: int, *, window: bool
) -> bytes:
    user = _item(_MAXIMUM_LENGTH, _LENGTH.pack(maximum_length))
    user += _item(_IMPLEMENTATION_CLASS, IMPLEMENTATION_CLASS_UID.encode("ascii"))
    if window:
        user += _item(_WINDOW, b"\0\1\0\1")
    user += _item(_IMPLEMENTATION_VERSION, IMPLEMENTATION_VERSION_NAME.encode("ascii"))
    application = _item(_APPLICATION_CONTEXT, APPLICATION_CONTEXT.encode("ascii"))
    body = [_VERSION_1, titles, application, *contexts, _item(_USER_INFORMATION, user)]
    return _pdu(kind, b"".join(body))


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _pdu(kind: int, body: bytes) -> bytes:
    return PDU_HEADER.pack(kind, len(body)) + body


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """Return an A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
    return _pdu(ASSOCIATE_RJ, bytes((0, result, source, reason)))


def encode_abort(source: int, reason: int) -> bytes:
    """Return an A-ABORT (PS3.8 section 9.3.8)."""
    return _pdu(ABORT, bytes((0, 0, source, reason)))


def encode_release_request() -> bytes:
    """Return an A-RELEASE-RQ (PS3.8 section 9.3.6)."""
    return _pdu(RELEASE_RQ, bytes(4))


def encode_release_response() -> bytes:
    """Return an A-RELEASE-RP (PS3.8 section 9.3.7)."""
    return _pdu(RELEASE_RP, bytes(4))
