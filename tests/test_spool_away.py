# SPDX-License-Identifier: Apache-2.0
"""The volume of the spool leaves under a running adapter, and comes back."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from adapter import heartbeat
from adapter.api.app import create_app
from adapter.api.opening import AdapterOpening
from adapter.core import Adapter, open_adapter
from adapter.errors import LedgerError, OtherSpool, SpoolAway
from adapter.files import FileSystem, write_durably
from adapter.ledger.engines import AWAY
from adapter.ledger.schema import arrivals, groups, jobs
from adapter.scp import events
from adapter.scp.acceptance import Caller, Rejection
from adapter.scp.configuration import LiveConfiguration
from adapter.settings import Pipeline, Settings
from adapter.spool import Spool
from adapter.stages import due_stages
from adapter.verify import verify
from tests import peers
from tests.support_scp import (
    Peer,
    RealFile,
    add_fixture,
    incoming,
    recorded,
    running,
    wheel_file,
    with_scp,
)
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    end_rests,
    make_instance,
    make_work,
    rows,
)
from tests.support_waiting import eventually
from workers import grouping, notification, pipeline, reclamation, submission
from workers.stage import Work, take_all

CT = RealFile.read(wheel_file("CT_small.dcm"))
CONTEXTS = [(CT.sop_class, [CT.syntax])]


class Volume:
    """The volume of an adapter's spool, which leaves and comes back in one of many ways."""

    def __init__(self, spool: Spool, way: str) -> None:
        self.spool = spool
        self.folder = spool.folder
        self._aside = self.folder.with_name("aside")
        self._way = way
        if way == "unmounted":
            self.folder.rename(self._aside)
            self.folder.mkdir()
            self._mount()

    def _mount(self) -> None:
        command = ["mount", "--bind", str(self._aside), str(self.folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            peers.cannot(peers.Lack.MOUNTING)

    def leave(self) -> None:
        """Take the volume away, and leave what is then in its place."""
        if self._way == "unmounted":
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        elif self._way == "emptied":
            self._aside.mkdir()
            for path in self.folder.iterdir():
                path.rename(self._aside / path.name)
        else:
            self.folder.rename(self._aside)
        if self._way == "replaced":
            Spool(self.folder).create()  # what a worker of the first release made

    def come_back(self) -> None:
        """Bring it back; nothing may have landed in its place."""
        landed = list(self.folder.rglob("*.dcm")) if self.folder.exists() else []
        assert landed == []
        if self._way == "unmounted":
            self._mount()
        elif self._way == "emptied":
            for path in self._aside.iterdir():
                path.rename(self.folder / path.name)
        elif self._way == "restored":  # other inodes, the same id
            shutil.copytree(self._aside, self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._aside.rename(self.folder)

    def close(self) -> None:
        """Give the test's folder back to pytest."""
        if self._way == "unmounted":
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)


@pytest.fixture(params=["moved", "unmounted", "emptied", "replaced", "restored"])
def volume(request: pytest.FixtureRequest, adapter: Adapter) -> Iterator[Volume]:
    """The volume that the adapter's spool is on."""
    found = Volume(adapter.spool, request.param)
    yield found
    found.close()


@pytest.fixture
def moved(adapter: Adapter) -> Volume:
    """A volume that is simply not there when it is away."""
    return Volume(adapter.spool, "moved")


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    made = make_work(adapter)
    yield made
    made.headers.close()


def store(peer: Peer) -> int:
    return peer.store(CT.sop_class, CT.sop_instance, CT.data)


def test_nothing_is_acknowledged_while_the_volume_is_away(
    adapter: Adapter, settings: Settings, volume: Volume
) -> None:
    """An open association gets A700, a new one is rejected for now (2/3/1), and then all go on."""
    add_fixture(adapter)
    with running(with_scp(settings)) as scp:
        with Peer(scp, CONTEXTS) as peer:
            assert store(peer) == 0x0000
            volume.leave()
            assert store(peer) == 0xA700
            assert not Peer(scp, CONTEXTS).assoc.is_established
            volume.come_back()
            assert store(peer) == 0x0000
        with Peer(scp, CONTEXTS) as peer:
            assert store(peer) == 0x0000

        assert len(list(volume.folder.glob("incoming/*/*.dcm"))) == 3
        adapter.spool.check()  # another process finds it too
        assert len(incoming(adapter)) == 3
        (rejected,) = eventually(lambda: recorded(adapter, events.REJECTED))
    assert rejected.detail["cause"] == "spool-away"
    assert [rejected.detail[name] for name in ("result", "source", "reason")] == [2, 3, 1]


@pytest.mark.parametrize("ledger", ["there", "away"])
@pytest.mark.parametrize("way", ["moved", "replaced"])
def test_a_receiver_that_starts_without_its_volume_waits_for_it(
    adapter: Adapter, settings: Settings, way: str, ledger: str
) -> None:
    """It says that nothing can be stored now, calls nobody unknown for good, and makes no spool."""
    add_fixture(adapter)
    LiveConfiguration(adapter.spool).refresh(adapter.ledger)
    volume = Volume(adapter.spool, way)
    volume.leave()
    file = settings.data / "ledger.sqlite"
    if ledger == "away":
        adapter.ledger.close()
        file.rename(settings.data / "elsewhere")
    with running(with_scp(settings)) as scp:
        assert not Peer(scp, CONTEXTS).assoc.is_established
        if ledger == "away":
            judged = scp.acceptor.judge(Caller("PACS1", "Clara1", "127.0.0.1"), 1)
            assert judged == Rejection(2, 3, 1, "no-configuration")
        else:
            assert scp.acceptor.refuses() == "the spool is away"
        volume.come_back()

        def stores() -> bool:
            peer = Peer(scp, CONTEXTS)
            if not peer.assoc.is_established:
                return False
            with peer:
                return store(peer) == 0x0000

        eventually(stores)
    adapter.spool.check()
    assert len(incoming(adapter)) == 1


def test_no_role_makes_a_spool_in_the_place_of_one_that_is_away(
    adapter: Adapter, settings: Settings, moved: Volume
) -> None:
    """Roles and commands open the adapter without it; `up` makes none, and all find it again."""
    moved.leave()
    for create in (False, True):
        opened = open_adapter(settings, create=create)
        with pytest.raises(SpoolAway):
            opened.spool.check()
        assert not settings.spool_path.exists()
    moved.come_back()
    opened.spool.check_whole()
    opened.close()


def test_only_what_sets_an_adapter_up_makes_its_folder(tmp_path: Path, settings: Settings) -> None:
    """A role, or a command, in a wrong folder leaves nothing there."""
    with pytest.raises(LedgerError, match="there is no adapter"):
        open_adapter(settings)
    assert not settings.data.exists()


def test_the_stages_pause_and_count_nothing_while_the_volume_is_away(
    adapter: Adapter, work: Work, volume: Volume
) -> None:
    """Files that wait are no empty listing, and files that are away are not deleted."""
    version = add_ae_title(adapter)
    study = make_instance()
    association = IncomingAssociation(adapter, version)
    long_ago = adapter.ledger.now() - 20
    association.store(study, received_at=long_ago)
    association.store(study, received_at=long_ago)
    assert notification.run(work) == {"registered": 1, "discarded": 1}
    association.store(make_instance(), received_at=long_ago)

    volume.leave()
    for stage in (
        lambda: notification.run(work),
        lambda: grouping.take(work),
        lambda: reclamation.run(work),
        lambda: due_stages(adapter),
        lambda: verify(adapter, 0),
    ):
        with pytest.raises(SpoolAway):
            stage()
    assert {group.state for group in rows(adapter, groups)} == {"open"}
    assert {group.lease_expiries for group in rows(adapter, groups)} == {0}
    assert {row.deleted_at for row in rows(adapter, arrivals)} == {None}
    volume.come_back()

    assert notification.run(work) == {"registered": 1}
    assert take_all(work, grouping.take) == {"closed": 2, "jobs": 2}
    assert reclamation.run(work)["discarded"] == 1
    assert {row.attempts for row in rows(adapter, arrivals)} == {1}
    assert verify(adapter, 0) == []


def test_a_deletion_in_a_directory_that_is_absent_is_not_done(
    adapter: Adapter, moved: Volume
) -> None:
    """Neither a file nor a job's folder counts as gone where nobody can look."""
    arrival = IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())
    moved._way = "emptied"
    moved.leave()

    with pytest.raises((SpoolAway, FileNotFoundError)):
        adapter.spool.delete_arrivals([arrival])
    with pytest.raises(SpoolAway):
        adapter.spool.delete_job("00000000-0000-0000-0000-000000000000")
    with pytest.raises((SpoolAway, FileNotFoundError)):
        adapter.spool.settle_registered([arrival])
    moved.come_back()
    assert adapter.spool.incoming_path(arrival).exists()


#: Moves the spool away, waits, and moves it back when it is told: then the pipeline has failed.
COMMAND = "import os, sys; os.rename(sys.argv[1], sys.argv[2]); sys.exit(1)"


def test_a_run_that_fails_while_the_volume_is_away_costs_no_try(
    settings: Settings, adapter: Adapter, moved: Volume
) -> None:
    """The job runs again when the volume is back, and is neither tried nor parked."""
    command = [sys.executable, "-c", COMMAND, str(moved.folder), str(moved._aside)]
    lung = Pipeline.model_validate(
        {
            "name": "lung",
            "command": command,
            "maximumRetries": 0,
            "export": False,
            "isolation": "none",
        }
    )
    changed = settings.model_copy(update={"pipelines": {"lung-1": lung}})
    work = make_work(Adapter(changed, adapter.spool, adapter.ledger))
    version = add_ae_title(adapter)
    at = adapter.ledger.now() - 20
    IncomingAssociation(adapter, version).store(make_instance(), received_at=at)
    notification.run(work)
    take_all(work, grouping.take)
    take_all(work, submission.take)

    with pytest.raises(SpoolAway):
        pipeline.take(work)
    (job,) = rows(adapter, jobs)
    assert (job.state, job.tries, job.lease_expiries) == ("started", 0, 0)
    moved.come_back()
    with pytest.raises(SpoolAway):  # once more, for it moves the spool away each time
        pipeline.take(work)
    moved.come_back()
    work.headers.close()


def test_health_is_red_while_the_volume_is_away(
    settings: Settings, adapter: Adapter, moved: Volume
) -> None:
    """It says which folder is away, and is well again by itself."""
    with TestClient(create_app(AdapterOpening(settings)), "http://127.0.0.1") as client:
        eventually(lambda: client.get("/health/ready").status_code == 200)
        moved.leave()
        found = client.get("/health/status").json()
        assert found["status"] == "red"
        assert f"the spool {moved.folder} is away" in found["reasons"][0]
        moved.come_back()
        eventually(lambda: client.get("/health/ready").status_code == 200)


def test_another_spool_under_the_same_ledger_is_refused(
    adapter: Adapter, settings: Settings
) -> None:
    """Whoever finds it says so, and uses nothing of it."""
    Volume(adapter.spool, "replaced").leave()

    with pytest.raises(OtherSpool):
        adapter.spool.check()
    with pytest.raises(OtherSpool):
        open_adapter(settings)


def test_a_heartbeat_follows_the_spool_that_is_there(adapter: Adapter, settings: Settings) -> None:
    """A process that started beside another spool is seen in the right one when that is back."""
    volume = Volume(adapter.spool, "replaced")
    volume.leave()
    heart = heartbeat.Heart(Spool(settings.spool_path), "test", dict)
    heart.beat()
    volume.come_back()
    heart.beat()

    assert heart.problem is None
    assert [beat["role"] for beat in heartbeat.read_all(adapter.spool)] == ["test"]


# -- a disk that fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENOTCONN]
)
def test_trouble_of_the_disk_costs_no_attempt(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """However often it happens, the stage pauses, and the file is registered afterwards."""
    IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "link", fail)
        for _ in range(5):
            with pytest.raises(OSError, match=os.strerror(number)):
                notification.run(work)
    assert rows(adapter, arrivals)[0].attempts == 0
    assert notification.run(work) == {"registered": 1}


