# SPDX-License-Identifier: Apache-2.0
"""The Storage SCU: contexts, bytes, the meaning of answers, and time limits."""

from __future__ import annotations

import os
import time
import warnings
from io import BytesIO
from pathlib import Path
from struct import pack

import pydicom.data
import pytest
from pydicom import dcmread
from pydicom.filereader import read_dataset
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MRImageStorage,
)
from pynetdicom import AllStoragePresentationContexts

from adapter.dicom.part10 import part10_header, read_file_meta
from adapter.errors import NotYetVisible, PermanentError
from adapter.models import Outcome
from adapter.scu.association import AssociationBroken, AssociationRejected, Unreachable
from adapter.scu.files import Outgoing, examine
from adapter.scu.store import judge, plan, store
from adapter.settings import Scu
from tests.support_peers import RawPeer, ScriptedPacs, StoreScp, destination
from tests.support_stack import free_port
from tests.support_stages import encode, make_instance
from tests.support_wire import abort, data, item, pdu, pdv, reject
from workers.clients.store_scu import store as store_for_export

TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"
#: Eight transfer syntaxes, as in the original's own test (T9).
EIGHT = {
    "CT_small.dcm": "Explicit VR Little Endian",
    "MR_small_bigendian.dcm": "Explicit VR Big Endian",
    "rtplan.dcm": "Implicit VR Little Endian",
    "MR_small_jp2klossless.dcm": "JPEG 2000 Image Compression (Lossless Only)",
    "JPEG2000.dcm": "JPEG 2000 Image Compression",
    "MR_small_RLE.dcm": "RLE Lossless",
    "SC_rgb_jpeg_dcmtk.dcm": "JPEG Baseline (Process 1)",
    "JPEG-lossy.dcm": "JPEG Extended (Process 2 and 4)",
}
QUICK = Scu(ae_title="SCU", connect_seconds=1, association_seconds=1, response_seconds=1)
#: Deadlines that no peer of these tests waits for.
PATIENT = Scu(ae_title="SCU", connect_seconds=20, association_seconds=20, response_seconds=20)
#: Seconds beyond a deadline that this machine may take.
SLACK = 1.0


def body(path):
    """Return a DICOM file's data set, undecoded."""
    with Path(path).open("rb") as file:
        read_file_meta(file)
        return file.read()


def outgoing(path, number=1, **changes):
    found = examine(path.parent, path.name, number)
    return Outgoing(**{name: getattr(found, name) for name in found.__slots__} | changes)


def imaginary(number, sop_class, syntax):
    return Outgoing(number, Path("/"), "x", sop_class, f"1.2.{number}", syntax, 0)


def write_instance(path, *, payload=None, syntax=ExplicitVRLittleEndian, sop_class=CTImageStorage):
    ds = make_instance()
    if payload is None:
        ds.SOPClassUID = sop_class
    head = part10_header(
        sop_class_uid=sop_class,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=syntax,
        calling_ae_title="T",
        called_ae_title="T",
    )
    path.write_bytes(head + (encode(ds) if payload is None else payload))
    return path


def send(files, port, scu=QUICK):
    """Send files and return the results by number."""
    return {result.file.number: result for result in store(files, destination(port), scu)}


