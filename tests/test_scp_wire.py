# SPDX-License-Identifier: Apache-2.0
"""The SCP as DCMTK and pynetdicom see it, and what is in the spool afterwards.

T1 to T6 are the original's integration tests (its fixture is `add_fixture`).
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import struct

import pytest
from pynetdicom.sop_class import Verification

from adapter.core import Adapter
from adapter.dicom.implementation import IMPLEMENTATION_CLASS_UID
from adapter.models import EntityKind
from adapter.spool import DiskSpace, Spool
from tests import peers
from tests.support_scp import (
    Peer,
    RealFile,
    add_ae_title,
    add_fixture,
    add_source,
    call,
    connect,
    incoming,
    leftovers,
    put,
    recorded,
    running,
    wheel_file,
    with_scp,
)
from tests.support_waiting import eventually

CT = RealFile.read(wheel_file("CT_small.dcm"))
EVLE, IVLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


@pytest.fixture
def scp(adapter: Adapter, settings):
    add_fixture(adapter)
    with running(with_scp(settings)) as running_scp:
        yield running_scp


def lines_of(lines, start):
    return [line for line in lines if line.startswith(start)]


@pytest.mark.needs("dcmtk")
def test_t1_echo_from_unknown_source(scp):
    """T1: a C-ECHO of an unknown source is rejected, with the reason."""
    code, lines = call("echoscu", scp, "-aet", "UNKNOWNSCU", "-aec", "CECHOTEST")
    assert code == 1
    assert lines.count("F: Reason: Calling AE Title Not Recognized") == 1
    assert lines.count("F: Result: Rejected Permanent, Source: Service User") == 1


@pytest.mark.needs("dcmtk")
@pytest.mark.parametrize("source", ["PACS1", "PACS2"])
def test_t2_echo_from_known_source(scp, source):
    """T2: a C-ECHO of a known source succeeds."""
    code, lines = call("echoscu", scp, "-aet", source, "-aec", "CECHOTEST")
    assert code == 0
    assert len(lines_of(lines, "I: Association Accepted")) == 1
    assert lines.count("I: Received Echo Response (Success)") == 1


@pytest.mark.needs("dcmtk")
def test_t3_echo_to_unknown_ae_title(scp, adapter: Adapter):
    """T3: a C-ECHO to an unknown AE title is rejected; the event names the one that was meant."""
    code, lines = call("echoscu", scp, "-aet", "PACS1", "-aec", "blabla")
    assert code == 1
    assert lines.count("F: Reason: Called AE Title Not Recognized") == 1
    call("echoscu", scp, "-aet", "PACS1", "-aec", "CLARA1")
    first, second = eventually(
        lambda: len(found := recorded(adapter, "association-rejected")) == 2 and found
    )
    assert first.detail == {
        "calling": "PACS1",
        "called": "blabla",
        "peer": "127.0.0.1",
        "result": 1,
        "source": 1,
        "reason": 7,
        "cause": "unknown-called-ae",
        "message": "the called AE title does not exist here",
    }
    assert second.detail["nearest"] == "Clara1"


@pytest.mark.needs("dcmtk")
def test_t4_echo_with_abort(scp, adapter: Adapter):
    """T4: a peer that aborts does no harm: the server keeps serving."""
    code, lines = call("echoscu", scp, "-aet", "PACS1", "-aec", "CECHOTEST", "--abort")
    assert code == 0
    assert lines.count("I: Aborting Association") == 1
    assert call("echoscu", scp, "-aet", "PACS1", "-aec", "CECHOTEST")[0] == 0
    eventually(lambda: recorded(adapter, "association"))
    # The echo that was released is no event: monitors ask for one every few seconds, for years.
    endings = [event.detail["ended"] for event in recorded(adapter, "association")]
    assert endings == ["aborted"]


@pytest.fixture
def three_files(tmp_path):
    folder = tmp_path / "send"
    folder.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "rtdose.dcm"):
        shutil.copy(wheel_file(name), folder)
    return folder


@pytest.mark.needs("dcmtk")
@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("UNKNOWN", "Clara1", "F: Reason: Calling AE Title Not Recognized"),
        ("PACS1", "UNKNOWN", "F: Reason: Called AE Title Not Recognized"),
    ],
)
def test_t5_t6_store_by_strangers(scp, adapter: Adapter, three_files, *, calling, called, reason):
    """T5, T6: a C-STORE of an unknown source, or to an unknown AE title, is rejected."""
    code, lines = call(
        "storescu",
        scp,
        "+sd",
        "+r",
        "-R",
        "-xb",
        "-aet",
        calling,
        "-aec",
        called,
        "--",
        three_files,
    )
    assert code == 1
    assert lines.count(reason) == 1
    assert incoming(adapter) == []


@pytest.mark.needs("dcmtk")
def test_store_by_storescu(scp, adapter: Adapter, three_files):
    """DCMTK's storescu gets a Success for each file, and the association is summed up."""
    code, lines = call(
        "storescu", scp, "+sd", "+r", "-R", "-aet", "PACS1", "-aec", "Clara1", "--", three_files
    )
    assert code == 0
    assert lines.count("I: Received Store Response (Success)") == 3
    files = incoming(adapter)
    assert len(files) == 3
    sent = {RealFile.read(path).sop_instance for path in three_files.iterdir()}
    assert {RealFile.read(path).sop_instance for path in files} == sent
    [event] = eventually(lambda: recorded(adapter, "association"))
    assert event.association == files[0].stem.split("-")[1]
    assert event.detail["ended"] == "released"
    assert (event.detail["stored"], event.detail["calling"]) == (3, "PACS1")
    assert event.detail["bytes"] == sum(len(RealFile.read(path).data) for path in files)


