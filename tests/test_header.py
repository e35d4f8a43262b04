# SPDX-License-Identifier: Apache-2.0
"""What is read of a data set: found wherever it stands, with work that is bounded."""

from __future__ import annotations

import contextlib
import struct
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from adapter.dicom.element_search import HeaderLimits, find_elements
from adapter.dicom.elements import form_of
from adapter.dicom.header import read_header
from adapter.dicom.part10 import part10_header
from adapter.dicom.tags import SERIES_INSTANCE_UID, STUDY_INSTANCE_UID
from adapter.errors import UnreadableInstance
from tests.support_stages import encode, make_instance, write_file
from tests.test_leading_uids import (
    DEFLATED,
    EVLE,
    ITEM_END,
    IVLE,
    SEQUENCE_END,
    UNDEFINED,
    explicit,
    implicit,
)

PATIENT_ID, PATIENT_NAME, INSTANCE_NUMBER = 0x00100020, 0x00100010, 0x00200013
LIMITS = HeaderLimits(elements=1000, depth=8, inflated_bytes=1_000_000)
EMPTY = explicit(8, 5, b"CS", b"")
STUDY = explicit(0x20, 0xD, b"UI", b"1.2.3.44")
SERIES = explicit(0x20, 0xE, b"UI", b"1.2.3.45")
ITEM = implicit(0xFFFE, 0xE000, b"", UNDEFINED)


def nested(depth, inner=b""):
    """Return sequences without lengths, in each other."""
    start, end = explicit(8, 0x1110, b"SQ", b"", UNDEFINED) + ITEM, ITEM_END + SEQUENCE_END
    return start * depth + inner + end * depth


@pytest.fixture
def read(tmp_path):
    """Read the header of a data set that stands in a file."""

    def header(data, syntax=EVLE, tags=(), limits=LIMITS):
        return read_header(write_file(tmp_path, data, syntax), tags, limits)

    return header


def test_real_files_agree_with_pydicom():
    """Of every file of pydicom's wheel the values are the ones that pydicom reads."""
    tags = (PATIENT_ID, PATIENT_NAME, INSTANCE_NUMBER, 0x00080060, 0x00280030)
    compared = 0
    for path in sorted(Path(pydicom.data.__file__).parent.rglob("*.dcm")):
        try:
            header = read_header(path, tags, HeaderLimits())
        except UnreadableInstance:
            continue
        with warnings.catch_warnings(action="ignore"):  # some files are broken on purpose
            ds = dcmread(path, stop_before_pixels=True)
            values = {tag: ds[tag].value if tag in ds else None for tag in tags}
        for tag, value in values.items():
            first = value[0] if isinstance(value, list | pydicom.multival.MultiValue) else value
            expected = "" if first is None else str(first).strip("\0 ")
            assert header.values.get(tag, "") == expected, (path, hex(tag))
        assert header.study_instance_uid == (ds.get("StudyInstanceUID") or None), path
        compared += 1
    assert compared > 60


PIXELS = explicit(0x7FE0, 0x10, b"OB", bytes(3_000_000))
FRAGMENT = implicit(0xFFFE, 0xE000, bytes(1_000_000))
ENCAPSULATED = explicit(0x7FE0, 0x10, b"OB", b"", UNDEFINED) + FRAGMENT * 3 + SEQUENCE_END


@pytest.mark.parametrize("pixels", [PIXELS, ENCAPSULATED], ids=["native", "encapsulated"])
def test_behind_the_pixel_data(pixels):
    """UIDs behind the pixel data are found, and the pixel data is not read."""

    class Counting(BytesIO):
        amount = 0

        def read(self, size=-1, /):
            data = super().read(size)
            self.amount += len(data)
            return data

    file = Counting(EMPTY + pixels + STUDY + SERIES)
    tags = (STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)
    found = find_elements(file, form_of(EVLE), tags, LIMITS)
    assert [found[tag].value for tag in tags] == [b"1.2.3.44", b"1.2.3.45"]
    assert file.amount < 50_000


@pytest.mark.parametrize(
    ("data", "syntax"),
    [
        (nested(8, STUDY.replace(b"44", b"99")) + STUDY, EVLE),
        # UN without a length holds implicit VR, even if a length looks like a VR (0x4242)
        (
            explicit(9, 0x1110, b"UN", b"", UNDEFINED)
            + ITEM
            + implicit(0x20, 0xD, bytes(0x4242))
            + ITEM_END
            + SEQUENCE_END
            + STUDY,
            EVLE,
        ),
        (explicit(8, 0x1110, b"SQ", implicit(0xFFFE, 0xE000, STUDY[:-2] + b"99")) + STUDY, EVLE),
        # elements without VRs where VRs were said, and the reverse
        (implicit(8, 5, b"ISO_IR 100") + implicit(0x20, 0xD, b"1.2.3.44"), EVLE),
        (STUDY, IVLE),
        # an unknown VR has a length of four bytes, unless there is one in two
        (struct.pack("<HH2sHI", 9, 0x10, b"QQ", 0, 2) + b"xx" + STUDY, EVLE),
        (struct.pack("<HH2sH", 9, 0x10, b"QQ", 2) + b"xx" + STUDY, EVLE),
    ],
    ids=range(7),
)
def test_outermost_elements_only(read, data, syntax):
    """Whatever stands before it, the outermost Study Instance UID is found."""
    assert read(data, syntax).study_instance_uid == "1.2.3.44"