# -- what an answer means ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, Outcome.STORED),
        (0x0001, Outcome.STORED),
        (0x0107, Outcome.STORED),
        (0x0116, Outcome.STORED),
        (0xB000, Outcome.STORED),
        (0xB006, Outcome.STORED),
        (0xB007, Outcome.STORED),
        (0xBFFF, Outcome.STORED),
        (0x0111, Outcome.RETRY),
        (0xA700, Outcome.RETRY),
        (0xA7FF, Outcome.RETRY),
        (0x0110, Outcome.RETRY),
        (0x0117, Outcome.RETRY),
        (0x0213, Outcome.RETRY),
        (0xFE00, Outcome.RETRY),
        (0xA800, Outcome.RETRY),
        (0x0122, Outcome.REFUSED),
        (0x0124, Outcome.REFUSED),
        (0xA900, Outcome.RETRY),
        (0xA9FF, Outcome.RETRY),
        (0xC000, Outcome.RETRY),
        (0xCFFF, Outcome.RETRY),
    ],
)
def test_status_classes(status, outcome):
    """Every class of status means stored, may pass, or will not (PS3.4 Table B.2-1)."""
    assert judge(status, repeat=False) is outcome


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0xC000, Outcome.REFUSED),
        (0xCFFF, Outcome.REFUSED),
        (0xA900, Outcome.REFUSED),
        (0xA9FF, Outcome.RETRY),
        (0xB000, Outcome.STORED),
        (0x0122, Outcome.REFUSED),
    ],
)
def test_statuses_may_be_named_as_permanent(status, outcome):
    """A setting names what is not worth another try, one by one or by its first digits."""
    assert judge(status, repeat=False, permanent=["Cxxx", "a900", "Bxxx"]) is outcome


def test_duplicate_of_ours_is_stored():
    """A duplicate is stored when the file was sent there before, and only then."""
    assert judge(0x0111, repeat=True) is Outcome.STORED
    assert judge(0xA700, repeat=True) is Outcome.RETRY


# -- contexts ------------------------------------------------------------------------------------


def test_contexts_are_one_for_each_class_and_syntax():
    """Each class and syntax has a context of its own, each class one in Implicit VR beside it."""
    files = [
        imaginary(1, CTImageStorage, ExplicitVRLittleEndian),
        imaginary(2, CTImageStorage, JPEG2000),
        imaginary(3, CTImageStorage, JPEG2000),
        imaginary(4, MRImageStorage, ImplicitVRLittleEndian),
    ]

    [(contexts, sent)] = plan(files)

    assert sorted(contexts) == sorted(
        [
            (CTImageStorage, ExplicitVRLittleEndian),
            (CTImageStorage, JPEG2000),
            (CTImageStorage, ImplicitVRLittleEndian),
            (MRImageStorage, ImplicitVRLittleEndian),
        ]
    )
    assert sent == files


def test_lossy_only_needs_no_implicit():
    """A class of which all is lossy is not proposed in Implicit VR (PS3.5 section 10.1)."""
    [(contexts, _)] = plan(
        [
            imaginary(1, CTImageStorage, JPEGBaseline8Bit),
            imaginary(2, MRImageStorage, JPEGBaseline8Bit),
            imaginary(3, MRImageStorage, ExplicitVRLittleEndian),
        ]
    )

    assert (CTImageStorage, ImplicitVRLittleEndian) not in contexts
    assert (MRImageStorage, ImplicitVRLittleEndian) in contexts


def test_more_contexts_than_an_association_has():
    """More than 128 contexts are spread over associations, no file left out or sent twice."""
    files = [imaginary(n, f"1.2.3.{n // 2}", f"1.2.840.10008.1.2.{n % 2}") for n in range(300)]

    planned = plan(files)

    assert len(planned) == 4
    assert all(len(contexts) == len(set(contexts)) <= 128 for contexts, _ in planned)
    assert sorted(file.number for _, sent in planned for file in sent) == list(range(300))
    for contexts, sent in planned:
        assert all(file.context in contexts for file in sent)
        assert all((file.sop_class_uid, ImplicitVRLittleEndian) in contexts for file in sent)


def test_second_association_for_the_rest(tmp_path):
    """Files of 130 SOP classes arrive over two associations or more."""
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts[:130]]
    files = [
        outgoing(write_instance(tmp_path / f"{number}.dcm", sop_class=sop_class), number)
        for number, sop_class in enumerate(classes)
    ]

    with ScriptedPacs(classes=classes, syntaxes=[ExplicitVRLittleEndian]) as pacs:
        results = send(files, pacs.port)

    assert {result.outcome for result in results.values()} == {Outcome.STORED}
    assert set(pacs.sent.values()) == {1}
    assert len(pacs.sent) == 130
    assert pacs.associations == 3  # two contexts for each class, 128 for each association


