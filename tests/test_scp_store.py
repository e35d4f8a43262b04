# SPDX-License-Identifier: Apache-2.0
"""The seam between the wire and the spool: each status, and nothing kept that was refused."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest
from pydicom.filereader import read_file_meta_info

from adapter.core import Adapter
from adapter.dicom.implementation import IMPLEMENTATION_CLASS_UID
from adapter.dicom.part10 import read_file_meta
from adapter.files import FileSystem
from adapter.models import AETitle, ArrivalId, Versioned
from adapter.scp.acceptance import Accepted, ContextResult
from adapter.scp.events import ScpEvents
from adapter.scp.sink import StoreSink
from adapter.scp.store import StoreCommand, StoreContext
from adapter.spool import IncomingFile, Spool
from tests import peers
from tests.support_scp import RealFile, incoming, leftovers, wheel_file

CT = RealFile.read(wheel_file("CT_small.dcm"))
CONTEXT = ContextResult(1, CT.sop_class, 0, CT.syntax)
IMPLICIT = ContextResult(3, CT.sop_class, 0, "1.2.840.10008.1.2")


class Bench:
    """A sink on a real spool, and what it reported."""

    def __init__(self, spool: Spool, *, strict=False, **ae_title) -> None:
        self.scp_events = ScpEvents()
        self.pokes = 0
        self.low = False
        accepted = Accepted(
            "PACS1", "Clara1", Versioned(12, AETitle(ae_title="Clara1", **ae_title)), {1: CONTEXT}
        )
        context = StoreContext(
            spool,
            self.scp_events,
            lambda: "low-storage" if self.low else "",
            self._stored_one,
            strict_uids=strict,
        )
        self.sink = StoreSink(context, accepted, "10.0.0.1")

    def _stored_one(self) -> None:
        self.pokes += 1

    def store(
        self,
        data=CT.data,
        sop_class=CT.sop_class,
        sop_instance=CT.sop_instance,
        step=4096,
        context=CONTEXT,
    ):
        receive = self.sink.begin(StoreCommand(sop_class, sop_instance, context))
        for at in range(0, len(data), step):
            receive.data(memoryview(data)[at : at + step])
        return receive.finish()

    def events(self, kind):
        return [event[3] for event in self.scp_events._queue if event[0] == kind]


@pytest.fixture
def bench(adapter: Adapter) -> Bench:
    return Bench(adapter.spool)


def test_stored_file(adapter: Adapter, bench: Bench):
    """A stored file is the header of PS3.10 section 7.1 and the unchanged bytes of the data set."""
    before = time.time()
    assert bench.store(step=1000).status == 0x0000
    [path] = incoming(adapter)
    arrival = ArrivalId.parse(path.stem)
    assert (arrival.association, arrival.number, arrival.version) == (
        bench.sink.association,
        1,
        12,
    )
    assert before <= arrival.received_at <= time.time()
    with path.open("rb") as file:
        assert file.read(132) == bytes(128) + b"DICM"
        file.seek(0)
        meta = read_file_meta(file)
        assert file.read() == CT.data
    elements = [element.tag.element for element in read_file_meta_info(path)]
    assert elements == [0x00, 0x01, 0x02, 0x03, 0x10, 0x12, 0x13, 0x17, 0x18]
    assert meta[0x02] == CT.sop_class
    assert meta[0x03] == CT.sop_instance
    assert meta[0x10] == CT.syntax
    assert meta[0x12] == IMPLEMENTATION_CLASS_UID
    assert meta[0x17] == "PACS1"
    assert meta[0x18] == "Clara1"
    assert bench.pokes == 1
    assert leftovers(adapter) == []


def test_what_cannot_be_counted_costs_no_answer_and_no_place(
    adapter: Adapter, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    """Counters and events that fail change neither the answer for an instance nor what is kept."""

    def fail(*_, **__):
        raise RuntimeError("unforeseen")

    ended = []
    bench.sink._ended = lambda: ended.append(True)
    monkeypatch.setattr(bench.scp_events.metrics.counters, "add", fail)
    monkeypatch.setattr(bench.scp_events, "record", fail)

    assert bench.store().status == 0x0000
    assert bench.store(data=b"").status == 0xC000
    bench.sink.close("released")

    assert len(incoming(adapter)) == 1
    assert bench.pokes == 1
    assert ended == [True]


def test_numbers_count_what_was_stored(adapter: Adapter, bench: Bench):
    """Stored instances are numbered without gaps, even if others were refused between them."""
    bench.store()
    bench.store(data=b"")
    bench.store()
    assert [ArrivalId.parse(path.stem).number for path in incoming(adapter)] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"data": b""}, 0xC000),
        ({"data": b"\xff" * 100}, 0xC000),
        ({"data": b"\xff" * 100_000}, 0xC000),
        # explicit VR where implicit VR was agreed, shorter and longer than the look-ahead
        ({"context": IMPLICIT}, 0xC000),
        ({"context": IMPLICIT, "data": CT.data + bytes(100_000)}, 0xC000),
        ({"sop_instance": "1.2.3"}, 0xA900),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.4"}, 0xA900),
        ({"data": CT.data.replace(CT.sop_class.encode(), b"1.2.840.10008.5.1.4.1.1.4")}, 0xA900),
        ({"sop_instance": "../../../tmp/x"}, 0xA900),
        ({"sop_instance": "1.2\r\n3"}, 0xA900),
        ({"sop_instance": "1.2\0"}, 0xA900),
        ({"sop_instance": "1." * 32 + "1"}, 0xA900),
        ({"sop_instance": ""}, 0xA900),
        ({"sop_class": ""}, 0xA900),
    ],
)
def test_refusals(adapter: Adapter, bench: Bench, changes, status):
    """A store whose UIDs differ, or that cannot be read, is refused, and nothing of it is kept."""
    answer = bench.store(**changes)
    assert f"{answer.status:04X}" == f"{status:04X}"
    assert 0 < len(answer.comment) <= 64
    assert incoming(adapter) == leftovers(adapter) == []
    assert bench.pokes == 0
    [failure] = bench.events("store-failed")
    assert failure["status"] == f"{status:04X}"
    assert not set("\r\n\0") & set(failure["sopInstance"])
    assert bench.store().status == 0x0000


@pytest.mark.parametrize(
    ("uid", "strict", "status"),
    [
        ("../../../../../../../../../../../../../../../../etc/x", False, 0xA900),
        ("1.2.DOE^JANE", False, 0xA900),
        ("." * 64, False, 0xA900),
        ("1.02", False, 0x0000),
        ("1..2", False, 0x0000),
        ("1.02", True, 0xA900),
    ],
)
def test_uids_of_odd_grammar(adapter: Adapter, *, uid, strict, status):
    """A UID of any digits and dots is carried on, unless `strictUids` is set; else it is refused.

    What is no UID may be patient data, so neither log nor event holds it.
    """
    bench = Bench(adapter.spool, strict=strict)
    uid = uid.ljust(len(CT.sop_instance), "0" if status == 0 else uid[-1])[: len(CT.sop_instance)]
    data = CT.data.replace(CT.sop_instance.encode(), uid.encode())
    assert bench.store(data=data, sop_instance=uid).status == status
    assert len(incoming(adapter)) == (status == 0)
    assert leftovers(adapter) == []
    if not strict:
        assert uid not in str(bench.events("store-failed"))


@pytest.mark.parametrize("size", [65535, 65536, 65537, 200_000])
@pytest.mark.parametrize("step", [7001, 65536, 1_000_000])
def test_the_peek_is_no_part_of_the_bytes(adapter: Adapter, bench: Bench, size, step):
    """Data sets around and beyond 64 KiB are stored unchanged, whatever the size of fragments."""
    data = CT.data + os.urandom(size - len(CT.data))
    assert bench.store(data=data, step=step).status == 0x0000
    [path] = incoming(adapter)
    assert path.read_bytes().endswith(data)
    assert path.stat().st_size < size + 1000


def test_a_mismatch_ends_the_writing_at_once(adapter: Adapter, bench: Bench):
    """A data set whose first 64 KiB are refused is not written any further."""
    receive = bench.sink.begin(StoreCommand(CT.sop_class, "1.2.3", CONTEXT))
    receive.data(CT.data)
    receive.data(bytes(65536))
    assert leftovers(adapter) == []
    receive.data(bytes(65536))
    assert receive.finish().status == 0xA900


def test_ignored_sop_class(adapter: Adapter):
    """An ignored SOP class is answered with Success and counted, but not written."""
    bench = Bench(adapter.spool, ignored_sop_classes=[CT.sop_class])
    assert bench.store().status == 0x0000
    assert incoming(adapter) == leftovers(adapter) == []
    bench.sink.close("released")
    [summary] = bench.events("association")
    assert (summary["ignored"], summary["stored"], bench.pokes) == (1, 0, 0)


def test_low_storage(adapter: Adapter, bench: Bench):
    """Each store checks the space: A700 while it is low, Success as soon as it is not."""
    bench.low = True
    assert bench.store().status == 0xA700
    assert incoming(adapter) == leftovers(adapter) == []
    bench.low = False
    assert bench.store().status == 0x0000


def fail_with(number):
    def fail(*_arguments, **_keywords):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Spool, "receive"),
        (IncomingFile, "write"),
        (IncomingFile, "sync"),
        (IncomingFile, "publish"),
        (FileSystem, "sync_directory"),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_failing_spool(adapter: Adapter, bench: Bench, monkeypatch, *, owner, name, number):
    """If a step of the spool fails: A700, the file is withdrawn, and the next store works."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_with(number))
        answer = bench.store()
    assert answer.status == 0xA700
    assert errno.errorcode[number] in answer.comment
    assert incoming(adapter) == leftovers(adapter) == []
    assert bench.pokes == 0
    assert bench.store().status == 0x0000


