# SPDX-License-Identifier: Apache-2.0
"""The UIDs at the start of a data set, and starts that are no data set's."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from pathlib import Path

import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from adapter.dicom.instance import PartialHeader
from adapter.dicom.leading_uids import LOOK_AHEAD_BYTES, UnreadableStart, leading_uids
from adapter.dicom.part10 import part10_header, read_file_meta
from adapter.dicom.partial_header import partial_header
from adapter.dicom.tags import SOP_CLASS_UID, SOP_INSTANCE_UID
from adapter.errors import UnreadableInstance

IVLE, EVLE, EVBE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, PAPYRUS = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.20"
SYNTAXES = (IVLE, EVLE, EVBE, DEFLATED, PAPYRUS, "1.2.840.10008.1.2.4.50", "1.2.3.4")


def implicit(group, number, value, length=None):
    return struct.pack("<HHI", group, number, len(value) if length is None else length) + value


def explicit(group, number, vr, value, length=None):
    length = len(value) if length is None else length
    if vr in {b"SQ", b"UN", b"OB"}:
        return struct.pack("<HH2sHI", group, number, vr, 0, length) + value
    return struct.pack("<HH2sH", group, number, vr, length) + value


CLASS = explicit(8, 0x16, b"UI", b"1.2.3\0")
INSTANCE = explicit(8, 0x18, b"UI", b"1.2.3.44")
NEXT = explicit(8, 0x20, b"DA", b"20260101")
BOTH = {SOP_CLASS_UID: "1.2.3", SOP_INSTANCE_UID: "1.2.3.44"}
UNDEFINED = 0xFFFFFFFF
ITEM_END, SEQUENCE_END = implicit(0xFFFE, 0xE00D, b""), implicit(0xFFFE, 0xE0DD, b"")


def test_real_files_agree_with_pydicom():
    """In every data set of pydicom's wheel the UIDs found are the ones that pydicom reads."""
    compared, unreadable = 0, set()
    for path in sorted(Path(pydicom.data.__file__).parent.rglob("*.dcm")):
        with path.open("rb") as file:
            try:
                syntax = read_file_meta(file).get(0x0010, "")
            except UnreadableInstance:
                continue
            data = file.read()
        if not syntax or syntax == DEFLATED:
            continue
        with warnings.catch_warnings(action="ignore"):  # some files are broken on purpose
            expected = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], force=True)
        try:
            found = leading_uids(
                data[:LOOK_AHEAD_BYTES], syntax, complete=len(data) <= LOOK_AHEAD_BYTES
            )
        except UnreadableStart:
            unreadable.add(path.name)
            continue
        assert found.get(SOP_CLASS_UID) == expected.get("SOPClassUID"), path
        assert found.get(SOP_INSTANCE_UID) == expected.get("SOPInstanceUID"), path
        compared += 1
    assert compared > 50
    # Two hold a single private sequence, one is implicit VR in a syntax that is explicit.
    assert unreadable == {"UN_sequence.dcm", "priv_SQ.dcm", "SC_rgb_jpeg.dcm"}


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (CLASS + INSTANCE + NEXT, BOTH),
        (explicit(8, 0, b"UL", b"\x2a\0\0\0") + CLASS + INSTANCE, BOTH),
        (explicit(8, 5, b"CS", b"ISO_IR 100") + CLASS + INSTANCE + NEXT, BOTH),
        (NEXT.replace(b"\x20\0", b"\x16\0", 1), {SOP_CLASS_UID: "20260101"}),
        # a sequence before them (0008,0006), with and without lengths, nested, and empty
        (explicit(8, 6, b"SQ", implicit(0xFFFE, 0xE000, CLASS)) + CLASS + INSTANCE, BOTH),
        (explicit(8, 6, b"SQ", b"") + CLASS + INSTANCE, BOTH),
        (
            explicit(8, 6, b"SQ", b"", UNDEFINED)
            + implicit(0xFFFE, 0xE000, explicit(8, 0x16, b"UI", b"9.9.9\0"), UNDEFINED)
            + explicit(8, 6, b"SQ", b"", UNDEFINED)
            + implicit(0xFFFE, 0xE000, explicit(8, 0x18, b"UI", b"9.9\0"))
            + SEQUENCE_END
            + ITEM_END
            + SEQUENCE_END
            + CLASS
            + INSTANCE,
            BOTH,
        ),
        # nothing can be said: left to notification
        (explicit(8, 6, b"UN", b"", UNDEFINED) + b"\xff" * 40, {}),
        (explicit(8, 1, b"UL", b"\0\0\0\0"), {}),
    ],
)
def test_explicit_forms(head, found):
    """The outermost UIDs are found behind everything that may precede them."""
    assert leading_uids(head, EVLE, complete=True) == found


def test_nothing_is_said_about_what_the_peek_cuts_off():
    """A data set that is longer than the part looked at is not unreadable for that."""
    head = CLASS + INSTANCE
    for end in range(1, len(head)):
        assert leading_uids(head[:end], EVLE, complete=False).items() <= BOTH.items()