# -- bytes ---------------------------------------------------------------------------------------


@pytest.mark.needs("dcmtk")
def test_eight_transfer_syntaxes_arrive_as_they_are(tmp_path):
    """T9, S18: files in eight transfer syntaxes arrive bit by bit, in the syntax they have."""
    files = [outgoing(TEST_FILES / name, number) for number, name in enumerate(EIGHT)]

    with StoreScp(tmp_path / "pacs", "+xa") as pacs:
        results = send(files, pacs.port)

    assert {result.status for result in results.values()} == {0}
    assert pacs.said("Received Store Request") == 8
    arrived = {body(path): pydicom.dcmread(path).file_meta for path in pacs.files()}
    assert set(arrived) == {body(TEST_FILES / name) for name in EIGHT}
    for name, syntax in EIGHT.items():
        assert arrived[body(TEST_FILES / name)].TransferSyntaxUID.name == syntax


def test_large_data_set_is_bit_identical(tmp_path):
    """A data set of many portions, and of an uneven size, arrives unchanged."""
    payload = encode(make_instance()) + pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 5_000_002)
    payload += os.urandom(5_000_002)
    file = outgoing(write_instance(tmp_path / "large.dcm", payload=payload))

    with ScriptedPacs(pdu_size=4096) as pacs:
        assert send([file], pacs.port)[1].outcome is Outcome.STORED

    assert pacs.data[file.sop_instance_uid] == payload
    assert max(pacs.pdu_lengths) == 4096


@pytest.mark.parametrize("size", [0, 131072])
def test_large_pdus_where_the_peer_allows(tmp_path, size):
    """PDUs are as long as the peer's maximum length allows, and 128 KiB without a limit."""
    payload = encode(make_instance()) + bytes(400_000)
    file = outgoing(write_instance(tmp_path / "large.dcm", payload=payload))

    with ScriptedPacs(pdu_size=size) as pacs:
        assert send([file], pacs.port)[1].outcome is Outcome.STORED

    assert max(pacs.pdu_lengths) == 131072


@pytest.mark.needs("dcmtk")
def test_deflated_data_set_of_odd_length(tmp_path):
    """A deflated data set of odd length gets the zero byte that the Standard asks for."""
    file = outgoing(TEST_FILES / "image_dfl.dcm")
    assert len(body(TEST_FILES / "image_dfl.dcm")) % 2

    with StoreScp(tmp_path / "pacs", "+xa") as pacs:
        assert send([file], pacs.port)[1].outcome is Outcome.STORED

    [arrived] = pacs.files()
    assert body(arrived) == body(TEST_FILES / "image_dfl.dcm") + b"\0"


def test_refused_context_fails_by_name(tmp_path):
    """A file whose context is refused fails for good, by class and syntax; the others are sent."""
    accepted = write_instance(tmp_path / "a.dcm", syntax=ExplicitVRLittleEndian)
    refused = write_instance(tmp_path / "b.dcm", syntax=JPEG2000)

    with ScriptedPacs(syntaxes=[ExplicitVRLittleEndian, ImplicitVRLittleEndian]) as pacs:
        results = send([outgoing(refused, 1), outgoing(accepted, 2)], pacs.port)

    assert results[2].outcome is Outcome.STORED
    assert results[1].outcome is Outcome.REFUSED
    assert "CT Image Storage" in results[1].reason
    assert "JPEG 2000 Image Compression" in results[1].reason
    assert len(pacs.sent) == 1


