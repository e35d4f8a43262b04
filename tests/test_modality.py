# SPDX-License-Identifier: Apache-2.0
"""The modality of `send` and the demo: files as they are, and again what was not answered."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage

from adapter.demo import modality
from adapter.demo.command import DEFAULT_STUDY
from adapter.dicom import part10_header, read_file_meta
from adapter.models import DicomDestination
from adapter.scu.association import AssociationRejected
from adapter.settings import Scu
from tests.support_stack import free_port

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
        ae.add_supported_context(uid, ExplicitVRLittleEndian)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.socket.getsockname()[1], ae
    finally:
        server.shutdown()


@pytest.fixture
def files():
    return modality.find_files([DEFAULT_STUDY]).files


@pytest.fixture
def settled():
    """Collects what the sender is told: status and reason by file, and how often."""

    class Settled(dict):
        def __call__(self, file, status, why):
            self[file.path.name] = status, why
            self.times[file.path.name] += 1

    collected = Settled()
    collected.times = Counter()
    return collected


def test_what_was_not_answered_is_sent_again(files, settled):
    """When the association is lost, only what was not confirmed is sent over the next one."""
    received = []

    def store(event):
        received.append(str(event.request.AffectedSOPInstanceUID))
        if len(received) in {3, 5}:
            event.assoc.abort()
        return 0x0000

    with peer(store) as (port, _):
        modality.send(files, destination(port), SCU, settled)

    assert set(settled.values()) == {(0, "")}
    assert len(settled) == len(files) == 7
    assert set(settled.times.values()) == {1}
    assert Counter(Counter(received).values()) == {1: 5, 2: 2}


def test_bytes_go_out_as_they_stand_in_the_file(files, settled):
    """The data set that arrives is that of the file, byte for byte."""
    received = {}

    def store(event):
        data = event.request.DataSet.getvalue()
        received[str(event.request.AffectedSOPInstanceUID)] = hashlib.sha256(data).hexdigest()
        return 0x0000

    with peer(store) as (port, _):
        modality.send(files, destination(port), SCU, settled)

    for item in files:
        with item.path.open("rb") as file:
            read_file_meta(file)
            assert received[item.sop_instance_uid] == hashlib.sha256(file.read()).hexdigest()


def test_a_refused_file_does_not_stop_the_others(files, settled):
    """A failure status settles its file; it is not sent again."""
    received = []

    def store(event):
        received.append(event)
        return 0xC000 if len(received) == 1 else 0xB000

    with peer(store) as (port, _):
        modality.send(files, destination(port), SCU, settled)

    assert len(received) == 7
    assert Counter(settled.values()) == {
        (0xC000, "the peer refused it with status C000"): 1,
        (0xB000, ""): 6,
    }


def test_a_context_that_is_refused_is_named(files, settled):
    """A file whose SOP class the peer does not take fails, with class and syntax by name."""
    with peer(lambda _: 0x0000, contexts=("1.2.840.10008.5.1.4.1.1.4",)) as (port, _):
        modality.send(files, destination(port), SCU, settled)

    assert set(settled.values()) == {
        (None, "the peer does not take CT Image Storage in Explicit VR Little Endian")
    }


def test_nobody_there_is_given_up_after_a_while(files, settled):
    """Where nobody answers, every file is settled once when patience ends."""
    modality.send(files, destination(free_port()), SCU, settled, patience=1.2)

    assert set(settled.times.values()) == {1}
    assert all(status is None and "nobody listens" in why for status, why in settled.values())
    assert len(settled) == 7


def test_a_rejection_for_good_ends_it_unless_we_insist(files, settled):
    """A called AE title that is not known is an error at once; insisting waits for it to be."""
    with peer(lambda _: 0x0000, called="OTHER") as (port, ae):
        with pytest.raises(AssociationRejected, match="called AE title is not recognised"):
            modality.send(files, destination(port), SCU, settled)
        assert settled == {}

        def know(_event):
            ae.require_called_aet = False

        ae._servers[0].bind(evt.EVT_REJECTED, know)
        modality.send(files, destination(port), SCU, settled, insist=True)

    assert set(settled.values()) == {(0, "")}


def test_many_kinds_of_files_take_several_associations(tmp_path, settled):
    """More contexts than one association has (PS3.8 section 9.3.2.2) are no hindrance."""
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
        modality.send(
            modality.find_files([tmp_path]).files, destination(port), SCU, settled, patience=5
        )

    # Then
    assert Counter(status for status, _ in settled.values()) == {0: 130}
    assert len(associations) == 2


def test_what_is_no_dicom_file_is_counted(tmp_path):
    """A DICOMDIR, a text and a file without its UIDs are skipped, each with its reason."""
    (tmp_path / "notes.txt").write_text("x" * 500)
    (tmp_path / "empty").touch()
    header = part10_header(
        sop_class_uid="",
        sop_instance_uid="1.2",
        transfer_syntax_uid="1.2",
        calling_ae_title="A",
        called_ae_title="A",
    )
    (tmp_path / "bare").write_bytes(header)

    found = modality.find_files([tmp_path, DEFAULT_STUDY.parent / "DICOMDIR"])

    assert found.files == []
    assert found.skipped == {
        "not DICOM": 2,
        "incomplete file meta information": 1,
        "DICOMDIR": 1,
    }
    with pytest.raises(OSError, match="nowhere"):
        modality.find_files([Path("/nowhere")])