@pytest.mark.parametrize(
    ("head", "syntax"),
    [
        (b"", EVLE),
        (b"", DEFLATED),
        (b"", "1.2.3.4"),
        (b"\xff" * 100, IVLE),
        (b"\xff" * 100, EVLE),
        (b"\0" * 100, IVLE),
        (b"\0" * 100, EVLE),
        (b"GET / HTTP/1.1\r\n\r\n", IVLE),
        (b"GET / HTTP/1.1\r\n\r\n", EVLE),
        (b"\x08\0", IVLE),
        (CLASS + INSTANCE[:-1], EVLE),
        (CLASS[:11], EVLE),
        (explicit(8, 6, b"SQ", b"", UNDEFINED), EVLE),
        (implicit(8, 0x16, b"1.2.3\0"), EVLE),
        (explicit(0x10, 0x10, b"PN", b"A^B "), EVLE),
        (CLASS, EVBE),
        (SEQUENCE_END, EVLE),
    ],
)
def test_unreadable_starts(head, syntax):
    """No bytes, garbage, the wrong encoding and a torn element are unreadable starts."""
    with pytest.raises(UnreadableStart):
        leading_uids(head, syntax, complete=True)


IMPLICIT_BOTH = implicit(8, 0x16, b"1.2.3\0") + implicit(8, 0x18, b"1.2.3.44")
PIXELS = explicit(0x7FE0, 0x10, b"OB", bytes(200_000))


@pytest.mark.parametrize(
    "tail",
    [b"", NEXT, NEXT + PIXELS[:70_000], NEXT + PIXELS],
    ids=["nothing", "one element", "70 kB", "200 kB"],
)
@pytest.mark.parametrize(
    ("start", "syntax", "readable"),
    [
        (IMPLICIT_BOTH, IVLE, True),
        (IMPLICIT_BOTH, PAPYRUS, True),
        (IMPLICIT_BOTH, EVLE, False),
        (CLASS + INSTANCE, EVLE, True),
        (CLASS + INSTANCE, IVLE, False),
        (CLASS + INSTANCE, PAPYRUS, False),
        # taken for lengths, "CS" is 21 kB and "SQ" 20 kB: both end within the look-ahead
        (explicit(8, 5, b"CS", b"") + CLASS + INSTANCE, IVLE, False),
        (explicit(8, 6, b"SQ", b"") + CLASS + INSTANCE, IVLE, False),
        (implicit(8, 6, b"", 1 << 20) + IMPLICIT_BOTH, IVLE, False),
        (bytes(100), IVLE, False),
        (b"\xff" * 100, IVLE, False),
        (CLASS + INSTANCE, "1.2.840.10008.1.2.4.50", True),
        (b"\xff" * 100, "1.2.840.10008.1.21", True),  # no syntax of the Standard: not looked at
    ],
    ids=range(13),
)
def test_the_answer_is_the_same_whatever_follows(start, syntax, readable, tail):
    """The encoding is judged alike in a short data set and in one longer than the look-ahead."""
    data = start + tail
    complete = len(data) <= LOOK_AHEAD_BYTES
    for head in {data[:LOOK_AHEAD_BYTES], data[:512]}:  # the receiver asks for both
        whole = complete and head == data
        if readable:
            leading_uids(head, syntax, complete=whole)
        else:
            with pytest.raises(UnreadableStart):
                leading_uids(head, syntax, complete=whole)


@given(st.binary(max_size=200), st.sampled_from(SYNTAXES), st.booleans())
def test_garbage_never_does_anything_else(head, syntax, complete):
    """Any bytes give UIDs or `UnreadableStart`, and no other error."""
    with contextlib.suppress(UnreadableStart):
        assert set(leading_uids(head, syntax, complete=complete)) <= set(BOTH)


STUDY = explicit(0x20, 0xD, b"UI", b"1.2.3.55")
PATIENT = explicit(0x10, 0x10, b"PN", b"CANARY^NAME ")
WHOLE = CLASS + INSTANCE + NEXT + PATIENT + STUDY
META = {
    "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
    "sop_instance_uid": "1.2.3.4",
    "calling_ae_title": "MODALITY",
    "called_ae_title": "BRAIN",
}


@pytest.mark.parametrize(
    ("body", "syntax", "known"),
    [
        (WHOLE, EVLE, {"sop_instance_uid": "1.2.3.44", "study_instance_uid": "1.2.3.55"}),
        (WHOLE + b"\xff" * 40, EVLE, {"study_instance_uid": "1.2.3.55"}),
        (zlib.compress(WHOLE, wbits=-15), DEFLATED, {"study_instance_uid": "1.2.3.55"}),
        (WHOLE[:-9], EVLE, {"sop_instance_uid": "1.2.3.44", "study_instance_uid": None}),
        (b"no data set", EVLE, {"sop_instance_uid": "1.2.3.4", "study_instance_uid": None}),
        (b"no deflated data", DEFLATED, {"sop_instance_uid": "1.2.3.4"}),
        (CLASS + explicit(0x20, 0xD, b"UI", b"Mueller^A"), EVLE, {"study_instance_uid": None}),
    ],
)
def test_what_can_be_told_of_a_broken_file(tmp_path, body, syntax, known):
    """Whatever its data set holds, the file tells its parties, and its UIDs as far as they go."""
    path = tmp_path / "broken.dcm"
    path.write_bytes(part10_header(transfer_syntax_uid=syntax, **META) + body)

    found = partial_header(path)

    assert (found.calling_ae_title, found.called_ae_title) == ("MODALITY", "BRAIN")
    assert (found.transfer_syntax_uid, found.size) == (syntax, path.stat().st_size)
    assert {name: getattr(found, name) for name in known} == known
    path.write_bytes(body)
    assert partial_header(path) == PartialHeader(size=len(body))
    path.unlink()
    assert partial_header(path) == PartialHeader()