def test_nothing_is_converted(tmp_path):
    """W9: a peer that only takes Implicit VR is sent no file that is in another syntax."""
    explicit = outgoing(write_instance(tmp_path / "a.dcm"), 1)
    implicit = outgoing(TEST_FILES / "rtplan.dcm", 2)

    with ScriptedPacs(
        classes=[CTImageStorage, implicit.sop_class_uid], syntaxes=[ImplicitVRLittleEndian]
    ) as pacs:
        results = send([explicit, implicit], pacs.port)

    assert results[1].outcome is Outcome.REFUSED
    assert "but in Implicit VR Little Endian: reencodeUncompressed would" in results[1].reason
    assert results[2].outcome is Outcome.STORED
    assert pacs.data == {implicit.sop_instance_uid: body(TEST_FILES / "rtplan.dcm")}


@pytest.mark.parametrize(
    ("name", "taken"),
    [("CT_small.dcm", ImplicitVRLittleEndian), ("rtplan.dcm", ExplicitVRLittleEndian)],
)
def test_a_destination_may_ask_for_the_other_uncompressed_syntax(tmp_path, name, taken):
    """Re-encoded, every value and every pixel is the same; what is compressed still fails."""
    file = outgoing(TEST_FILES / name)
    odd = encode(make_instance()) + b"\x28\0\x30\0FL\x06\0abcdef"  # no multiple of four bytes
    torn = outgoing(write_instance(tmp_path / "torn", payload=odd), 2)
    compressed = outgoing(write_instance(tmp_path / "j2k", syntax=JPEG2000), 3)
    classes = {file.sop_class_uid, CTImageStorage}
    files = [file, compressed] if taken == ExplicitVRLittleEndian else [file, torn, compressed]

    with ScriptedPacs(classes=list(classes), syntaxes=[taken]) as pacs:
        peer = destination(pacs.port).model_copy(update={"reencode_uncompressed": True})
        sent = list(store_for_export(files, peer, PATIENT, answered=lambda: None))

    receipts = {receipt.number: (receipt.outcome, receipt.reason) for receipt in sent}
    assert receipts.pop(1) == (Outcome.STORED, None)
    assert receipts.pop(3)[0] is Outcome.REFUSED
    assert set(receipts.values()) <= {(Outcome.REFUSED, "the file cannot be re-encoded")}
    implicit = taken == ImplicitVRLittleEndian
    with warnings.catch_warnings(action="ignore"):
        arrived = read_dataset(BytesIO(pacs.data[file.sop_instance_uid]), implicit, True)
        original = dcmread(TEST_FILES / name)
        assert arrived.to_json_dict() == original.to_json_dict()


