# SPDX-License-Identifier: Apache-2.0
"""What has to be known of a file to send it: where its data set begins, and how that is named.

Files come from anywhere.  The data set says which instance it is (PS3.4 Annex B.2.1), whatever the
file meta information says; and a file may lack preamble, prefix, group length or all of its file
meta information (PS3.10 section 7.1).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from adapter.dicom.element_search import HeaderLimits, elements_found, form_at
from adapter.dicom.elements import LITTLE_ENDIAN, Form, element_at, looks_like_vr
from adapter.dicom.part10 import read_file_meta
from adapter.dicom.tags import SOP_CLASS_UID, SOP_INSTANCE_UID
from adapter.dicom.transfer_syntaxes import (
    DEFLATED,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from adapter.dicom.uids import trimmed
from adapter.errors import UnreadableInstance

#: Bytes of a data set, and of loose file meta information, that are looked at.
_START_BYTES = 65_536
_PREAMBLE = 128


@dataclass(frozen=True, slots=True)
class FileStart:
    """The start of a file.

    Attributes
    ----------
    data_set : int
        Where the data set begins, in bytes.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: int


def read_file_start(file: BinaryIO) -> FileStart:
    """Read the start of a file, from its first byte.

    Raises
    ------
    UnreadableInstance
        If it is no DICOM file, or neither it nor its data set names class and instance.
    """
    try:
        meta = read_file_meta(file)
    except UnreadableInstance:
        meta = _loose_file_meta(file)
    start = file.tell()
    syntax = meta.get(0x0010) or _syntax_of(file)
    found = data_set_uids(file, syntax, (SOP_CLASS_UID, SOP_INSTANCE_UID))
    sop_class = found.get(SOP_CLASS_UID) or meta.get(0x0002)
    sop_instance = found.get(SOP_INSTANCE_UID) or meta.get(0x0003)
    if not meta and not (sop_class and sop_instance):
        raise _not_dicom()
    if not (sop_class and sop_instance):
        raise UnreadableInstance("the file lacks a SOP Class or SOP Instance UID", "missing-uid")
    return FileStart(sop_class, sop_instance, syntax, start)


def data_set_uids(file: BinaryIO, syntax: str, tags: Collection[int]) -> dict[int, str]:
    """Return those of the UIDs `tags` that the first 64 KiB of a data set hold; nothing is raised.

    `file` is at the first byte of the data set, and somewhere behind it then.
    """
    head = file.read(_START_BYTES)
    if syntax in DEFLATED:
        head = _inflated(head)
    data_set = BytesIO(head)
    elements = elements_found(data_set, form_at(data_set, syntax), tags, HeaderLimits())
    return {tag: trimmed(element.value) for tag, element in elements.items()}


def _not_dicom() -> UnreadableInstance:
    return UnreadableInstance("no DICOM file", "not-dicom")


def _inflated(start: bytes) -> bytes:
    with suppress(zlib.error):
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, _START_BYTES)
    return b""


def _loose_file_meta(file: BinaryIO) -> dict[int, str]:
    """Read what there is of group 0002, by element number, and stop at the data set."""
    file.seek(0)
    has_prefix = file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    start = file.seek(_PREAMBLE + 4 if has_prefix else 0)
    head = file.read(_START_BYTES)
    meta: dict[int, str] = {}
    at = 0
    form = Form(True, *LITTLE_ENDIAN)
    while (element := element_at(head, at, form)) is not None and element.tag >> 16 == 2:
        at = element.value_at + element.length
        meta[element.tag & 0xFFFF] = trimmed(head[element.value_at : at])
    file.seek(start + at)
    return meta


def _syntax_of(file: BinaryIO) -> str:
    """Return the transfer syntax that a data set without file meta information begins in.

    Raises
    ------
    UnreadableInstance
        If it does not begin with group 0008.
    """
    start = file.read(6)
    file.seek(-len(start), 1)
    explicit = looks_like_vr(start[4:])
    if explicit and start[:2] == b"\0\x08":
        return EXPLICIT_VR_BIG_ENDIAN
    if start[:2] == b"\x08\0":
        return EXPLICIT_VR_LITTLE_ENDIAN if explicit else IMPLICIT_VR_LITTLE_ENDIAN
    raise _not_dicom()