@pytest.mark.needs("dcmtk")
def test_verification_off(adapter: Adapter, settings):
    """Without Verification its context is refused, and Storage beside it is served."""
    add_fixture(adapter)
    verification = settings.dicom.scp.verification.model_copy(update={"enabled": False})
    with running(with_scp(settings, verification=verification)) as scp:
        code, lines = call("echoscu", scp, "-aet", "PACS1", "-aec", "CECHOTEST")
        assert code == 1
        assert lines.count("F: No Acceptable Presentation Contexts") == 1
        with Peer(scp, [(Verification, [IVLE]), (CT.sop_class, [EVLE])]) as peer:
            assert [cx.result for cx in peer.assoc.rejected_contexts] == [3]
            assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000


@pytest.mark.needs("dcmtk")
def test_association_limit(adapter: Adapter, settings):
    """One association too many is rejected as transient; when one has ended there is room."""
    add_fixture(adapter)
    with running(with_scp(settings, maximum_number_of_associations=2)) as scp:
        with Peer(scp, [(Verification, [IVLE])]), Peer(scp, [(Verification, [IVLE])]):
            code, lines = call("echoscu", scp, "-aet", "PACS1", "-aec", "CECHOTEST")
            assert code == 1
            assert (
                "F: Result: Rejected Transient, Source: Service Provider (Presentation Related)"
                in lines
            )
            assert "F: Reason: Local Limit Exceeded" in lines
        eventually(lambda: scp.acceptor.active == 0)
        assert call("echoscu", scp, "-aet", "PACS1", "-aec", "CECHOTEST")[0] == 0


@pytest.mark.needs("dcmtk")
def test_low_storage_rejects_storage_only(scp, monkeypatch, adapter: Adapter):
    """While space is low Storage is rejected as transient, and Verification alone is served."""
    monkeypatch.setattr(Spool, "space", lambda *_: DiskSpace(100, 1, low=True))
    code, lines = call(
        "storescu", scp, "-aet", "PACS1", "-aec", "Clara1", "--", wheel_file("CT_small.dcm")
    )
    assert code == 1
    assert "F: Reason: Temporary Congestion" in lines
    assert call("echoscu", scp, "-aet", "PACS1", "-aec", "CECHOTEST")[0] == 0
    [event] = eventually(lambda: recorded(adapter, "association-rejected"))
    assert event.detail["cause"] == "low-storage"
    assert (event.detail["result"], event.detail["source"], event.detail["reason"]) == (2, 3, 1)


def space_is_low(*_arguments):
    return DiskSpace(100, 1, low=True)


def space_is_unknown(*_arguments):
    raise OSError(errno.EIO, "not to be read")