def test_what_the_destination_takes_goes_out_as_it_is(tmp_path):
    """Nothing is re-encoded for a destination that takes it as it is."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))

    def never(*_):
        raise AssertionError

    with ScriptedPacs() as pacs:
        [result] = store([file], destination(pacs.port), QUICK, reencode=never)
    assert result.outcome is Outcome.STORED
    assert pacs.data == {file.sop_instance_uid: body(tmp_path / "a.dcm")}


# -- files ---------------------------------------------------------------------------------------


def test_only_plain_files_are_opened(tmp_path):
    """No link, path out of the root, FIFO or folder is opened; a missing file may come."""
    (tmp_path / "outside").mkdir()
    write_instance(tmp_path / "outside" / "secret.dcm")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    write_instance(root / "sub" / "good.dcm")
    (root / "link.dcm").symlink_to(root / "sub" / "good.dcm")
    (root / "way").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "pipe.dcm")

    assert examine(root, "sub/good.dcm", 1).number == 1
    for path in ("link.dcm", "way/secret.dcm", "../outside/secret.dcm", "pipe.dcm", "sub", "",
                 str(root / "sub" / "good.dcm"), "sub/good.dcm/x", "a\0b"):  # fmt: skip
        with pytest.raises(PermanentError):
            examine(root, path, 1)
    with pytest.raises(NotYetVisible):
        examine(root, "sub/missing.dcm", 1)


def test_files_that_cannot_be_sent(tmp_path):
    """A file that is not DICOM, not whole or without valid UIDs is refused before it is sent."""
    (tmp_path / "text").write_text("no DICOM at all " * 20)
    write_instance(tmp_path / "empty.dcm", payload=b"")
    write_instance(tmp_path / "odd.dcm", payload=b"123")
    write_instance(tmp_path / "uid.dcm", payload=b"1234", sop_class="1.a2")
    for name in ("text", "empty.dcm", "odd.dcm", "uid.dcm"):
        with pytest.raises(PermanentError):
            examine(tmp_path, name, 1)


def test_file_that_shrinks_costs_only_itself(tmp_path):
    """A file that ends too early fails; the others are sent over another association."""
    files = [outgoing(write_instance(tmp_path / f"{n}.dcm"), n) for n in range(3)]
    files[1] = outgoing(tmp_path / "1.dcm", 1)
    real = os.readv

    def short(descriptor, buffers):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "1.dcm":
            return 0
        return real(descriptor, buffers)

    with pytest.MonkeyPatch.context() as patch, ScriptedPacs() as pacs:
        patch.setattr(os, "readv", short)
        results = send(files, pacs.port)

    assert [results[n].outcome for n in range(3)] == [
        Outcome.STORED,
        Outcome.REFUSED,
        Outcome.STORED,
    ]
    assert pacs.associations == 2


# -- time ----------------------------------------------------------------------------------------


def took(seconds):
    """Return a check that a block ends no later than a deadline and some slack."""
    start = time.monotonic()
    return lambda: time.monotonic() - start < seconds + SLACK


def test_nobody_listens(tmp_path):
    """A port without a listener is unreachable, and says so."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    with pytest.raises(Unreachable, match="nobody listens"):
        send([file], free_port())


def test_name_that_nobody_knows(tmp_path):
    """A name that cannot be resolved is unreachable, and says so."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    nowhere = destination(104).model_copy(update={"host_ip": "no-such-host.invalid"})
    with pytest.raises(Unreachable, match="name"):
        list(store([file], nowhere, QUICK))


@pytest.mark.parametrize(
    "behave",
    [
        lambda peer: peer.hold(),
        lambda peer: peer.stop_reading(),
        lambda peer: peer.trickle(peer.acceptance()),
        lambda peer: (peer.pdu(), peer.socket.sendall(b"\2\0\0\0"), peer.hold()),
        lambda peer: peer.pdu(),
    ],
    ids=["silent", "deaf", "trickles", "half-a-header", "closes"],
)
def test_no_answer_to_the_request(tmp_path, behave):
    """A peer without a whole answer to the request is unreachable, after its deadline."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    in_time = took(1)
    with RawPeer(behave) as peer, pytest.raises(Unreachable):
        send([file], peer.port)
    assert in_time()


def after_acceptance(act):
    def behave(peer):
        peer.accept()
        act(peer)

    return behave


def trickled_response(peer):
    context, request, _ = peer.message()
    peer.trickle(peer.response(context, request))


@pytest.mark.parametrize(
    "act",
    [
        lambda peer: (peer.message(), peer.hold()),
        lambda peer: peer.stop_reading(),
        trickled_response,
    ],
    ids=["silent", "deaf", "trickles"],
)
def test_peer_that_stalls(tmp_path, act):
    """A peer that stops reading, or gives no whole answer to a C-STORE, costs its deadline."""
    payload = encode(make_instance()) + bytes(8_000_000)
    file = outgoing(write_instance(tmp_path / "a.dcm", payload=payload))
    results = []
    in_time = took(1.5)
    with RawPeer(after_acceptance(act)) as peer, pytest.raises(AssociationBroken, match="in 1 s"):
        results.extend(store([file], destination(peer.port), QUICK))
    assert in_time()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reject(1, 1, 3), (1, 1, 3)),
        (reject(1, 1, 7), (1, 1, 7)),
        (reject(2, 1, 1), (2, 1, 1)),
        (reject(1, 2, 1), (1, 2, 1)),
        (reject(9, 9, 9), (9, 9, 9)),
    ],
)
def test_rejections(tmp_path, answer, code):
    """A rejection carries its three numbers."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    with (
        RawPeer(lambda peer: (peer.pdu(), peer.socket.sendall(answer), peer.hold())) as peer,
        pytest.raises(AssociationRejected) as caught,
    ):
        send([file], peer.port)
    assert caught.value.code == code


@pytest.mark.parametrize("reason", [1, 2])
def test_congestion_is_being_unreachable(tmp_path, reason):
    """A peer that says "not now" is unreachable: nothing was tried."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    answer = reject(2, 3, reason)
    with (
        RawPeer(lambda peer: (peer.pdu(), peer.socket.sendall(answer), peer.hold())) as peer,
        pytest.raises(Unreachable),
    ):
        send([file], peer.port)


