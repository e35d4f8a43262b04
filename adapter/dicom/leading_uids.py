# SPDX-License-Identifier: Apache-2.0
"""The SOP class and instance UIDs at the start of a data set, found without decoding it.

They are looked for within the first 64 KiB.  The work is bounded by that many bytes, whatever they
hold, and fails with `UnreadableStart` only.

References
----------
PS3.5 sections 7.1 (elements), 7.5 (sequences) and Annex A (transfer syntaxes).
"""

from __future__ import annotations

from adapter.dicom.elements import (
    DELIMITERS,
    LONG_VRS,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED_LENGTH,
    Element,
    Form,
    element_at,
    form_of,
)
from adapter.dicom.tags import SOP_CLASS_UID, SOP_INSTANCE_UID
from adapter.dicom.uids import trimmed

#: Bytes of a data set that are looked at.
LOOK_AHEAD_BYTES = 65536

_MAXIMUM_DEPTH = 64


class UnreadableStart(ValueError):
    """The data set is empty, or does not begin as its transfer syntax says."""


def leading_uids(head: bytes, transfer_syntax: str, *, complete: bool) -> dict[int, str]:
    """Return the SOP class and instance UIDs that the start of a data set holds, by tag.

    Parameters
    ----------
    head : bytes
        The first `LOOK_AHEAD_BYTES` of the data set.
    transfer_syntax : str
        Its transfer syntax UID.
    complete : bool
        Whether `head` is all of it.

    Raises
    ------
    UnreadableStart
        If the data set is empty, or its first elements cannot be read.
    """
    if not head:
        raise UnreadableStart("the data set is empty")
    form = form_of(transfer_syntax)
    if form is None:
        return {}
    found: dict[int, str] = {}
    at = depth = 0
    while at < len(head) and depth <= _MAXIMUM_DEPTH:
        element = element_at(head, at, form)
        if element is None:
            break
        if depth == 0:
            _check_outermost(element.tag, first=at == 0)
            if element.tag > SOP_INSTANCE_UID:
                return found
            _check_encoding(element, form, head[at + 4 : at + 6])
        if element.vr == b"UN" and element.length == UNDEFINED_LENGTH:
            return found  # its content is implicit VR: left to notification
        at = _skip(element)
        depth += _descent(element)
        if depth == 0 and element.tag in {SOP_CLASS_UID, SOP_INSTANCE_UID} and at <= len(head):
            found[element.tag] = trimmed(head[element.value_at : at])
    if complete and (at != len(head) or depth):
        raise UnreadableStart("the data set ends within its first elements")
    return found


def _skip(element: Element) -> int:
    """Return where the next element begins; items and sequences without a length are entered."""
    if element.tag >> 16 == DELIMITERS or element.length == UNDEFINED_LENGTH:
        return element.value_at
    end = element.value_at + element.length
    if end > LOOK_AHEAD_BYTES:  # whatever follows: the answer must not depend on the size
        raise UnreadableStart("the elements before the SOP Instance UID are too long")
    return end


def _descent(element: Element) -> int:
    """Return how many levels an element leads into, or out of, sequences without a length."""
    if element.tag >> 16 == DELIMITERS:
        return -1 if element.tag == SEQUENCE_END else 0
    return 1 if element.length == UNDEFINED_LENGTH else 0


def _check_outermost(tag: int, *, first: bool) -> None:
    """Refuse an element that no composite instance holds here: its SOP class is in group 0008."""
    group = tag >> 16
    if group == 0 or group >= DELIMITERS or (first and tag > SOP_INSTANCE_UID):
        raise UnreadableStart("the data set does not begin with the elements of an instance")


def _check_encoding(element: Element, form: Form, after_tag: bytes) -> None:
    """Refuse an element of the other encoding.

    Where implicit VR has its length, explicit VR has its value representation.  Taken for a length
    its letters mean 16 KiB or more, which no element has before the SOP Instance UID.
    """
    if form.explicit and not element.vr:
        raise UnreadableStart("implicit VR elements in an explicit VR transfer syntax")
    if not form.explicit and after_tag in SHORT_VRS | LONG_VRS:
        raise UnreadableStart("explicit VR elements in an implicit VR transfer syntax")