@pytest.mark.parametrize("space", [space_is_low, space_is_unknown])
def test_low_storage_in_mid_association(scp, monkeypatch, adapter: Adapter, space):
    """Each store gets A700 while space is low or cannot be read, until there is room."""
    with Peer(scp, [(CT.sop_class, [EVLE])]) as peer:
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "space", space)
            assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0xA700
        assert incoming(adapter) == []
        assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000


def test_refused_contexts_do_not_fail_others(scp, adapter: Adapter):
    """Contexts are judged one by one, and the summary names the refused ones."""
    find = "1.2.840.10008.5.1.4.1.2.2.1"
    with Peer(scp, [(find, [IVLE]), ("1.2.3.4", [IVLE]), (CT.sop_class, [EVLE, IVLE])]) as peer:
        assert {cx.context_id: cx.result for cx in peer.assoc.rejected_contexts} == {1: 3, 3: 3}
        [accepted] = peer.assoc.accepted_contexts
        assert (accepted.context_id, accepted.transfer_syntax) == (5, [EVLE])
        assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
    [event] = eventually(lambda: recorded(adapter, "association"))
    assert event.detail["refusedContexts"] == {find: 1, "1.2.3.4": 1}


def test_who_we_say_we_are(scp):
    """The A-ASSOCIATE-AC carries our implementation UID and a window of one operation."""
    with Peer(scp, [(CT.sop_class, [EVLE])]) as peer:
        acceptor = peer.assoc.acceptor
        assert acceptor.implementation_class_uid == IMPLEMENTATION_CLASS_UID
        assert acceptor.asynchronous_operations == (1, 1)
        assert acceptor.role_selection == {}


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "image_dfl.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "JPEG-lossy.dcm",
        "JPEG2000.dcm",
        "693_J2KI.dcm",
        "rtdose.dcm",
        "waveform_ecg.dcm",
        "reportsi.dcm",
        "GDCMJ2K_TextGBR.dcm",
    ],
)
def test_bytes_are_kept(scp, adapter: Adapter, name):
    """The data set is stored bit for bit, in the syntax it was sent in."""
    sent = RealFile.read(wheel_file(name))
    with Peer(scp, [(sent.sop_class, [sent.syntax])]) as peer:
        assert peer.store(sent.sop_class, sent.sop_instance, sent.data) == 0x0000
    [path] = incoming(adapter)
    kept = RealFile.read(path)
    assert hashlib.sha256(kept.data).digest() == hashlib.sha256(sent.data).digest()
    assert kept.syntax == sent.syntax


def test_private_transfer_syntax(scp, adapter: Adapter):
    """A private transfer syntax is accepted if it is proposed first, and its bytes are kept."""
    private = "1.3.46.670589.33.1.4.1"
    with Peer(scp, [(CT.sop_class, [private, EVLE])]) as peer:
        assert peer.assoc.accepted_contexts[0].transfer_syntax == [private]
        assert peer.store(CT.sop_class, "1.2.3", b"\xffnot for us to read\xff") == 0x0000
    [path] = incoming(adapter)
    assert path.read_bytes().endswith(b"\xffnot for us to read\xff")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # pydicom, in both peers
@pytest.mark.parametrize(
    ("sop_class", "sop_instance", "data", "status"),
    [
        (CT.sop_class, "1.2.3", CT.data, 0xA900),
        (MR, CT.sop_instance, CT.data, 0xA900),
        (CT.sop_class, "../../x", CT.data, 0xA900),
        (CT.sop_class, CT.sop_instance, b"", 0xC000),
        (CT.sop_class, CT.sop_instance, b"\xff" * 100, 0xC000),
    ],
    ids=["other-instance", "other-class", "path", "empty", "garbage"],
)
def test_refused_stores(scp, adapter: Adapter, *, sop_class, sop_instance, data, status):
    """A refused store has its status and its event, keeps nothing, and the association goes on."""
    with Peer(scp, [(CT.sop_class, [EVLE])]) as peer:
        assert peer.store(sop_class, sop_instance, data) == status
        assert incoming(adapter) == leftovers(adapter) == []
        assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
    [event] = eventually(lambda: recorded(adapter, "store-failed"))
    assert event.detail["status"] == f"{status:04X}"
    shown = "no UID, of 7 characters" if "/" in sop_instance else sop_instance
    assert event.detail["sopInstance"] == shown


