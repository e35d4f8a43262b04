# SPDX-License-Identifier: Apache-2.0
"""UIDs at the start of a data set, found without decoding it.

They are looked for within the first 64 KiB.  The work is bounded by that many bytes, whatever they
hold, and fails with `UnreadableStart` only.

References
----------
PS3.5 sections 7.1 (elements), 7.5 (sequences) and Annex A (transfer syntaxes).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from struct import Struct
from typing import NamedTuple

from adapter.dicom.tags import SOP_CLASS_UID, SOP_INSTANCE_UID
from adapter.dicom.transfer_syntaxes import (
    DEFLATED,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from adapter.dicom.uids import trimmed

#: Bytes of a data set that are looked at.
LOOK_AHEAD_BYTES = 65536

_STANDARD_ROOT = "1.2.840.10008.1.2"

_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_UNDEFINED = 0xFFFFFFFF
_DELIMITERS = 0xFFFE
_SEQUENCE_END = 0xFFFEE0DD
_MAXIMUM_DEPTH = 64


class UnreadableStart(ValueError):
    """The data set is empty, or does not begin as its transfer syntax says."""


class _Form(NamedTuple):
    """How the elements of a transfer syntax are encoded."""

    explicit: bool
    tag: Struct
    short: Struct
    long: Struct


class _Element(NamedTuple):
    tag: int
    vr: bytes
    value_at: int
    length: int


_LITTLE = (Struct("<HH"), Struct("<H"), Struct("<I"))
_BIG = (Struct(">HH"), Struct(">H"), Struct(">I"))


def _form(transfer_syntax: str) -> _Form | None:
    """Return how to read a transfer syntax, or None if it is deflated or private."""
    if transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN:
        return _Form(False, *_LITTLE)
    if transfer_syntax == EXPLICIT_VR_BIG_ENDIAN:
        return _Form(True, *_BIG)
    if transfer_syntax in DEFLATED or not transfer_syntax.startswith(_STANDARD_ROOT):
        return None
    return _Form(True, *_LITTLE)


def _element(head: bytes, at: int, form: _Form) -> _Element | None:
    """Read the header of the element at `at`; None if `head` ends within it."""
    if at + 8 > len(head):
        return None
    group, number = form.tag.unpack_from(head, at)
    tag = group << 16 | number
    if not form.explicit or group == _DELIMITERS:
        return _Element(tag, b"", at + 8, form.long.unpack_from(head, at + 4)[0])
    vr = head[at + 4 : at + 6]
    if not (vr.isalpha() and vr.isupper()):
        raise UnreadableStart("an element has no value representation")
    if vr in _SHORT_VRS:
        return _Element(tag, vr, at + 8, form.short.unpack_from(head, at + 6)[0])
    if at + 12 > len(head):
        return None
    return _Element(tag, vr, at + 12, form.long.unpack_from(head, at + 8)[0])


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
    form = _form(transfer_syntax)
    if form is None:
        return {}
    found: dict[int, str] = {}
    rest = _collect(head, form, (SOP_CLASS_UID, SOP_INSTANCE_UID), found)
    if complete and rest:
        raise UnreadableStart("the data set ends within its first elements")
    return found


def _collect(head: bytes, form: _Form, tags: Collection[int], found: dict[int, str]) -> bool:
    """Collect the outermost UIDs `tags`; tell whether `head` ended within what comes up to them.

    What was found before `UnreadableStart` is raised stands in `found`.
    """
    last = max(tags)
    at = depth = 0
    while at < len(head) and depth <= _MAXIMUM_DEPTH:
        element = _element(head, at, form)
        if element is None:
            break
        if depth == 0:
            _check_outermost(element.tag, first=at == 0)
            if element.tag > last:
                return False
        if element.vr == b"UN" and element.length == _UNDEFINED:
            return False  # its content is implicit VR: left to notification
        at = _skip(element)
        depth += _descent(element)
        if depth == 0 and element.tag in tags and at <= len(head):
            found[element.tag] = trimmed(head[element.value_at : at])
    return at != len(head) or depth > 0


def uids_found(head: bytes, transfer_syntax: str, tags: Collection[int]) -> dict[int, str]:
    """Return those of the UIDs `tags` that are found before the start of a data set breaks off."""
    found: dict[int, str] = {}
    form = _form(transfer_syntax)
    if form is not None:
        with suppress(UnreadableStart):
            _collect(head, form, tags, found)
    return found


def _skip(element: _Element) -> int:
    """Return where the next element begins; items and sequences without a length are entered."""
    if element.tag >> 16 == _DELIMITERS or element.length == _UNDEFINED:
        return element.value_at
    return element.value_at + element.length


def _descent(element: _Element) -> int:
    """Return how many levels an element leads into, or out of, sequences without a length."""
    if element.tag >> 16 == _DELIMITERS:
        return -1 if element.tag == _SEQUENCE_END else 0
    return 1 if element.length == _UNDEFINED else 0


def _check_outermost(tag: int, *, first: bool) -> None:
    """Refuse an element that no composite instance holds here: its SOP class is in group 0008."""
    group = tag >> 16
    if group == 0 or group >= _DELIMITERS or (first and tag > SOP_INSTANCE_UID):
        raise UnreadableStart("the data set does not begin with the elements of an instance")
