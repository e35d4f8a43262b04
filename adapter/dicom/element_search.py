# SPDX-License-Identifier: Apache-2.0
"""Finds elements of a data set wherever they stand, under limits and without reading pixel data.

Only the headers of elements are read, and the values that are asked for.  What has a length is
skipped; only sequences and items without one are walked through.  Elements, items and depth are
counted on the way: the work is bounded by the limits, whatever the bytes hold.

References
----------
PS3.5 sections 6.2.2 (UN), 7.1 (elements), 7.5 (sequences) and Annex A.4 (encapsulated pixel data).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from os import SEEK_CUR, SEEK_END, SEEK_SET
from typing import Protocol

from adapter.dicom.elements import (
    BIG_ENDIAN,
    DELIMITERS,
    ITEM,
    LITTLE_ENDIAN,
    LONGEST_HEADER,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
    Element,
    Form,
    element_at,
    looks_like_vr,
)
from adapter.dicom.transfer_syntaxes import EXPLICIT_VR_BIG_ENDIAN
from adapter.errors import UnreadableInstance

#: Values longer than this many bytes are taken for missing: none that is needed is so long.
LONGEST_VALUE = 65_536
#: The group that trailing zeros seem to have; only command sets have it (PS3.7 section 6.3.1).
_PADDING = 0x0000
#: Bytes that are read at once: some 200 elements, and little of what stands behind pixel data.
_WINDOW = 8192


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """Bounds on reading a header.

    Attributes
    ----------
    elements : int
        Elements and items.
    depth : int
        Nested sequences.
    inflated_bytes : int
        Bytes that a deflated data set may inflate to.
    strict_uids : bool
        Whether UIDs must have the grammar of PS3.5 section 9.1.
    """

    elements: int = 50_000
    depth: int = 64
    inflated_bytes: int = 64_000_000
    strict_uids: bool = False


class ByteSource(Protocol):
    """What is asked of a file, or of what stands for one."""

    def tell(self) -> int:
        """Return the position."""

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Change the position."""

    def read(self, size: int, /) -> bytes:
        """Read so many bytes, or what is left."""


@dataclass(frozen=True, slots=True)
class FoundElement:
    """An element as it stands in a data set; `vr` is empty where it is not written."""

    tag: int
    vr: bytes
    value: bytes


def find_elements(
    file: ByteSource,
    form: Form,
    tags: Collection[int],
    limits: HeaderLimits,
    also: Collection[int] = (),
) -> dict[int, FoundElement]:
    """Return those outermost elements of a data set that have the tags, each the first of its tag.

    In an ordered data set an element whose tag has been passed is not there.  So what ends the
    search behind that place (a limit, or bytes that cannot be read) is no error.

    Parameters
    ----------
    file : ByteSource
        The file, at the first byte of its data set.
    form : Form
        How its elements are encoded.
    tags : collection of int
        What to look for.
    limits : HeaderLimits
        Bounds on the work.
    also : collection of int
        What to take on the way, without looking further for it.

    Raises
    ------
    UnreadableInstance
        If it cannot be read up to the greatest of the tags within the limits.
    """
    search = _Search(file, form, set(tags), set(also) - set(tags), limits)
    try:
        search.run()
    except UnreadableInstance:
        if not search.passed:
            raise
    return search.found


def elements_found(
    file: ByteSource, form: Form, tags: Collection[int], limits: HeaderLimits
) -> dict[int, FoundElement]:
    """Return those of the elements that are found before a data set breaks off; nothing is raised.

    The parameters are those of `find_elements`.
    """
    search = _Search(file, form, set(tags), set(), limits)
    with suppress(UnreadableInstance):
        search.run()
    return search.found


def form_at(file: ByteSource, transfer_syntax: str) -> Form:
    """Return how a data set is encoded: explicit or not as its first element is, whatever was said.

    It may have been written by somebody else than the receiver, who refuses what was not agreed.
    """
    start = file.read(6)
    file.seek(-len(start), SEEK_CUR)
    order = BIG_ENDIAN if transfer_syntax == EXPLICIT_VR_BIG_ENDIAN else LITTLE_ENDIAN
    return Form(looks_like_vr(start[4:]), *order)


class _Search:
    """One walk through a data set; it stands at `_at`."""

    def __init__(
        self, file: ByteSource, form: Form, awaited: set[int], also: set[int], limits: HeaderLimits
    ) -> None:
        self._file = file
        self._at = self._head_at = file.tell()
        self._head = b""
        self._form = form
        self._outer: list[Form] = []  # of the sequences that are entered, the innermost last
        self._awaited, self._also = awaited, also
        self._greatest = max(awaited)
        self._limits = limits
        self.found: dict[int, FoundElement] = {}
        self.passed = False

    def run(self) -> None:
        """Walk until everything is found, or the data set ends."""
        count = 0
        while self._awaited and (element := self._next()) is not None:
            count += 1
            if count > self._limits.elements:
                raise UnreadableInstance(
                    f"it holds more than {self._limits.elements} elements and items",
                    "too-many-elements",
                )
            if not self._outer and element.tag >> 16 in {_PADDING, DELIMITERS}:
                return  # no element of a data set: nothing that follows is one
            if element.tag >> 16 == DELIMITERS:
                self._pass_delimiter(element)
            else:
                self._pass_element(element)

    def _next(self) -> Element | None:
        """Return the element at hand and step behind its header; None at the end."""
        at = self._at - self._head_at
        if not 0 <= at <= len(self._head) - LONGEST_HEADER:
            self._file.seek(self._at)
            self._head = self._file.read(_WINDOW)
            self._head_at, at = self._at, 0
        element = element_at(self._head, at, self._form)
        if element is not None:
            self._at = self._head_at + element.value_at
        elif self._at > self._file.seek(0, SEEK_END):
            raise _too_long()
        return element

    def _pass_delimiter(self, element: Element) -> None:
        if element.tag == SEQUENCE_END:
            self._form = self._outer.pop()
        elif element.tag == ITEM and element.length != UNDEFINED_LENGTH:
            self._at += element.length

    def _pass_element(self, element: Element) -> None:
        value_at, outermost = self._at, not self._outer
        if outermost:
            self.passed = self.passed or element.tag > self._greatest
        if element.length == UNDEFINED_LENGTH:
            self._enter(element)
        else:
            self._at += element.length
        if outermost and (element.tag in self._awaited or element.tag in self._also):
            self._take(element, value_at)

    def _enter(self, element: Element) -> None:
        if len(self._outer) == self._limits.depth:
            raise UnreadableInstance("sequences are nested too deep", "nested-too-deep")
        self._outer.append(self._form)
        if element.vr == b"UN":  # its content is implicit VR in any transfer syntax
            self._form = Form(False, *LITTLE_ENDIAN)

    def _take(self, element: Element, value_at: int) -> None:
        value = b""
        if element.length <= LONGEST_VALUE:  # an undefined length is longer
            self._file.seek(value_at)
            value = self._file.read(element.length)
            if len(value) < element.length:
                raise _too_long()
        self._awaited.discard(element.tag)
        self._also.discard(element.tag)
        self.found[element.tag] = FoundElement(element.tag, element.vr, value)


def _too_long() -> UnreadableInstance:
    return UnreadableInstance("an element is longer than the data set", "not-parseable")
