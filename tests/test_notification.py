# SPDX-License-Identifier: Apache-2.0
"""Registration: what becomes of an acknowledged file."""

from __future__ import annotations

import errno
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from adapter import plugins
from adapter.core import Adapter
from adapter.dicom.header import HeaderLimits, read_header
from adapter.errors import UnreadableInstance
from adapter.ledger import arrivals as arrivals_verbs
from adapter.ledger.attempts import ARRIVAL_ATTEMPTS
from adapter.ledger.schema import arrivals, groups
from adapter.processors import registry
from tests.support_ledger import everything_in
from tests.support_stages import IncomingAssociation, add_ae_title, encode, make_instance, rows
from tests.support_stages import make_work as _make_work
from tests.support_waiting import eventually
from workers import notification
from workers.stage import Work

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    """What the stage works with."""
    made = _make_work(adapter)
    yield made
    made.headers.close()


def names(folder: Path) -> list[str]:
    """Return the names of all files below a folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_an_instance_leaves_incoming_with_its_row(adapter: Adapter, work: Work) -> None:
    """A registered instance has one row, one file in instances/ and none in incoming/."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    ds = make_instance()
    arrival = association.store(ds)
    before = adapter.spool.incoming_path(arrival).read_bytes()

    assert notification.run(work) == {"registered": 1}

    (row,) = rows(adapter, arrivals)
    assert (row.state, row.sop_instance_uid) == ("registered", ds.SOPInstanceUID)
    assert (row.calling_ae_title, row.called_ae_title) == ("MODALITY", "BRAIN")
    (group,) = rows(adapter, groups)
    assert (group.key, group.state, group.generation) == (ds.StudyInstanceUID, "open", 1)
    assert row.group_id == group.id
    assert group.due_at == pytest.approx(row.received_at + 5)
    assert names(adapter.spool.incoming) == []
    assert adapter.spool.instance_path(arrival).read_bytes() == before


@pytest.mark.parametrize("patient", ["CANARY-ID", "31415926535", "1.2.3141592653"])
def test_no_patient_data_reaches_the_ledger(adapter: Adapter, work: Work, patient: str) -> None:
    """Grouped by Patient ID, the ledger holds neither the id nor the name, whatever it looks like.

    Digits and dots make no UID of it: only what is a UID of the instance is kept as it is.
    """
    settings = {"pipeline-a": "a", "groupBy": "0010,0020"}
    association = IncomingAssociation(adapter, add_ae_title(adapter, processor_settings=settings))
    association.store(make_instance(PatientID=patient))
    association.store(make_instance(PatientID=patient))

    notification.run(work)

    (group,) = rows(adapter, groups)
    assert group.instances == 2
    everything = everything_in(adapter)
    assert b"CANARY" not in everything
    assert patient.encode() not in everything


def test_an_empty_patient_id_is_legal(adapter: Adapter, work: Work) -> None:
    """Patient ID is type 2: empty or missing, the instance is registered."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    association.store(make_instance(PatientID=""))
    association.store(make_instance(PatientID=None))

    assert notification.run(work) == {"registered": 2}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (make_instance(StudyInstanceUID=None), "no-grouping-value"),
        (make_instance(StudyInstanceUID=""), "no-grouping-value"),
        (b"\xff" * 100, "no-grouping-value"),
        (encode(make_instance())[:150], "not-parseable"),
    ],
    ids=["no study", "empty study", "garbage", "cut short"],
)
def test_what_cannot_be_grouped_is_quarantined(
    adapter: Adapter, work: Work, data: Dataset | bytes, reason: str
) -> None:
    """An acknowledged file that cannot be processed is kept in quarantine, with the reason."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    arrival = association.store(data)
    content = adapter.spool.incoming_path(arrival).read_bytes()

    assert notification.run(work) == {"quarantined": 1}

    (row,) = rows(adapter, arrivals)
    assert (row.state, row.reason) == ("quarantined", reason)
    assert adapter.spool.quarantine_path(arrival).read_bytes() == content
    assert names(adapter.spool.incoming) == names(adapter.spool.instances) == []


def test_hostile_uids_are_quarantined(adapter: Adapter, work: Work) -> None:
    """A UID with path characters names nothing: the file goes to quarantine."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    body = encode(make_instance(SOPInstanceUID="1.2.3.4.5.6.7.8.9.10")).replace(
        b"1.2.3.4.5.6.7.8.9.10", b"../../../../tmp/evil"
    )
    association.store(body)

    assert notification.run(work) == {"quarantined": 1}
    assert rows(adapter, arrivals)[0].reason == "invalid-uid"


def test_uids_of_odd_grammar_are_registered(adapter: Adapter, work: Work) -> None:
    """Components of UIDs may begin with a zero, unless `strictUids` is set."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    body = encode(make_instance(SOPInstanceUID="1.2.3.45", StudyInstanceUID="1.2.4.45"))
    body = body.replace(b"1.2.3.45", b"1.02.3.4").replace(b"1.2.4.45", b" 1.02.40")
    path = adapter.spool.incoming_path(association.store(body))
    with pytest.raises(UnreadableInstance):
        read_header(path, (), HeaderLimits(strict_uids=True))

    assert notification.run(work) == {"registered": 1}

    (row,) = rows(adapter, arrivals)
    assert (row.sop_instance_uid, row.study_instance_uid) == ("1.02.3.4", "1.02.40")


