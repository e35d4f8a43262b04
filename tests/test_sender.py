# SPDX-License-Identifier: Apache-2.0
"""The sender of `send` and the demo: files as they are, sent again until they are answered."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage

from adapter.demo.command import DEFAULT_STUDY
from adapter.dicom.part10 import part10_header, read_file_meta
from adapter.models import DicomDestination, Outcome
from adapter.scu.association import AssociationRejected
from adapter.scu.files import find_files
from adapter.scu.sender import send
from adapter.settings import Scu
from tests.support_stack import free_port
from tests.support_stages import encode, make_instance

STORED = Outcome.STORED, 0, None
SCU = Scu(ae_title="MODALITY", connect_seconds=2, association_seconds=5, response_seconds=5)


def destination(port, called="PACS"):
    return DicomDestination(name="pacs", ae_title=called, host_ip="127.0.0.1", port=port)


@contextmanager
def peer(store, *, contexts=(str(CTImageStorage),), called=None):
    """Give the port of a Storage SCP that handles a C-STORE by a function of the event."""
    ae = AE("PACS")
    ae.require_called_aet = called is not None
    ae.ae_title = called or "PACS"
    for uid in contexts:
        ae.add_supported_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.socket.getsockname()[1], ae
    finally:
        server.shutdown()


@pytest.fixture
def files():
    return find_files([DEFAULT_STUDY]).files


@pytest.fixture
def settled():
    """Collects what the sender reports: outcome, status and reason by file, and how often."""

    class Settled(dict):
        def __call__(self, result):
            self[result.file.path] = result.outcome, result.status, result.reason
            self.times[result.file.path] += 1

    collected = Settled()
    collected.times = Counter()
    return collected


def test_what_was_not_answered_is_sent_again(files, settled):
    """After a lost association only the files without an answer are sent again."""
    received = []

    def store(event):
        received.append(str(event.request.AffectedSOPInstanceUID))
        if len(received) in {3, 5}:
            event.assoc.abort()
        return 0x0000

    with peer(store) as (port, _):
        send(files, destination(port), SCU, settled)

    assert set(settled.values()) == {STORED}
    assert len(settled) == len(files) == 7
    assert set(settled.times.values()) == {1}
    assert Counter(Counter(received).values()) == {1: 5, 2: 2}


def test_bytes_go_out_as_they_stand_in_the_file(files, settled):
    """The data set that arrives is the one in the file, byte for byte."""
    received = {}

    def store(event):
        data = event.request.DataSet.getvalue()
        received[str(event.request.AffectedSOPInstanceUID)] = hashlib.sha256(data).hexdigest()
        return 0x0000

    with peer(store) as (port, _):
        send(files, destination(port), SCU, settled)

    for item in files:
        with (item.root / item.path).open("rb") as file:
            read_file_meta(file)
            assert received[item.sop_instance_uid] == hashlib.sha256(file.read()).hexdigest()


def test_a_refused_file_does_not_stop_the_others(files, settled):
    """A failure status settles its file; it is not sent again."""
    received = []

    def store(event):
        received.append(event)
        return 0xC000 if len(received) == 1 else 0xB000

    with peer(store) as (port, _):
        send(files, destination(port), SCU, settled)

    assert len(received) == 7
    assert Counter(settled.values()) == {
        (Outcome.RETRY, 0xC000, "the destination answered with status C000"): 1,
        (Outcome.STORED, 0xB000, None): 6,
    }


@pytest.mark.parametrize("status", [0x0001, 0x0107, 0x0116, 0xB007])
def test_a_warning_says_that_the_file_is_stored(files, settled, status):
    """Every warning of PS3.7 Annex C and PS3.4 Table B.2-1 means stored, as it does for export."""
    with peer(lambda _: status) as (port, _):
        send(files[:1], destination(port), SCU, settled)

    assert list(settled.values()) == [(Outcome.STORED, status, None)]


@pytest.mark.parametrize("lost", [True, False])
def test_a_duplicate_is_stored_if_the_file_was_sent_before(files, settled, lost):
    """0111 means stored if an association was lost while the file was sent, and only then."""
    received = []

    def store(event):
        received.append(event)
        if lost and len(received) == 1:
            event.assoc.abort()
            return 0x0000
        return 0x0111

    with peer(store) as (port, _):
        send(files[:1], destination(port), SCU, settled)

    [(outcome, status, _)] = settled.values()
    assert len(received) == 1 + lost
    assert (outcome, status) == (Outcome.STORED if lost else Outcome.RETRY, 0x0111)


def test_a_file_that_breaks_every_association_keeps_no_other_waiting(files, settled):
    """The others are stored; the file that is never answered is given up when patience ends."""
    bad = files[0]

    def store(event):
        if event.request.AffectedSOPInstanceUID == bad.sop_instance_uid:
            event.assoc.abort()
        return 0x0000

    with peer(store) as (port, _):
        send(files, destination(port), SCU, settled, give_up_seconds=1.2)

    assert set(settled.times.values()) == {1}
    outcome, status, reason = settled.pop(bad.path)
    assert (outcome, status) == (Outcome.RETRY, None)
    assert "aborted the association" in reason
    assert set(settled.values()) == {STORED}
    assert len(settled) == 6


def test_a_context_that_is_refused_is_named(files, settled):
    """A file whose SOP class the peer does not accept fails, with class and syntax by name."""
    with peer(lambda _: 0x0000, contexts=("1.2.840.10008.5.1.4.1.1.4",)) as (port, _):
        send(files, destination(port), SCU, settled)

    reason = "the destination does not accept CT Image Storage in Explicit VR Little Endian"
    assert set(settled.values()) == {(Outcome.REFUSED, None, reason)}


def test_nobody_there_is_given_up_after_a_while(files, settled):
    """If the destination never answers, each file is settled once when patience ends."""
    send(files, destination(free_port()), SCU, settled, give_up_seconds=1.2)

    assert set(settled.times.values()) == {1}
    assert all(
        outcome is Outcome.RETRY and status is None and "nobody listens" in reason
        for outcome, status, reason in settled.values()
    )
    assert len(settled) == 7


def test_a_rejection_for_good_ends_it_unless_we_insist(files, settled):
    """An unknown called AE title is an error at once, unless we insist until it is known."""
    with peer(lambda _: 0x0000, called="OTHER") as (port, ae):
        with pytest.raises(AssociationRejected, match="called AE title is not recognised"):
            send(files, destination(port), SCU, settled)
        assert settled == {}

        def know(_event):
            ae.require_called_aet = False

        ae._servers[0].bind(evt.EVT_REJECTED, know)
        send(files, destination(port), SCU, settled, insist=True)

    assert set(settled.values()) == {STORED}


def test_many_kinds_of_files_take_several_associations(tmp_path, settled):
    """More contexts than fit into one association (PS3.8 section 9.3.2.2) use several."""
    # Given
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts[:130]]
    assert len(classes) == 130
    for number, uid in enumerate(classes):
        header = part10_header(
            sop_class_uid=uid,
            sop_instance_uid=generate_uid(),
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            calling_ae_title="T",
            called_ae_title="T",
        )
        (tmp_path / f"{number}.dcm").write_bytes(header + b"\x08\x00\x16\x00UI\x00\x00")
    associations = set()

    def store(event):
        associations.add(event.assoc)
        return 0x0000

    # If
    with peer(store, contexts=classes) as (port, _):
        send(find_files([tmp_path]).files, destination(port), SCU, settled, give_up_seconds=5)

    # Then
    assert Counter(settled.values()) == {STORED: 130}
    assert len(associations) == 3  # two contexts for each class, 128 for each association


def write(path, data, **uids):
    """Write a DICOM file with a data set of some bytes."""
    header = part10_header(
        **{
            "sop_class_uid": CTImageStorage,
            "sop_instance_uid": "1.2",
            "transfer_syntax_uid": ExplicitVRLittleEndian,
            "calling_ae_title": "A",
            "called_ae_title": "A",
        }
        | uids
    )
    path.write_bytes(header + data)


def test_what_is_not_meant_to_be_sent_is_counted(tmp_path):
    """A DICOMDIR, a text and a file without its UIDs are skipped, each with its reason."""
    (tmp_path / "notes.txt").write_text("x" * 500)
    (tmp_path / "empty").touch()
    write(tmp_path / "bare", b"", sop_class_uid="")

    found = find_files([tmp_path, DEFAULT_STUDY.parent / "DICOMDIR"])

    assert found.files == []
    assert found.skipped == {
        "not DICOM": 2,
        "no SOP Class or SOP Instance UID": 1,
        "DICOMDIR": 1,
    }
    assert not found.unfit
    with pytest.raises(OSError, match="nowhere"):
        find_files([Path("/nowhere")])


def test_files_that_cannot_be_sent_are_counted_apart(tmp_path):
    """A DICOM file that is cut short, or has an invalid UID, is counted apart from the skipped."""
    write(tmp_path / "short", b"")
    write(tmp_path / "odd", b"odd")
    write(tmp_path / "uid", b"even", sop_instance_uid="1.a2")

    found = find_files([tmp_path])

    assert found.files == []
    assert not found.skipped
    assert found.unfit == {
        "the data set is missing, or cut short": 2,
        "the file has an invalid UID": 1,
    }


def test_files_that_lack_something_are_sent(tmp_path, settled):
    """Without preamble, group length or file meta information, or named wrongly, a file is sent."""
    found = {}
    for name, start in {
        "no preamble": lambda whole, _: whole[132:],
        "no file meta information": lambda _, data: data,
        "no group length": lambda whole, _: whole[:132] + whole[144:],
        "another name": lambda whole, _: whole,
        "a text": lambda _, __: b"no DICOM file".ljust(500),
        "a text behind a good start": lambda _, __: b"\x08\0no DICOM file".ljust(500),
    }.items():
        ds = make_instance()
        named = "1.2.3" if name == "another name" else ds.SOPInstanceUID
        write(tmp_path / name, encode(ds), sop_instance_uid=named)
        (tmp_path / name).write_bytes(start((tmp_path / name).read_bytes(), encode(ds)))
        if "text" not in name:
            found[name] = str(ds.SOPInstanceUID), encode(ds)
    implicit = make_instance()
    (tmp_path / "z").write_bytes(encode(implicit, implicit=True))
    found["z"] = str(implicit.SOPInstanceUID), encode(implicit, implicit=True)
    taken = {}

    def keep(event):
        taken[event.request.AffectedSOPInstanceUID] = event.encoded_dataset(include_meta=False)
        return 0x0000

    with peer(keep) as (port, _):
        looked = find_files([tmp_path])
        send(looked.files, destination(port), SCU, settled)

    assert taken == dict(found.values())
    assert looked.skipped == {"not DICOM": 2}
    syntaxes = {file.path: file.transfer_syntax_uid for file in looked.files}
    assert syntaxes == dict.fromkeys(found, ExplicitVRLittleEndian) | {"z": ImplicitVRLittleEndian}


def test_links_are_followed_to_the_files(tmp_path, settled):
    """A user may name a link to the files; only export follows none."""
    (tmp_path / "link").symlink_to(DEFAULT_STUDY)

    with peer(lambda _: 0x0000) as (port, _):
        send(find_files([tmp_path / "link"]).files, destination(port), SCU, settled)

    assert set(settled.values()) == {STORED}
    assert len(settled) == 7
