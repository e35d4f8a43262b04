# SPDX-License-Identifier: Apache-2.0
"""The few touches of DICOM encoding: file meta information written, headers read under limits.

The data set itself is never decoded to be stored, and never written again: what the wire brought is
what the file holds.  Reading a header decodes hostile bytes, so it is meant to be done in a process
whose death hurts nobody else (``workers.clients.headers``).
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, config
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from adapter.errors import UnreadableInstance
from adapter.models import Instance, check_uid

#: Our own implementation class UID (PS3.7 Annex D.3.3.2), from a UUID (PS3.5 Annex B.2).
IMPLEMENTATION_CLASS_UID = "2.25.121029337127240437530949026434168125969"
IMPLEMENTATION_VERSION_NAME = "DICOM_ADAPTER_1"

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
#: Transfer syntaxes whose whole data set is deflated (PS3.5 section A.5, and JPIP's two).
DEFLATED = frozenset(
    {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
)
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """Bounds on reading a header.

    Attributes
    ----------
    depth : int
        Nested sequences; kept by `limit_depth`, for the whole process.
    inflated_bytes : int
        Bytes that a deflated data set may inflate to.
    """

    depth: int = 64
    inflated_bytes: int = 64_000_000

    def limit_depth(self) -> None:
        """Let this process recurse no deeper than reading so many nested sequences takes."""
        sys.setrecursionlimit(_FRAMES_AROUND + _FRAMES_PER_SEQUENCE * self.depth)


#: Python frames that pydicom's reader takes for each level of nesting, and room for its callers.
_FRAMES_PER_SEQUENCE = 5
_FRAMES_AROUND = 60


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr in {b"AE", b"SH"} else b"\0"
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def part10_header(
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    transfer_syntax_uid: str,
    calling_ae_title: str,
    called_ae_title: str,
) -> bytes:
    """Return what stands before the data set in a DICOM file.

    The preamble is always 128 zero bytes (CVE-2019-11687), then the prefix and group 0002 with
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


_START = bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0, b"UL", 4)


@lru_cache(maxsize=256)
def _constant_elements(
    sop_class_uid: str, transfer_syntax_uid: str, calling_ae_title: str, called_ae_title: str
) -> tuple[bytes, bytes]:
    """Return what stands before and behind the SOP Instance UID, the same for many instances."""
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


def read_file_meta(file: BinaryIO) -> dict[int, str]:
    """Read group 0002 of a DICOM file and leave `file` at the first byte of the data set.

    Returns
    -------
    dict of int to str
        The text elements by element number, e.g. ``{0x0010: "1.2.840.10008.1.2.1"}``.

    Raises
    ------
    UnreadableInstance
        If it is no DICOM file as PS3.10 section 7.1 has it.
    """
    prefix = file.read(132 + 12)
    if len(prefix) < 144 or prefix[128:132] != b"DICM":
        raise UnreadableInstance("no DICOM file: the DICM prefix is missing", "not-dicom")
    group, number, vr, length, total = struct.unpack("<HH2sHI", prefix[132:])
    if (group, number, vr, length) != (2, 0, b"UL", 4) or total > 65536:
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


def _inflate(file: BinaryIO, limit: int) -> BinaryIO:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    out = BytesIO()
    try:
        while chunk := file.read(65536):
            out.write(inflater.decompress(chunk, limit + 1 - out.tell()))
            if out.tell() > limit:
                raise UnreadableInstance(
                    f"the deflated data set inflates to more than {limit} bytes",
                    "inflates-too-much",
                )
            if inflater.eof:
                break
    except zlib.error:
        raise UnreadableInstance(
            "the deflated data set cannot be inflated", "not-parseable"
        ) from None
    out.seek(0)
    return out


