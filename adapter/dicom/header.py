# SPDX-License-Identifier: Apache-2.0
"""The header of a file, read by pydicom under limits.

Reading a header decodes bytes that may be hostile.  So it is meant for a process whose death harms
nothing else (``workers.clients.headers``), and this module imports little.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, config
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from adapter.dicom.instance import Instance
from adapter.dicom.part10 import digest_data_set, read_file_meta
from adapter.dicom.tags import (
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
)
from adapter.dicom.transfer_syntaxes import (
    DEFLATED,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from adapter.dicom.uids import is_uid
from adapter.errors import UnreadableInstance


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """Bounds on reading a header.

    Attributes
    ----------
    depth : int
        Nested sequences; `limit_depth` enforces it for the whole process.
    inflated_bytes : int
        Bytes that a deflated data set may inflate to.
    strict_uids : bool
        Whether UIDs must have the grammar of PS3.5 section 9.1.
    """

    depth: int = 64
    inflated_bytes: int = 64_000_000
    strict_uids: bool = False

    def limit_depth(self) -> None:
        """Limit this process's recursion to what reading so many nested sequences takes."""
        sys.setrecursionlimit(_FRAMES_OF_CALLERS + _FRAMES_PER_SEQUENCE * self.depth)


#: Python frames that pydicom's reader takes for each level of nesting, and room for its callers.
_FRAMES_PER_SEQUENCE = 5
_FRAMES_OF_CALLERS = 60


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
    with config.disable_value_validation():  # values are decoded when they are asked for
        values = {tag: text for tag in {*_UIDS, *tags} if (text := _text(data_set, tag))}
    sop_class = values.get(SOP_CLASS_UID) or meta.get(0x0002, "")
    sop_instance = values.get(SOP_INSTANCE_UID) or meta.get(0x0003, "")
    for name, uid in (
        ("SOP Class UID", sop_class),
        ("SOP Instance UID", sop_instance),
        ("Study Instance UID", values.get(STUDY_INSTANCE_UID)),
        ("Series Instance UID", values.get(SERIES_INSTANCE_UID)),
    ):
        if uid and not is_uid(uid, strict=limits.strict_uids):
            raise UnreadableInstance(f"the {name} is no valid UID", "invalid-uid")
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


#: What pydicom's decoders raise for broken bytes.  The texts may hold PHI.
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
