# SPDX-License-Identifier: Apache-2.0
"""Command sets: group 0000, always in Implicit VR Little Endian (PS3.7 section 6.3.1).

Only the encoding and the numbers are here.  What a command set asks for is decided in
``adapter.scp.dimse``.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

# Command fields (PS3.7 Annex E.1).
C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
RESPONSE = 0x8000

# Elements of group 0000 (PS3.7 section 9.3, Annex E.1).
AFFECTED_SOP_CLASS_UID = 0x0002
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
PRIORITY = 0x0700
COMMAND_DATA_SET_TYPE = 0x0800
STATUS = 0x0900
ERROR_COMMENT = 0x0902
AFFECTED_SOP_INSTANCE_UID = 0x1000

#: Command Data Set Type (0000,0800): no data set follows; any other value says that one does.
NO_DATA_SET, DATA_SET = 0x0101, 0x0001
#: Priority (0000,0700): medium.
MEDIUM = 0x0000

_ELEMENT = Struct("<HHI")
_US = Struct("<H")
_UL = Struct("<I")


class UnreadableCommand(ValueError):
    """Bytes that are no command set."""


def decode_command(encoded: bytes) -> dict[int, bytes]:
    """Return the values of a command set by element number.

    It is encoded in Implicit VR Little Endian, whatever the context (PS3.7 section 6.3.1).  Values
    of odd length are taken, and so are zero bytes at the end that make the whole length even.

    Raises
    ------
    UnreadableCommand
        If it is not.
    """
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + _ELEMENT.size > len(encoded):
            if any(encoded[at:]):
                break
            return elements
        group, number, length = _ELEMENT.unpack_from(encoded, at)
        at += _ELEMENT.size
        if group or at + length > len(encoded):
            break
        elements[number] = encoded[at : at + length]
        at += length
    else:
        return elements
    raise UnreadableCommand("not a command set")


def encode_command(elements: Mapping[int, bytes]) -> bytes:
    """Return a command set in Implicit VR Little Endian, with its group length."""
    body = b"".join(
        _ELEMENT.pack(0, number, len(value)) + value for number, value in sorted(elements.items())
    )
    return _ELEMENT.pack(0, 0, _UL.size) + _UL.pack(len(body)) + body


def number(elements: Mapping[int, bytes], element: int) -> int | None:
    """Return the value of an element of VR US, or None if there is none.

    Of a longer value the first is taken; some devices write these elements as UL.
    """
    value = elements.get(element, b"")
    return None if len(value) < _US.size else int(_US.unpack_from(value)[0])


def us(value: int) -> bytes:
    """Return a value of VR US."""
    return _US.pack(value)


def padded(text: str, padding: bytes) -> bytes:
    """Return text as a value of even length; what is not ASCII is replaced."""
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)