def nested(depth: int) -> bytes:
    """Return an instance in which sequences of undefined length are nested so deep."""
    inner = b""
    for _ in range(depth):
        inner = (
            b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
            + inner
            + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
        )
    raw = encode(make_instance())
    at = raw.index(b"\x08\x00\x60\x00CS")
    return raw[:at] + inner + raw[at:]


def test_a_bomb_hurts_nobody_else(adapter: Adapter, work: Work) -> None:
    """A deflated bomb is quarantined, and its good neighbours of the batch are registered."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    association.store(make_instance())
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflater.compress(encode(make_instance()))
    for _ in range(80):
        bomb += deflater.compress(bytes(1 << 20))
    bomb += deflater.flush()
    association.store(bomb, transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
    association.store(make_instance())

    assert notification.run(work) == {"registered": 2, "quarantined": 1}
    assert rows(adapter, arrivals, arrivals.c.state == "quarantined")[0].reason == (
        "inflates-too-much"
    )


def test_the_same_again_opens_and_pushes_nothing(adapter: Adapter, work: Work) -> None:
    """An instance sent twice is counted once in its group, also when the group is closed."""
    version = add_ae_title(adapter)
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    (before,) = rows(adapter, groups)

    IncomingAssociation(adapter, version).store(ds)
    assert notification.run(work) == {"discarded": 1}

    (after,) = rows(adapter, groups)
    assert (after.instances, after.due_at) == (1, before.due_at)
    with adapter.ledger.write() as connection:
        connection.execute(groups.update().values(state="closed"))
    IncomingAssociation(adapter, version).store(ds)
    assert notification.run(work) == {"discarded": 1}
    assert len(rows(adapter, groups)) == 1


def test_resend_rerun_opens_the_next_generation(adapter: Adapter, work: Work) -> None:
    """With `resend: rerun`, the same instance sent after its group closed makes a new group."""
    version = add_ae_title(adapter, resend="rerun")
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    with adapter.ledger.write() as connection:
        connection.execute(groups.update().values(state="closed"))

    IncomingAssociation(adapter, version).store(ds)

    assert notification.run(work) == {"registered": 1}
    assert sorted(row.generation for row in rows(adapter, groups)) == [1, 2]


def test_other_bytes_do_not_overwrite_by_default(adapter: Adapter, work: Work) -> None:
    """The same UID with other bytes goes to quarantine; the first stays in the group."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    ds = make_instance()
    first = association.store(ds)
    ds.InstanceNumber = 7
    association.store(ds)

    assert notification.run(work) == {"registered": 1, "quarantined": 1}
    (kept,) = rows(adapter, arrivals, arrivals.c.state == "registered")
    assert kept.id == first


def test_other_bytes_overwrite_when_the_ae_title_says_so(adapter: Adapter, work: Work) -> None:
    """With overwriteSameInstance the group points at what was received last, in any order."""
    version = add_ae_title(adapter, overwrite_same_instance=True)
    association = IncomingAssociation(adapter, version)
    ds = make_instance()
    association.store(ds, received_at=1_800_000_000.0)
    ds.InstanceNumber = 7
    newest = association.store(ds, received_at=1_800_000_002.0)
    notification.run(work)
    ds.InstanceNumber = 8
    association.store(ds, received_at=1_800_000_001.0)
    notification.run(work)

    (kept,) = rows(adapter, arrivals, arrivals.c.state == "registered")
    assert kept.id == newest
    assert rows(adapter, groups)[0].instances == 1
    assert {row.reason for row in rows(adapter, arrivals, arrivals.c.state == "discarded")} == {
        "overwritten"
    }


def test_an_unknown_version_is_quarantined(adapter: Adapter, work: Work) -> None:
    """An arrival whose AE title version the ledger does not know is not guessed at."""
    add_ae_title(adapter)
    IncomingAssociation(adapter, 4711).store(make_instance())

    assert notification.run(work) == {"quarantined": 1}
    assert rows(adapter, arrivals)[0].reason == "unknown-version"