@pytest.mark.parametrize("others_too", [True, False])
def test_a_read_error_counts_only_if_it_stays_with_one_file(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, others_too: bool
) -> None:
    """Where the disk fails other files as well it is nobody's; else the file rests for long."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    bad, good = (association.store(make_instance()) for _ in "ab")
    real_open = os.open
    path = str(adapter.spool.outside(adapter.spool.incoming_path(bad)))

    def fails(name: object) -> bool:
        return str(name).endswith(".dcm" if others_too else f"{bad}.dcm")

    def refuse(name: object, *rest: object, **more: object) -> int:
        if fails(name):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_open(name, *rest, **more)

    reader = notification.HeaderReader
    read = reader.read

    def read_or_fail(self: object, path: Path, tags: object, **more: object) -> object:
        if fails(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, path, tags, **more)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "read", read_or_fail)
        patch.setattr(os, "open", refuse)
        if others_too:
            for _ in range(4):
                with pytest.raises(OSError, match="Input/output"):
                    notification.run(work)
            assert {row.attempts for row in rows(adapter, arrivals)} == {0}
        else:
            assert notification.run(work) == {"registered": 1}
            (row,) = rows(adapter, arrivals, arrivals.c.id == bad)
            assert (row.attempts, row.reason) == (1, "file-system")
            assert row.lease_until > adapter.ledger.now() + 5
    assert Path(path).exists()
    end_rests(adapter, arrivals)
    assert set(notification.run(work)) == {"registered"}
    assert good in {row.id for row in rows(adapter, arrivals)}


@pytest.mark.parametrize("step", ["write", "sync_data", "rename"])
def test_what_could_not_be_written_leaves_no_temporary_file(tmp_path: Path, step: str) -> None:
    """A small file on a full disk keeps its old content, and nothing fills the disk further."""

    class Full(FileSystem):
        pass

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    setattr(Full, step, fail)
    path = tmp_path / "configuration.json"
    path.write_bytes(b"old")

    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new", Full())
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [
        ("configuration.json", b"old")
    ]


# -- the file of an SQLite ledger ------------------------------------------------------------------


def test_a_ledgers_file_that_was_moved_away_is_not_made_anew(
    adapter: Adapter, settings: Settings
) -> None:
    """Processes with and without a connection wait for it, and go on with the same one."""
    file = settings.data / "ledger.sqlite"
    version = add_ae_title(adapter)
    other = open_adapter(settings)
    aside = file.rename(settings.data / "aside")
    for ledger in (adapter.ledger, other.ledger):
        with pytest.raises(AWAY):
            ledger.now()
    with pytest.raises(LedgerError):
        open_adapter(settings)
    assert not file.exists()
    aside.rename(file)

    assert add_ae_title(other, "HEART") == version + 1
    assert add_ae_title(adapter, "LIVER") == version + 2
    other.close()


def test_a_ledgers_file_that_was_replaced_is_noticed(adapter: Adapter, settings: Settings) -> None:
    """A connection that was kept open writes to the file that is there now, e.g. from a backup."""
    adapter.ledger.now()
    adapter.ledger.close()
    file = settings.data / "ledger.sqlite"
    shutil.copy(file, settings.data / "backup")
    version = add_ae_title(adapter)
    (settings.data / "backup").replace(file)
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (settings.data / name).unlink(missing_ok=True)

    assert add_ae_title(adapter) == version
