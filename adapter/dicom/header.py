# SPDX-License-Identifier: Apache-2.0
"""The header of a file, read by pydicom under limits.

Reading a header decodes bytes that may be hostile.  So it is meant for a process whose death harms
nothing else (``workers.clients.headers``), and this module imports little.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from io import BytesIO
from os import SEEK_END, SEEK_SET
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import config
from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from adapter.dicom.element_search import FoundElement, HeaderLimits, find_elements, form_at
from adapter.dicom.elements import Form
from adapter.dicom.instance import Instance
from adapter.dicom.part10 import digest_data_set, read_file_meta
from adapter.dicom.tags import (
    ISSUER_OF_PATIENT_ID,
    PATIENT_ID,
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    SPECIFIC_CHARACTER_SET,
    STUDY_INSTANCE_UID,
)
from adapter.dicom.transfer_syntaxes import DEFLATED
from adapter.dicom.uids import is_uid
from adapter.errors import UnreadableInstance


class _Inflated:
    """A deflated data set, inflated as far as it is read, up to a limit."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._data = BytesIO()
        self._size = 0
        self._ended = False

    def tell(self) -> int:
        return self._data.tell()

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        if whence == SEEK_END:
            self._inflate(self._limit + 1)
        return self._data.seek(offset, whence)

    def read(self, size: int, /) -> bytes:
        at = self._data.tell()
        self._inflate(at + size)
        self._data.seek(at)
        return self._data.read(size)

    def _inflate(self, end: int) -> None:
        """Inflate up to `end`, or all there is."""
        self._data.seek(0, SEEK_END)
        while self._size < end and not self._ended:
            raw = self._inflater.unconsumed_tail or self._file.read(_PART)
            try:
                part = self._inflater.decompress(raw, _PART)
            except zlib.error:
                raise UnreadableInstance(
                    "the deflated data set cannot be inflated", "not-parseable"
                ) from None
            self._ended = self._inflater.eof or not raw
            self._size += self._data.write(part)
            if self._size > self._limit:
                raise UnreadableInstance(
                    f"the deflated data set inflates to more than {self._limit} bytes",
                    "inflates-too-much",
                )


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
    Patient data is not required, and taken only if it is on the way: an empty Patient ID is legal
    (type 2).
    """
    with path.open("rb") as file:
        meta = read_file_meta(file)
        start = file.tell()
        syntax = meta.get(0x0010, "")
        size = path.stat().st_size
        digest = digest_data_set(file, syntax)
        file.seek(start)
        values = _read_values(file, syntax, {*_UIDS, *tags}, limits)
    patient = values.get(PATIENT_ID, "")
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
        patient=(patient, values.get(ISSUER_OF_PATIENT_ID, "")) if patient else None,
    )


#: Bytes that are inflated at once.
_PART = 65_536

#: What pydicom's decoders raise for broken bytes.  The texts may hold PHI.
_BROKEN_BYTES = (
    ValueError,
    LookupError,
    TypeError,
    struct.error,
    NotImplementedError,
    AttributeError,
    OverflowError,
    RecursionError,
)

_UIDS = (SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)
_PATIENT = (PATIENT_ID, ISSUER_OF_PATIENT_ID)


def _read_values(
    file: BinaryIO, syntax: str, tags: Collection[int], limits: HeaderLimits
) -> dict[int, str]:
    """Return the first values of those of the elements `tags` that have one, as text."""
    try:
        source = _Inflated(file, limits.inflated_bytes) if syntax in DEFLATED else file
        form = form_at(source, syntax)
        also = (SPECIFIC_CHARACTER_SET, *_PATIENT)
        found = find_elements(source, form, tags, limits, also=also)
        source.seek(0, SEEK_END)  # whoever works with the file has to inflate all of it
    except MemoryError:
        raise UnreadableInstance("reading the header takes too much memory", "too-large") from None
    character_set = found.pop(SPECIFIC_CHARACTER_SET, None)
    with config.disable_value_validation():
        encodings = _encodings(character_set, form)
        texts = {tag: _text(element, form, encodings) for tag, element in found.items()}
    return {tag: text for tag, text in texts.items() if text}


def _encodings(character_set: FoundElement | None, form: Form) -> list[str] | None:
    """Return the character sets of a data set, for pydicom; None for its default."""
    if character_set is None:
        return None
    try:
        return convert_encodings(_value(character_set, form))
    except _BROKEN_BYTES:
        return None


def _text(element: FoundElement, form: Form, encodings: list[str] | None) -> str:
    """Return an element's first value as text, empty if it has none, or is a sequence.

    So it is if a patient cannot be read: nothing depends on that.
    """
    try:
        value = _value(element, form, encodings)
    except _BROKEN_BYTES:
        if element.tag in _PATIENT:
            return ""
        raise UnreadableInstance(
            f"the value of {Tag(element.tag)} cannot be read", "not-parseable"
        ) from None
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    if value is None or isinstance(value, bytes | Dataset):
        return ""
    return str(value).strip("\0 ")


def _value(element: FoundElement, form: Form, encodings: list[str] | None = None) -> Any:
    """Return an element's value as pydicom decodes it."""
    raw = RawDataElement(
        Tag(element.tag),
        element.vr.decode("ascii") or None,
        len(element.value),
        element.value or None,
        0,
        not element.vr,
        form.header.format[0] == "<",
    )
    return convert_raw_data_element(raw, encoding=encodings).value
