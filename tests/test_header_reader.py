# SPDX-License-Identifier: Apache-2.0
"""The child that reads headers: what a file's content costs, and what is no file's fault."""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from adapter.core import Adapter
from adapter.errors import UnreadableInstance
from adapter.ledger.schema import arrivals
from adapter.settings import Notification
from adapter.stages import NOTIFICATION
from tests.support_stages import (
    CountingQueues,
    IncomingAssociation,
    add_ae_title,
    encode,
    make_instance,
    make_work,
    rows,
    write_file,
)
from workers import notification
from workers.clients import headers
from workers.clients.headers import HeaderReader, HeaderReaders

#: Half a second of processor time, and a bound on elements that would let a file take ten.
LIMITS = Notification(header_seconds=0.5, header_elements=100_000_000)


def endless() -> bytes:
    """Return a small deflated data set that takes some seconds to read without a limit."""
    return zlib.compress(b"\x08\0\x05\0CS\0\0" * 3_000_000, 1, -zlib.MAX_WBITS)


ENDLESS = endless()


@pytest.fixture
def reader():
    """A reader with half a second."""
    made = HeaderReader(LIMITS)
    yield made
    made.close()


def test_processor_time_is_used_up_once(tmp_path, reader):
    """A file that takes too long to read is not read again; the next one is read."""
    path = write_file(tmp_path, ENDLESS, DeflatedExplicitVRLittleEndian)
    began, told = time.monotonic(), []
    with pytest.raises(UnreadableInstance) as refused:
        reader.read(path, (), slow=lambda: told.append(reader._child.pid))
    assert refused.value.code == "took-too-long"
    assert len(told) == 1
    assert time.monotonic() - began < 10  # half a second of processor time, on a busy machine

    ds = make_instance()
    path = write_file(tmp_path, encode(ds), "1.2.840.10008.1.2.1")
    assert reader.read(path, ()).study_instance_uid == ds.StudyInstanceUID


def test_a_disk_that_does_not_answer_is_no_files_fault(tmp_path, reader, monkeypatch):
    """A child that waits without using its processor is an error of ours, and no verdict."""
    monkeypatch.setattr(headers, "_DISK", 0.5)
    path = write_file(tmp_path, encode(make_instance()), "1.2.840.10008.1.2.1")
    assert reader.read(path, ())
    os.kill(reader._child.pid, signal.SIGSTOP)  # as if it waited for the disk

    with pytest.raises(TimeoutError):
        reader.read(path, ())
    assert reader.read(path, ())


def test_a_child_that_does_not_start_is_no_files_fault(tmp_path, monkeypatch):
    """A child that dies before it is ready says nothing of the file."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    reader = HeaderReader(LIMITS)
    path = write_file(tmp_path, encode(make_instance()), "1.2.840.10008.1.2.1")
    with pytest.raises(BlockingIOError):
        reader.read(path, ())
    assert reader._child is None


def test_nobody_waits_for_an_arrival_that_takes_long(adapter: Adapter):
    """What came before it is settled at once, and what came after it is another worker's."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    first = association.store(make_instance())
    long = association.store(ENDLESS, transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
    last = association.store(make_instance())
    other = make_work(adapter)
    seen = []

    class Queues(CountingQueues):
        """Wakes another worker, which works until nothing is left for it."""

        def wake(self, stage: str, *_ids: str) -> bool:
            if stage == NOTIFICATION:
                seen.append({row.id: row.state for row in rows(adapter, arrivals)})
                seen.append([str(arrival) for arrival in sorted(adapter.spool.list_incoming())])
                seen.append(notification.run(other))
            return True

    work = make_work(adapter)
    object.__setattr__(work, "queues", Queues())
    object.__setattr__(work, "headers", HeaderReaders(LIMITS))

    assert notification.run(work) == {"registered": 1, "quarantined": 1}

    assert seen == [
        {first: "registered", long: "received", last: "received"},
        [long, last],
        {"registered": 1},
    ]
    assert {row.id: (row.state, row.reason, row.attempts) for row in rows(adapter, arrivals)} == {
        first: ("registered", None, 1),
        long: ("quarantined", "took-too-long", 1),
        last: ("registered", None, 1),
    }