def abort_in_mid_data(peer):
    peer.pdu()
    peer.socket.sendall(abort(2, 0))
    peer.stop_reading()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda peer: (peer.message(), peer.socket.sendall(abort(0, 0))), "aborted"),
        (abort_in_mid_data, "aborted"),
        (lambda peer: peer.message(), "closed"),
        (lambda peer: (peer.message(), peer.socket.sendall(pdu(5, bytes(4)))), "released"),
        (lambda peer: (peer.message(), peer.socket.sendall(pdu(9, bytes(4)))), "no place"),
        (lambda peer: (peer.message(), peer.socket.sendall(pdu(4, b"", 1 << 31))), "too long"),
        (lambda peer: (peer.message(), peer.socket.sendall(data(pdv(1, 3, b"x")))), "be read"),
        (lambda peer: (peer.message(), peer.socket.sendall(data(pdv(99, 3, b"")))), "no place"),
        (lambda peer: (peer.message(), peer.socket.sendall(data(b"\0\0\0\1\1"))), "be read"),
        (
            lambda peer: peer.socket.sendall(peer.response(*peer.message()[:2], answered=77)),
            "something else",
        ),
    ],
    ids=["abort", "abort-in-data", "close", "release", "unknown-pdu", "huge-pdu", "garbage",
         "other-context", "short-pdv", "other-message"],
)  # fmt: skip
def test_associations_that_break(tmp_path, act, words):
    """If the association breaks, the file on its way is to be tried again, with the cause."""
    payload = encode(make_instance()) + bytes(8_000_000)
    file = outgoing(write_instance(tmp_path / "a.dcm", payload=payload))
    results = []

    with RawPeer(after_acceptance(act)) as peer:
        sending = store([file], destination(peer.port), PATIENT)
        results.append(next(sending))
        with pytest.raises(AssociationBroken, match=words):
            next(sending)

    [result] = results
    assert result.outcome is Outcome.RETRY
    assert result.unanswered
    assert words in result.reason


def test_broken_acceptance(tmp_path):
    """An acceptance that cannot be read or used is a broken association."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    for answer in (
        pdu(2, bytes(80)),  # no context is answered
        pdu(2, bytes(68) + item(0x50, item(0x51, b"\0\0\x40\0"))),  # the same
        pdu(2, bytes(68) + item(0x21, b"")[:-1]),
        pdu(2, bytes(68) + item(0x50, b"\x51\0\0\5\0")),
        pdu(2, bytes(68) + item(0x50, item(0x51, b""))),
        pdu(2, b""),
        pdu(9, bytes(4)),
        abort(0, 0),
    ):
        with (
            RawPeer(lambda peer, answer=answer: (peer.pdu(), peer.socket.sendall(answer))) as peer,
            pytest.raises(AssociationBroken),
        ):
            send([file], peer.port)
    with RawPeer(lambda peer: peer.accept(maximum=7)) as peer, pytest.raises(AssociationBroken):
        send([file], peer.port)


ODD = item(0x99, b"whatever")


@pytest.mark.parametrize(
    "odd",
    [
        {"extra": ODD},
        {"in_contexts": ODD},
        {"in_user_information": ODD},
        {"in_user_information": item(0x55, b"VERSION\xff")},
        {"in_user_information": item(0x55, b"A VERSION NAME OF TOO MANY CHARACTERS")},
        {"in_user_information": item(0x59, b"\0\x20")},
        {"implementation": b"1.02.not-a-uid"},
        {"implementation": b"1." * 40},
        {"application_context": b"\xff" * 70},
        {"user_information": False},
    ],
    ids=["item", "in-context", "in-user-information", "version-bytes", "version-length",
         "user-identity", "class-uid-grammar", "class-uid-length", "application-context",
         "no-user-information"],
)  # fmt: skip
def test_items_that_decide_nothing_are_not_read(tmp_path, odd):
    """Unknown and merely informative items break no association (PS3.8 section 9.3.1)."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))

    def behave(peer):
        peer.accept(**odd)
        context, request, _ = peer.message()
        peer.socket.sendall(peer.response(context, request))
        peer.hold()

    with RawPeer(behave) as peer:
        assert send([file], peer.port)[1].outcome is Outcome.STORED


