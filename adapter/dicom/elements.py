# SPDX-License-Identifier: Apache-2.0
"""The headers of data elements: tag, value representation and length; no value is looked at.

The receiver looks for the UIDs at the start of a data set with it (`adapter.dicom.leading_uids`),
and notification for the elements that it needs (`adapter.dicom.header`).

References
----------
PS3.5 sections 7.1 (elements), 7.5 (sequences) and Annex A (transfer syntaxes).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from adapter.dicom.transfer_syntaxes import (
    DEFLATED,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    PAPYRUS_3,
    STANDARD_ROOT,
)

#: Value representations with a length of two bytes (PS3.5 Table 7.1-2), and with one of four.
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

UNDEFINED_LENGTH = 0xFFFFFFFF
#: Bytes of the longest header: tag, value representation, two reserved bytes, length.
LONGEST_HEADER = 12
#: The group of items and delimiters; they have no value representation in any transfer syntax.
DELIMITERS = 0xFFFE
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


class Form(NamedTuple):
    """How the elements of a transfer syntax are encoded.

    Attributes
    ----------
    header : Struct
        Group, element, value representation and a length of two bytes.
    long : Struct
        A length of four bytes.
    """

    explicit: bool
    header: Struct
    long: Struct


LITTLE_ENDIAN = (Struct("<HH2sH"), Struct("<I"))
BIG_ENDIAN = (Struct(">HH2sH"), Struct(">I"))


class Element(NamedTuple):
    """The header of an element; `vr` is empty where it is not written."""

    tag: int
    vr: bytes
    value_at: int
    length: int


def form_of(transfer_syntax: str) -> Form | None:
    """Return how to read a transfer syntax, or None if it is deflated or private."""
    if transfer_syntax in {IMPLICIT_VR_LITTLE_ENDIAN, PAPYRUS_3}:
        return Form(False, *LITTLE_ENDIAN)
    if transfer_syntax == EXPLICIT_VR_BIG_ENDIAN:
        return Form(True, *BIG_ENDIAN)
    if transfer_syntax in DEFLATED or not transfer_syntax.startswith(f"{STANDARD_ROOT}."):
        return None
    return Form(True, *LITTLE_ENDIAN)


def looks_like_vr(vr: bytes) -> bool:
    """Tell whether two bytes are written like a value representation, known or not."""
    return len(vr) == 2 and b"AA" <= vr <= b"ZZ" and vr.isalpha() and vr.isupper()


def element_at(data: bytes, at: int, form: Form) -> Element | None:
    """Read the header of the element at `at`; None if `data` ends within it.

    An element that has no value representation where one has to be is read without.  An unknown one
    has a length of four bytes behind two zero bytes (PS3.5 section 7.1.2), else of two.
    """
    if at + 8 > len(data):
        return None
    group, number, vr, length = form.header.unpack_from(data, at)
    tag = group << 16 | number
    if form.explicit and group != DELIMITERS:
        if vr in SHORT_VRS:
            return Element(tag, vr, at + 8, length)
        if looks_like_vr(vr):
            if length and vr not in LONG_VRS:
                return Element(tag, vr, at + 8, length)
            if at + 12 > len(data):
                return None
            return Element(tag, vr, at + 12, form.long.unpack_from(data, at + 8)[0])
    return Element(tag, b"", at + 8, form.long.unpack_from(data, at + 4)[0])