def deflated(data):
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


@pytest.mark.parametrize(
    ("data", "syntax", "code"),
    [
        (EMPTY * 1001 + STUDY, EVLE, "too-many-elements"),
        (deflated(EMPTY * 1001 + STUDY), DEFLATED, "too-many-elements"),
        (explicit(8, 0x1110, b"SQ", b"", UNDEFINED) + ITEM * 1001, EVLE, "too-many-elements"),
        (nested(9) + STUDY, EVLE, "nested-too-deep"),
        (deflated(bytes(1_000_001)), DEFLATED, "inflates-too-much"),
        (implicit(8, 5, b"x" * 20, 0xFFFFFFF0), IVLE, "not-parseable"),
        (implicit(8, 0x16, b"x" * 20, 0xFFFFFFF0), IVLE, "not-parseable"),
        (explicit(8, 0x16, b"UN", b"x" * 20, 0x7FFFFFF0), EVLE, "not-parseable"),
        (explicit(0x20, 0xD, b"UI", b"1.2.3.44", 10), EVLE, "not-parseable"),
    ],
    ids=range(9),
)
def test_limits(read, data, syntax, code):
    """Bytes that would take long, or have impossible lengths, are not read further, and say so."""
    with pytest.raises(UnreadableInstance) as refused:
        read(data, syntax)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "rest",
    [
        explicit(0x28, 2, b"US", b"\1\0") * 2000,
        explicit(0x7FE0, 0x10, b"OB", bytes(100), 1000),
        nested(9).replace(b"\x08\0\x10\x11", b"\x28\0\x10\x11"),
        b"\xff" * 100,
        bytes(20_000),
    ],
    ids=["many", "cut short", "deep", "garbage", "zeros"],
)
def test_what_stands_behind_decides_nothing(read, rest):
    """Behind the place of a missing element, neither a limit nor broken bytes are an error."""
    header = read(explicit(0x10, 0x20, b"LO", b"CANARY") + STUDY + SERIES + rest, tags=[0x00200052])
    assert (header.study_instance_uid, header.values) == ("1.2.3.44", {})


def test_a_file_that_would_take_a_minute_takes_a_moment(read):
    """92 kB that inflate to 63 MB of empty elements are given up within a second of work."""
    began = time.process_time()
    with pytest.raises(UnreadableInstance):
        read(deflated(EMPTY * 7_800_000), DEFLATED, limits=HeaderLimits())
    assert time.process_time() - began < 3  # deflating included


def test_values_longer_than_any_that_is_needed_are_left_out(read):
    """A grouping value of 70 kB is none, and is not held."""
    long = explicit(0x10, 0x4000, b"LT", b"x" * 60_000)
    longer = struct.pack("<HH2sHI", 0x10, 0x21B0, b"UT", 0, 70_000) + b"x" * 70_000
    values = read(long + longer + STUDY, tags=[0x00104000, 0x001021B0]).values
    assert {tag: len(value) for tag, value in values.items()} == {0x00104000: 60_000}


def test_text_is_decoded_by_its_character_set(read):
    """A value is text in the data set's own character set (PS3.3 section C.12.1.1.2)."""
    ds = make_instance(SpecificCharacterSet="ISO_IR 100", PatientName="Möller^Jörg")
    assert read(encode(ds), tags=[PATIENT_NAME]).values == {PATIENT_NAME: "Möller^Jörg"}


@given(st.binary(max_size=300), st.sampled_from([EVLE, IVLE, DEFLATED]))
def test_garbage_never_does_anything_else(tmp_path_factory, data, syntax):
    """Any bytes give a header or `UnreadableInstance`, and no other error."""
    path = tmp_path_factory.getbasetemp() / "garbage.dcm"
    meta = part10_header(
        sop_class_uid="1.2.3",
        sop_instance_uid="1.2.3.4",
        transfer_syntax_uid=syntax,
        calling_ae_title="MODALITY",
        called_ae_title="BRAIN",
    )
    path.write_bytes(meta + EMPTY + data)
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(UnreadableInstance):
        read_header(path, [PATIENT_ID, INSTANCE_NUMBER], LIMITS)