@pytest.mark.parametrize(
    "transfer",
    [b"", item(0x40, b""), item(0x40, b"\xff" * 80)],
    ids=["none", "empty", "garbage"],
)
def test_transfer_syntax_of_a_refused_context_is_not_read(tmp_path, transfer):
    """It is not significant (PS3.8 section 9.3.3.2): the file is refused by name as any other."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))

    def behave(peer):
        peer.accept(result=4, transfer=transfer)
        peer.hold()

    with RawPeer(behave) as peer:
        result = send([file], peer.port)[1]
    assert result.outcome is Outcome.REFUSED
    assert "CT Image Storage" in result.reason


def test_answers_about_contexts_that_were_not_proposed_count_for_nothing(tmp_path):
    """An id that was never proposed, or is even, accepts no context; the others are used."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    strange = b"".join(
        item(0x21, bytes((number, 0, 0, 0)) + item(0x40, ImplicitVRLittleEndian.encode()))
        for number in (2, 251)
    )

    def behave(peer):
        peer.accept(extra=strange)
        context, request, _ = peer.message()
        peer.socket.sendall(peer.response(context, request))
        peer.hold()

    with RawPeer(behave) as peer:
        assert send([file], peer.port)[1].outcome is Outcome.STORED


def test_small_maximum_length(tmp_path):
    """A peer with the least possible maximum length is sent fragments of two bytes."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    got = []

    def behave(peer):
        peer.accept(maximum=8)
        context, request, sent = peer.message()
        got.append(sent)
        peer.socket.sendall(peer.response(context, request))
        peer.hold()

    with RawPeer(behave) as peer:
        assert send([file], peer.port)[1].outcome is Outcome.STORED
    assert got == [body(tmp_path / "a.dcm")]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(tmp_path):
    """No file or socket stays open, whatever the peer does."""
    file = outgoing(write_instance(tmp_path / "a.dcm"))
    before = descriptors()
    for act in (abort_in_mid_data, lambda peer: peer.message()):
        with RawPeer(after_acceptance(act)) as peer, pytest.raises(AssociationBroken):
            send([file], peer.port)
    with pytest.raises(Unreachable):
        send([file], free_port())
    assert descriptors() <= before


def test_stopped_between_two_files(tmp_path):
    """A sender that is closed between two files releases the association."""
    files = [outgoing(write_instance(tmp_path / f"{n}.dcm"), n) for n in range(3)]
    released = []

    def behave(peer):
        peer.accept()
        context, request, _ = peer.message()
        peer.socket.sendall(peer.response(context, request))
        released.append(peer.pdu()[0])
        peer.socket.sendall(pdu(6, bytes(4)))

    with RawPeer(behave) as peer:
        sending = store(files, destination(peer.port), QUICK)
        assert next(sending).outcome is Outcome.STORED
        sending.close()
    assert released == [5]
