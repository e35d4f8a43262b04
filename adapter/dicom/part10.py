# SPDX-License-Identifier: Apache-2.0
"""DICOM files (PS3.10): file meta information written and read; the data set is bytes.

A data set is never decoded to be stored, and never written again: a file holds the bytes that came
over the wire.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import BinaryIO

from adapter.dicom.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from adapter.errors import UnreadableInstance

_START = bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0, b"UL", 4)
#: The longest group 0002 that is read, in bytes.
_LONGEST_GROUP = 65_536
_CHUNK = 1 << 20


def part10_header(
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    calling_ae_title: str,
    called_ae_title: str,
) -> bytes:
    """Return what stands before the data set in a DICOM file.

    The preamble is always 128 zero bytes (CVE-2019-11687).  The prefix follows, and group 0002 with
    (0002,0001), 0002, 0003, 0010, 0012, 0013, 0017 (calling AE) and 0018 (called AE).

    References
    ----------
    PS3.10 section 7.1.
    """
    before, after = _constant_elements(
        sop_class_uid, transfer_syntax_uid, calling_ae_title, called_ae_title
    )
    group = before + _element(0x0003, b"UI", sop_instance_uid.encode("ascii")) + after
    return _START + struct.pack("<I", len(group)) + group


@lru_cache(maxsize=256)
def _constant_elements(
    sop_class_uid: str, transfer_syntax_uid: str, calling_ae_title: str, called_ae_title: str
) -> tuple[bytes, bytes]:
    """Return what stands before and behind the SOP Instance UID: the same for many instances."""
    before = _element(0x0001, b"OB", b"\0\1")
    before += _element(0x0002, b"UI", sop_class_uid.encode("ascii"))
    after = (
        _element(0x0010, b"UI", transfer_syntax_uid.encode("ascii")),
        _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        _element(0x0017, b"AE", calling_ae_title.encode("ascii")),
        _element(0x0018, b"AE", called_ae_title.encode("ascii")),
    )
    return before, b"".join(after)


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr in {b"AE", b"SH"} else b"\0"
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def read_file_meta(file: BinaryIO) -> dict[int, str]:
    """Read group 0002 of a DICOM file and leave `file` at the first byte of the data set.

    Returns
    -------
    dict of int to str
        The text elements by element number, e.g. ``{0x0010: "1.2.840.10008.1.2.1"}``.

    Raises
    ------
    UnreadableInstance
        If it is no DICOM file as PS3.10 section 7.1 defines it.
    """
    prefix = file.read(132 + 12)
    if len(prefix) < 144 or prefix[128:132] != b"DICM":
        raise UnreadableInstance("no DICOM file: the DICM prefix is missing", "not-dicom")
    group, number, vr, length, total = struct.unpack("<HH2sHI", prefix[132:])
    if (group, number, vr, length) != (2, 0, b"UL", 4) or total > _LONGEST_GROUP:
        raise UnreadableInstance("the file meta information has no group length", "not-dicom")
    raw = file.read(total)
    if len(raw) < total:
        raise UnreadableInstance("the file meta information is cut short", "not-dicom")
    elements: dict[int, str] = {}
    at = 0
    while at + 8 <= total:
        group, number, vr, length = struct.unpack_from("<HH2sH", raw, at)
        at += 8
        if vr in {b"OB", b"OW", b"UN", b"SQ", b"UT", b"OF", b"UC", b"UR"}:
            if at + 4 > total:
                break
            (length,) = struct.unpack_from("<I", raw, at)
            at += 4
        elif group == 2:
            elements[number] = raw[at : at + length].decode("ascii", "replace").strip("\0 ")
        at += length
    return elements


def digest_data_set(file: BinaryIO, transfer_syntax_uid: str) -> str:
    """Return the SHA-256, in hexadecimal, of a transfer syntax and the rest of `file`."""
    sha = hashlib.sha256(transfer_syntax_uid.encode("ascii", "replace") + b"\0")
    while chunk := file.read(_CHUNK):
        sha.update(chunk)
    return sha.hexdigest()