def test_internal_error(adapter: Adapter, bench: Bench, monkeypatch):
    """A fault of our own is answered with 0110 and withdraws the file."""
    with monkeypatch.context() as patch:
        patch.setattr(IncomingFile, "sync", lambda _self: 1 // 0)
        assert bench.store().status == 0x0110
    assert incoming(adapter) == leftovers(adapter) == []
    assert bench.store().status == 0x0000


def test_success_comes_after_durability(adapter: Adapter, bench: Bench, monkeypatch):
    """Data, name and directory are synced in this order, before the answer and its wake-up."""
    steps = []
    for owner, name in ((os, "fdatasync"), (os, "fsync")):
        real = getattr(owner, name)

        def spy(descriptor, name=name, real=real):
            steps.append((name, len(incoming(adapter)), bench.pokes))
            return real(descriptor)

        monkeypatch.setattr(owner, name, spy)
    assert bench.store().status == 0x0000
    assert steps == [("fdatasync", 0, 0), ("fsync", 1, 0)]


def test_discard(adapter: Adapter, bench: Bench):
    """A message that is cut off leaves nothing, whether it is discarded or the sink is closed."""
    receive = bench.sink.begin(StoreCommand(CT.sop_class, CT.sop_instance, CONTEXT))
    receive.data(CT.data)
    assert incoming(adapter) == []
    receive.discard()
    assert leftovers(adapter) == []
    receive = bench.sink.begin(StoreCommand(CT.sop_class, CT.sop_instance, CONTEXT))
    receive.data(CT.data)
    bench.sink.close("lost")
    assert incoming(adapter) == leftovers(adapter) == []


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(adapter: Adapter, bench: Bench):
    """Refused, discarded and stored instances leave no descriptor open."""
    bench.store()
    before = open_descriptors()
    for data in (CT.data, b"\xff" * 100, CT.data):
        bench.store(data=data)
        bench.store(sop_instance="1.2.3")
        bench.sink.begin(StoreCommand(CT.sop_class, CT.sop_instance, CONTEXT)).discard()
    assert open_descriptors() == before


def test_failures_are_told_one_by_one_up_to_a_bound(bench: Bench):
    """20 failures of an association have events of their own; its summary counts all by status."""
    for _ in range(30):
        bench.store(data=b"")
    bench.store(sop_instance="1.2.3")
    bench.store()
    bench.sink.close("aborted")
    bench.sink.close("released")
    assert len(bench.events("store-failed")) == 20
    [summary] = bench.events("association")
    assert summary["failed"] == {"C000": 30, "A900": 1}
    assert (summary["stored"], summary["bytes"], summary["ended"]) == (1, len(CT.data), "aborted")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        peers.cannot(peers.Lack.MOUNTING)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(small_disk):
    """A full disk is A700 and leaves nothing behind; when there is room again, stores succeed."""
    spool = Spool(small_disk / "spool")
    spool.create()
    bench = Bench(spool)
    statuses = [bench.store().status for _ in range(10)]
    stored = statuses.count(0x0000)
    assert 0 < stored < 6
    assert statuses == [0x0000] * stored + [0xA700] * (10 - stored)
    files = sorted(spool.incoming.glob("*/*"))
    assert len(files) == stored
    assert all(path.read_bytes().endswith(CT.data) for path in files)
    files[0].unlink()
    assert bench.store().status == 0x0000
