# SPDX-License-Identifier: Apache-2.0
"""A-ASSOCIATE-RQ and -AC, read with one decoder; U.. are rows of docs/conformance.md."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ

from adapter.dicom import pdus
from adapter.dicom.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from adapter.dicom.pdus import (
    AssociateItems,
    FixedPart,
    MalformedPDU,
    PresentationContext,
    TooManyItems,
    decode_acceptance,
    decode_fixed_part,
    decode_request,
)
from tests import support_wire as wire

CT = PresentationContext(3, wire.CT_IMAGE, (wire.EXPLICIT,))
ONE = [(3, wire.CT_IMAGE, (wire.EXPLICIT,))]
ODD = wire.item(0x99, b"whatever")
USER = wire.item(0x51, b"\0\0\x40\0")


@pytest.mark.parametrize(
    ("field", "title"),
    [
        (b"MODALITY        ", "MODALITY"),
        (b"   MODALITY     ", "MODALITY"),
        (b"MODALITY" + bytes(8), "MODALITY"),
        (b"MODALITY  " + bytes(6), "MODALITY"),
        (b"MODALITY\0\xffx\x01y\0\0 ", "MODALITY"),
        (b"\0\0MODALITY      ", "MODALITY"),
        (b"\tMODALITY\r\n     ", "MODALITY"),
        (b"MY MODALITY     ", "MY MODALITY"),
        (bytes(16), ""),
        (b" " * 16, ""),
        (b"MO\r\nforged      ", "MO\r\nforged"),
        (b"\xc4RZTE           ", "\xc4RZTE"),
    ],
)
def test_padding_of_ae_titles(field, title):
    """U16: the padding of the Standard and of the field is trimmed; what remains is judged."""
    request = wire.request(called=field, calling=b"B")
    assert decode_fixed_part(request[:74]) == FixedPart(1, title, "B")
    assert decode_fixed_part(wire.request(called=b"A", calling=field)) == FixedPart(1, "A", title)


def acceptance(contexts=b"", user=USER, more=b""):
    context = wire.item(0x21, b"\3\0\0\0" + wire.item(0x40, wire.EXPLICIT.encode()) + contexts)
    return wire.pdu(2, bytes(68) + more + context + wire.item(0x50, user))


@pytest.mark.parametrize(
    ("in_context", "in_user_information", "beside"),
    [
        (b"", b"", b""),
        (ODD, ODD, ODD),
        (b"", wire.item(0x55, b"VERSION\xff"), b""),
        (b"", wire.item(0x55, b"A VERSION NAME OF TOO MANY CHARACTERS"), b""),
        (b"", wire.item(0x55, b"VERSION" + bytes(9)), b""),
        (b"", wire.item(0x52, b"1." * 40) + wire.item(0x52, b"no uid"), b""),
        (b"", wire.item(0x58, b"\1\0\xff\xffgarbage"), b""),
        (b"", wire.item(0x54, b"\0\x05garbage") + wire.item(0x54, b"\0\0031.2\7"), b""),
        (b"", wire.item(0x56, b"\xff\xff") + wire.item(0x59, b"\0\x20"), b""),
    ],
    ids=["none", "unknown", "version-bytes", "version-length", "version-nul", "class-uid",
         "user-identity", "role", "others"],
)  # fmt: skip
def test_items_that_decide_nothing_are_not_read(in_context, in_user_information, beside):
    """Items that only inform, or are unknown, change nothing for either side (PS3.8 9.3.1)."""
    number = wire.item(0x20, b"\3\0\xff\0" + wire.item(0x30, wire.CT_IMAGE.encode())
                       + in_context + wire.item(0x40, wire.EXPLICIT.encode()))  # fmt: skip
    request = wire.request(
        contexts=(), extra_items=number + beside, extra_user_items=in_user_information
    )
    assert decode_request(request) == AssociateItems(wire.APPLICATION_CONTEXT, [CT], 16384)

    answer = acceptance(in_context, USER + in_user_information, beside)
    context = PresentationContext(3, "", (wire.EXPLICIT,))
    assert decode_acceptance(answer) == AssociateItems("", [context], 16384)


def test_what_is_missing_is_empty():
    """Without user information there is no limit and no window; without contexts there are none."""
    assert decode_request(wire.pdu(1, bytes(68))) == AssociateItems("", [])
    assert decode_acceptance(wire.pdu(2, bytes(68))) == AssociateItems("", [])


def test_uids_lose_their_padding():
    """A UID padded with a NUL or a space means the same."""
    padded = [(3, wire.CT_IMAGE + "\0", (wire.EXPLICIT + " ",))]
    request = wire.request(contexts=padded, application_context=wire.APPLICATION_CONTEXT + "\0")
    assert decode_request(request) == AssociateItems(wire.APPLICATION_CONTEXT, [CT], 16384)


@pytest.mark.parametrize(
    ("items", "cause"),
    [
        pytest.param(b"\x20\0\xff\xff", "malformed-request", id="item-cut"),
        pytest.param(b"\x20\0\0", "malformed-request", id="header-cut"),
        pytest.param(wire.item(0x20, b"\1\0"), "malformed-request", id="context-cut"),
        pytest.param(wire.item(0x21, b"\1\0"), "malformed-request", id="answer-cut"),
        pytest.param(wire.item(0x50, b"\x51\0\0\5\0"), "malformed-request", id="sub-item-cut"),
        pytest.param(wire.item(0x50, wire.item(0x51, b"\0\1")), "maximum-length", id="short"),
        pytest.param(wire.item(0x50, wire.item(0x51, b"\0\0\0\7")), "maximum-length", id="U17"),
    ],
)
def test_lengths_are_checked(items, cause):
    """Items that cannot be told apart, or leave nothing that could be sent, are malformed."""
    for decode in (decode_request, decode_acceptance):
        if (decode, items[:1]) in {(decode_request, b"\x21"), (decode_acceptance, b"\x20")}:
            continue  # of an unknown type there: not read
        with pytest.raises(MalformedPDU) as caught:
            decode(wire.pdu(1, bytes(68) + items))
        assert caught.value.cause == cause


SYNTAX = wire.item(0x40, wire.EXPLICIT.encode())
CONTEXT = wire.item(0x20, b"\1\0\0\0" + wire.item(0x30, wire.CT_IMAGE.encode()) + SYNTAX)


@pytest.mark.parametrize(
    "items",
    [
        pytest.param(CONTEXT * 129, id="contexts"),
        pytest.param(wire.item(0x20, b"\1\0\0\0" + wire.item(0x40, b"") * 16_000), id="syntaxes"),
        pytest.param(wire.item(0x99, b"") * 62_000, id="items"),
        pytest.param(wire.item(0x50, wire.item(0x99, b"") * 16_000), id="user-items"),
    ],
)
def test_no_request_takes_long(items):
    """However many items there are, decoding ends after a bounded number of them."""
    began = time.thread_time()
    with pytest.raises(TooManyItems):
        decode_request(wire.pdu(1, bytes(68) + items))
    assert time.thread_time() - began < 0.05  # on a machine under load; 3 ms else


def test_as_many_contexts_as_there_can_be():
    """U12: 128 contexts with 60 syntaxes each are read."""
    many = [(2 * n + 1, wire.CT_IMAGE, (wire.EXPLICIT,) * 60) for n in range(128)]
    items = decode_request(wire.request(contexts=many))
    assert items.contexts == [PresentationContext(*one) for one in many]


def test_the_syntax_of_a_refused_context_is_not_read():
    """It is not significant (PS3.8 section 9.3.3.2)."""
    answer = wire.pdu(2, bytes(68) + wire.item(0x21, b"\3\0\4\0\xff\xff"))
    assert decode_acceptance(answer).contexts == [PresentationContext(3, "", (), 4)]


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(min_value=0, max_value=10**6))
def test_any_bytes_are_read_or_malformed(garbage, where):
    """No bytes make a decoder raise anything else."""
    damaged = bytearray(wire.request())
    at = 74 + where % (len(damaged) - 74)
    damaged[at : at + 4] = garbage[:4]
    for pdu in (wire.pdu(1, bytes(68) + garbage), bytes(damaged)):
        for decode in (decode_request, decode_acceptance):
            with suppress(MalformedPDU):
                decode(pdu)


def test_what_we_send_is_what_pynetdicom_reads():
    """Our PDUs say the same to an independent decoder."""
    contexts = [(1, wire.VERIFICATION, wire.IMPLICIT), (3, "1.2.3", wire.EXPLICIT)]
    request = A_ASSOCIATE_RQ()
    request.decode(pdus.encode_request("CALLED", "CALLING", contexts, 12345))
    assert (request.called_ae_title, request.calling_ae_title) == ("CALLED", "CALLING")
    assert request.protocol_version == 1
    assert request.application_context_name == wire.APPLICATION_CONTEXT
    assert [
        (cx.context_id, cx.abstract_syntax, cx.transfer_syntax[0])
        for cx in request.presentation_context
    ] == contexts
    user = request.user_information
    assert user.maximum_length == 12345
    assert user.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    assert user.implementation_version_name == IMPLEMENTATION_VERSION_NAME
    assert user.async_ops_window is None

    answer = A_ASSOCIATE_AC()
    results = [(1, 0, wire.EXPLICIT), (3, 4, "")]
    asked = wire.request(called=b"CALLED", calling=b"CALLING")
    answer.decode(pdus.encode_acceptance(asked, results, 54321, window=True))
    assert (answer.reserved_aet, answer.reserved_aec) == ("CALLED", "CALLING")
    assert [(cx.context_id, cx.result) for cx in answer.presentation_context] == [(1, 0), (3, 4)]
    assert answer.presentation_context[0].transfer_syntax == wire.EXPLICIT
    assert answer.user_information.maximum_length == 54321
    window = answer.user_information.async_ops_window
    assert window.maximum_number_operations_invoked == 1

    rejected, aborted = A_ASSOCIATE_RJ(), A_ABORT_RQ()
    rejected.decode(pdus.encode_reject(2, 3, 1))
    aborted.decode(pdus.encode_abort(2, 6))
    assert (rejected.result, rejected.source, rejected.reason_diagnostic) == (2, 3, 1)
    assert (aborted.source, aborted.reason_diagnostic) == (2, 6)