def read_header(path: Path, tags: Collection[int], limits: HeaderLimits) -> Instance:
    """Read what the stages need to know of an acknowledged file.

    Parameters
    ----------
    path : Path
        The file; its stem is the arrival's id.
    tags : collection of int
        Further tags whose first values are wanted, as text; a missing or empty one is left out.
    limits : HeaderLimits
        Bounds on the work.

    Raises
    ------
    UnreadableInstance
        If the header cannot be read within the limits, or its UIDs are missing or malformed.

    Notes
    -----
    Patient data is neither required nor looked at: an empty Patient ID is legal (type 2).
    """
    with path.open("rb") as file:
        meta = read_file_meta(file)
        start = file.tell()
        syntax = meta.get(0x0010, "")
        size = path.stat().st_size
        digest = digest_data_set(file, syntax)
        file.seek(start)
        data_set = _read_elements(file, syntax, {*_UIDS, *tags}, limits)
    values = {tag: text for tag in {*_UIDS, *tags} if (text := _text(data_set, tag))}
    sop_class = values.get(SOP_CLASS_UID) or meta.get(0x0002, "")
    sop_instance = values.get(SOP_INSTANCE_UID) or meta.get(0x0003, "")
    for name, uid in (
        ("SOP Class UID", sop_class),
        ("SOP Instance UID", sop_instance),
        ("Study Instance UID", values.get(STUDY_INSTANCE_UID)),
        ("Series Instance UID", values.get(SERIES_INSTANCE_UID)),
    ):
        try:
            check_uid(uid or "0")
        except ValueError:
            raise UnreadableInstance(f"the {name} is no valid UID", "invalid-uid") from None
    if not sop_class or not sop_instance:
        raise UnreadableInstance("SOP Class UID or SOP Instance UID is missing", "missing-uid")
    return Instance(
        arrival=path.stem,
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        study_instance_uid=values.get(STUDY_INSTANCE_UID),
        series_instance_uid=values.get(SERIES_INSTANCE_UID),
        transfer_syntax_uid=syntax,
        calling_ae_title=meta.get(0x0017, ""),
        called_ae_title=meta.get(0x0018, ""),
        size=size,
        digest=digest,
        values={tag: values[tag] for tag in tags if tag in values},
    )


#: What pydicom's decoders raise when they stumble over broken bytes; the texts may hold PHI.
_BROKEN_BYTES = (
    InvalidDicomError,
    ValueError,
    LookupError,
    TypeError,
    OSError,
    EOFError,
    struct.error,
    NotImplementedError,
    AttributeError,
    OverflowError,
)

_UIDS = (SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)


def _read_elements(
    file: BinaryIO, syntax: str, tags: Collection[int], limits: HeaderLimits
) -> Dataset:
    """Read the elements `tags`, stopping after the greatest of them."""
    uid = UID(syntax)
    source = _inflate(file, limits.inflated_bytes) if syntax in DEFLATED else file
    last = max(tags)
    wanted: list[BaseTag | int] = [Tag(tag) for tag in tags]
    try:
        with config.disable_value_validation():
            data_set = read_dataset(
                source,
                is_implicit_VR=syntax == IMPLICIT_VR_LITTLE_ENDIAN,
                is_little_endian=syntax != EXPLICIT_VR_BIG_ENDIAN,
                stop_when=lambda tag, _vr, _length: tag > last,
                specific_tags=wanted,
            )
    except UnreadableInstance:
        raise
    except RecursionError:
        raise UnreadableInstance("sequences are nested too deep", "nested-too-deep") from None
    except MemoryError:
        raise UnreadableInstance("reading the header takes too much memory", "too-large") from None
    except _BROKEN_BYTES as error:
        if isinstance(error, OSError) and error.errno:
            raise  # from the disk, not from a decoder
        raise UnreadableInstance(
            f"the data set cannot be parsed ({type(error).__name__}, {uid.name})", "not-parseable"
        ) from None
    return data_set


def _text(data_set: Dataset, tag: int) -> str:
    """Return an element's first value as text, empty if it is missing, a sequence or unreadable."""
    try:
        value = data_set[tag].value if tag in data_set else None
    except _BROKEN_BYTES:
        raise UnreadableInstance(
            f"the value of {Tag(tag)} cannot be read", "not-parseable"
        ) from None
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    if value is None or isinstance(value, bytes | Dataset):
        return ""
    return str(value).strip("\0 ")