def test_a_registration_that_died_is_finished_by_the_next(adapter: Adapter, work: Work) -> None:
    """After a death between row and unlink, the next run only takes the file out of incoming/."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    arrival = association.store(make_instance())
    source = adapter.spool.incoming_path(arrival)
    notification.run(work)
    os.link(adapter.spool.instance_path(arrival), source)

    assert notification.run(work) == {}

    assert not source.exists()
    assert len(rows(adapter, arrivals)) == 1


def test_the_third_death_quarantines(adapter: Adapter, work: Work) -> None:
    """An arrival whose attempts die is tried alone, three times, and then kept aside unread."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    killer = association.store(make_instance())
    association.store(make_instance())
    for death in range(ARRIVAL_ATTEMPTS):
        waiting = sorted(adapter.spool.list_incoming())
        _, leased = arrivals_verbs.lease_batch(
            adapter.ledger, waiting[: 1 if death == 0 else 2], limit=10, seconds=30
        )
        assert [row.id for row in leased] == [killer]
        with adapter.ledger.write() as connection:  # the worker died: its lease runs out
            connection.execute(arrivals.update().values(lease_until=0))

    assert notification.run(work) == {"quarantined": 1, "registered": 1}
    assert rows(adapter, arrivals, arrivals.c.id == killer)[0].reason == "kills-its-worker"


def test_a_reader_that_dies_is_replaced(adapter: Adapter, work: Work) -> None:
    """The header reader's death costs no instance: a new one reads the next header."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    association.store(make_instance())
    notification.run(work)
    with work.headers.borrow() as reader:
        child = reader._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        eventually(lambda: child.poll() is not None)
    association.store(make_instance())

    assert notification.run(work) == {"registered": 1}


def test_every_observer_is_told_and_a_failing_one_holds_nothing_up(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observers hear of every instance, quarantined ones that could be read included."""
    heard: list[str] = []

    class Failing:
        def instance_stored(self, instance: object) -> None:
            raise RuntimeError("no")

    class Ending:
        def instance_stored(self, instance: object) -> None:
            sys.exit("no")

    class Listening:
        def instance_stored(self, instance: object) -> None:
            heard.append(instance.sop_instance_uid)  # type: ignore[attr-defined]

    made = [Failing(), Ending(), Listening()]
    monkeypatch.setattr(notification, "create_observers", lambda: made)
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    good, bad = make_instance(), make_instance(StudyInstanceUID=None)
    association.store(good)
    association.store(bad)

    assert notification.run(work) == {"registered": 1, "quarantined": 1}
    assert heard == [good.SOPInstanceUID, bad.SOPInstanceUID]


def test_observers_are_told_before_anything_is_recorded(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A death between the rows and what follows keeps no observer in the dark."""
    heard: list[str] = []

    class Listening:
        def instance_stored(self, instance: object) -> None:
            heard.append(instance.sop_instance_uid)  # type: ignore[attr-defined]

    class Died(BaseException):
        pass

    register = arrivals_verbs.register

    def register_and_die(*arguments: object) -> None:
        register(*arguments)  # type: ignore[arg-type]
        raise Died

    monkeypatch.setattr(notification, "create_observers", lambda: [Listening()])
    ds = make_instance()
    IncomingAssociation(adapter, add_ae_title(adapter)).store(ds)
    with monkeypatch.context() as patch:
        patch.setattr(arrivals_verbs, "register", register_and_die)
        with pytest.raises(Died):
            notification.run(work)
    notification.run(work)

    assert names(adapter.spool.incoming) == []
    assert heard == [ds.SOPInstanceUID]


def test_an_observer_that_cannot_be_made_holds_nothing_up(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in whose import or constructor fails is left out; the others are told."""
    heard: list[object] = []

    class Listening:
        def instance_stored(self, instance: object) -> None:
            heard.append(instance)

    broken = EntryPoint("broken", "there.is.no:Module", plugins.OBSERVERS)
    sound = SimpleNamespace(name="sound", load=lambda: Listening)
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group, **which: (
            [broken, sound] if group == plugins.OBSERVERS else entry_points(group=group, **which)
        ),
    )
    IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())

    assert notification.run(work) == {"registered": 1}
    assert len(heard) == 1


def test_a_failing_disk_is_not_the_files_fault(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the disk refuses, the arrivals are registered once it does not."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        for _ in range(ARRIVAL_ATTEMPTS + 1):
            with pytest.raises(OSError, match="space"):
                notification.run(work)

    assert notification.run(work) == {"registered": 1}


def test_an_instance_its_processor_does_not_want_is_counted(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An discarded instance opens no group and wakes reclamation."""
    processor = registry.create_processor
    monkeypatch.setattr(
        notification,
        "create_processor",
        lambda title: _refusing(processor(title)),
    )
    IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())

    assert notification.run(work) == {"discarded": 1}
    assert rows(adapter, groups) == []
    assert work.queues.woken == ["reclamation"]  # type: ignore[attr-defined]


def _refusing(processor: object) -> object:
    processor.group_value = lambda _instance: None  # type: ignore[attr-defined]
    return processor


def test_deep_nesting_is_quarantined(adapter: Adapter, work: Work) -> None:
    """Sequences nested deeper than the limit, before the tag that is grouped by, are refused."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    association.store(nested(60))
    association.store(nested(80))

    assert notification.run(work) == {"registered": 1, "quarantined": 1}