def test_ignored_sop_class(scp, adapter: Adapter):
    """Instances of a SOP class that the AE title ignores get Success and are not stored."""
    add_ae_title(adapter, "NoCT", ignoredSopClasses=[CT.sop_class])
    eventually(lambda: "NoCT" in scp.acceptor._configuration.snapshot.ae_titles)
    with Peer(scp, [(CT.sop_class, [EVLE])], called="NoCT") as peer:
        assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
    [event] = eventually(lambda: recorded(adapter, "association"))
    assert (event.detail["ignored"], event.detail["stored"]) == (1, 0)
    assert incoming(adapter) == []


def test_store_under_a_refused_context(scp, adapter: Adapter):
    """A message under a context that was not accepted ends the association and stores nothing."""
    contexts = [("1.2.3.4", [IVLE]), (CT.sop_class, [EVLE])]
    with Peer(scp, contexts) as peer, pytest.raises(AssertionError, match="no answer"):
        peer.store(CT.sop_class, CT.sop_instance, CT.data, context=1)
    eventually(lambda: scp.acceptor.active == 0)
    assert incoming(adapter) == leftovers(adapter) == []


@pytest.mark.parametrize("ending", ["abort", "cut"])
def test_end_in_mid_transfer(scp, adapter: Adapter, ending):
    """A transfer cut off by an abort or a lost connection leaves nothing, and its place is free."""
    peer = Peer(scp, [(CT.sop_class, [EVLE])])
    with peer:
        peer.store_half(CT.sop_class, CT.sop_instance, CT.data)
        if ending == "abort":
            peer.assoc.abort()
        else:
            raw = peer.assoc.dul.socket.socket
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.assoc.dul.socket.close()
    eventually(lambda: scp.acceptor.active == 0)
    assert incoming(adapter) == leftovers(adapter) == []
    [event] = eventually(lambda: recorded(adapter, "association"))
    assert event.detail["ended"] != "released"
    assert event.detail["stored"] == 0


def test_connection_without_a_request(scp):
    """A connection without an association does not count against the limit."""
    with connect(scp) as quiet:
        quiet.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert scp.acceptor.active == 0


def test_ipv4_and_ipv6(adapter: Adapter, settings):
    """Without a host it listens on IPv4 and IPv6, and knows an IPv4 source by its IPv4 address."""
    add_fixture(adapter)
    add_source(adapter, "SIX", "::1")
    with running(with_scp(settings, host="")) as scp:
        with Peer(scp, [(Verification, [IVLE])]) as peer:
            assert peer.assoc.send_c_echo().Status == 0
        Peer(scp, [(Verification, [IVLE])], calling="STRANGER")
        (event,) = eventually(lambda: recorded(adapter, "association-rejected"))
        assert event.detail["peer"] == "127.0.0.1"  # not ::ffff:127.0.0.1
        try:
            socket.create_connection(("::1", scp.port), timeout=5).close()
        except OSError:
            peers.cannot(peers.Lack.IPV6)
        with Peer(scp, [(Verification, [IVLE])], calling="SIX", address="::1") as peer:
            assert peer.assoc.send_c_echo().Status == 0
        rejected = Peer(scp, [(Verification, [IVLE])], calling="PACS1", address="::1").assoc
        assert not rejected.is_established


def test_an_association_keeps_its_configuration(scp, adapter: Adapter):
    """A change applies from the next association on; arrivals name the version they came under."""
    with Peer(scp, [(CT.sop_class, [EVLE])]) as peer:
        version = add_ae_title_again(adapter)
        eventually(lambda: scp.acceptor._configuration.snapshot.version == version)
        assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
    [before] = incoming(adapter)
    with Peer(scp, [(CT.sop_class, [EVLE])]) as peer:
        assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
    [after] = set(incoming(adapter)) - {before}
    assert not before.stem.endswith(f"-v{version}")
    assert after.stem.endswith(f"-v{version}")


def add_ae_title_again(adapter: Adapter) -> int:
    return put(
        adapter,
        EntityKind.AE_TITLE,
        replace=True,
        aeTitle="Clara1",
        processorSettings={"pipeline-other": "other"},
    )
