# SPDX-License-Identifier: Apache-2.0
"""The spool: where every file is, and the durability rules that make a Success a promise.

::

    spool/
      id                      the random id that it shares with its ledger
      key                     the key of the hashes of grouping values and patients
      configuration.json      the SCP's copy of AE titles, sources and destinations
      incoming/<nn>/          <arrival>.dcm: acknowledged, not yet registered; .*.part: on its way
      instances/<nn>/         <arrival>.dcm: registered
      quarantine/             <arrival>.dcm: could not be processed; the reason is in the ledger
      results/<job>/          what a pipeline produced, published whole by one rename
      work/<job>/             payload and running attempts of the embedded platform
      status/                 heartbeats of the roles

The rules: a name becomes visible only when its file is whole; data, then name, then directory are
synced before anybody is told; files are never overwritten; no name comes from the wire.  The set of
directories is made once, synced, and never removed.

Every step that changes or syncs a file is taken through a `FileSystem`.  `tests/test_power_loss.py`
takes each sync, link and rename away, one at a time, and shows what a power loss would then break.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.errors import NotYetVisible, SpoolError
from adapter.files import (
    FILE_SYSTEM,
    FileSystem,
    delete_tree,
    spread_subdirectories,
    write_durably,
    write_once,
)
from adapter.models import ArrivalId
from adapter.settings import Storage

#: The number of directories <nn> under incoming/ and instances/; fixed for the life of a spool.
SHARDS = 16

#: The answers of open where O_TMPFILE is unknown (open(2)).
_NO_NAMELESS_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}

_FOLDERS = ("incoming", "instances", "quarantine", "results", "work", "status")


def _shard(association: str) -> str:
    return f"{zlib.crc32(association.encode('ascii')) % SHARDS:02d}"


class IncomingFile:
    """A file on its way into incoming/: invisible until `publish`, gone after `discard`.

    Until then it has no name, so that nothing of it stays however its process ends.  On a file
    system without nameless files (NFS, CephFS) it has a temporary name.

    Parameters
    ----------
    folder : Path
        The directory in incoming/ for its association's files.
    durable : bool, optional
        False syncs nothing: for benchmarks only.
    files : FileSystem, optional
        Takes each step.
    """

    def __init__(
        self, folder: Path, *, durable: bool = True, files: FileSystem = FILE_SYSTEM
    ) -> None:
        self._folder = folder
        self._durable = durable
        self._files = files
        self._path: Path | None = None
        try:
            self._descriptor = files.open_nameless(folder)
        except OSError as error:
            if error.errno not in _NO_NAMELESS_FILES:
                raise
            path = folder / f".{uuid.uuid4().hex}.part"
            self._descriptor = files.open_new(path)
            self._path = path

    def write(self, *pieces: bytes | memoryview) -> None:
        """Append bytes, in at most IOV_MAX (1024) pieces.

        Raises
        ------
        OSError
            If the file system refuses them, e.g. ENOSPC.
        """
        self._files.write(self._descriptor, pieces)

    def sync(self) -> None:
        """Make the bytes durable; the arrival's receive time is taken after this.

        Raises
        ------
        OSError
            If the disk failed: the file has to be discarded, never synced again.
        """
        if self._durable:
            self._files.sync_data(self._descriptor)

    def publish(self, arrival: ArrivalId) -> Path:
        """Make the synced file visible under its arrival's name, durably, and return its path.

        Raises
        ------
        OSError
            If it fails; the caller then discards the file, which withdraws the name.
        """
        target = self._folder / f"{arrival}.dcm"
        if self._path is None:
            self._files.link_nameless(self._descriptor, target)
        else:
            self._files.rename(self._path, target)
        self._path = target
        if self._durable:
            self._files.sync_directory(self._folder)
        self._close()
        return target

    def discard(self) -> None:
        """Remove the file, visible or not."""
        self._close()
        if self._path is not None:
            self._files.unlink(self._path)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The spool's disk: bytes in all, free bytes, and whether receiving stops.

    Attributes
    ----------
    reserved : int
        Free bytes at which it stops.
    """

    total: int
    free: int
    low: bool
    reserved: int = 0


class Spool:
    """The spool under one folder.

    Parameters
    ----------
    root : Path
        The spool's folder.
    files : FileSystem, optional
        Takes each step that changes or syncs a file.
    """

    def __init__(self, root: Path, files: FileSystem = FILE_SYSTEM) -> None:
        self.root = root
        self.files = files
        self.incoming = root / "incoming"
        self.instances = root / "instances"
        self.quarantine = root / "quarantine"
        self.results = root / "results"
        self.work = root / "work"
        self.status = root / "status"

    # -- made once ---------------------------------------------------------------------------

    def create(self) -> None:
        """Make the directories and the id, durably; what exists already stays as it is."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _FOLDERS:
            self.files.make_folder(self.root / name)
        spread_subdirectories(self.incoming)
        for number in range(SHARDS):
            for top in (self.incoming, self.instances):
                self.files.make_folder(top / f"{number:02d}")
        for folder in (self.incoming, self.instances, self.root, self.root.parent):
            self.files.sync_directory(folder)
        for folder in self.root.parent.parents:  # new too, perhaps
            with suppress(OSError):  # not ours to read: then somebody else made what is in it
                self.files.sync_directory(folder)
        if not (self.root / "id").exists():
            write_once(self.root / "key", secrets.token_hex(32).encode("ascii"), self.files)
            write_once(self.root / "id", uuid.uuid4().hex.encode("ascii"), self.files)

    @property
    def id(self) -> str:
        """The random id that the spool shares with its ledger.

        Raises
        ------
        SpoolError
            If there is no spool here.
        """
        try:
            return (self.root / "id").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise SpoolError(f"no spool at {self.root}: start the adapter once with `up`") from None

    def hash_key(self) -> bytes:
        """Return the key of the hashes that stand in the ledger instead of patient data.

        It is here and not in the ledger, so that the ledger alone tells nobody the values.  A
        ledger that is rebuilt makes the same ids of groups and jobs with it.
        """
        return bytes.fromhex((self.root / "key").read_text(encoding="ascii"))

    def holds_instances(self) -> bool:
        """Tell whether any acknowledged instance is here."""
        return any(True for _ in self.list_incoming()) or any(True for _ in self.list_instances())

    # -- arrivals ----------------------------------------------------------------------------

    def receive(self, association: str, *, durable: bool = True) -> IncomingFile:
        """Begin a file of an association in incoming/.

        Parameters
        ----------
        association : str
            Whose it is; says which directory it goes to.
        durable : bool, optional
            False syncs nothing: for benchmarks only.

        Raises
        ------
        OSError
            If the file system refuses it.
        """
        folder = self.incoming / _shard(association)
        return IncomingFile(folder, durable=durable, files=self.files)

    def list_incoming(self) -> Iterator[ArrivalId]:
        """Yield the arrivals that wait for registration, in no order."""
        return self._list(self.incoming)

    def waits_since(self, moment: float) -> bool:
        """Tell whether an arrival received before `moment` still waits for registration."""
        return any(arrival.received_at < moment for arrival in self.list_incoming())

    def list_instances(self) -> Iterator[ArrivalId]:
        """Yield the arrivals whose files are in instances/, in no order."""
        return self._list(self.instances)

    def list_quarantine(self) -> Iterator[ArrivalId]:
        """Yield the arrivals whose files are in quarantine/, in no order."""
        return self._scan(self.quarantine)

    def incoming_path(self, arrival: str) -> Path:
        """Return where an arrival is before its registration."""
        return self.incoming / _shard(ArrivalId.parse(arrival).association) / f"{arrival}.dcm"

    def instance_path(self, arrival: str) -> Path:
        """Return where a registered arrival is."""
        return self.instances / _shard(ArrivalId.parse(arrival).association) / f"{arrival}.dcm"

    def quarantine_path(self, arrival: str) -> Path:
        """Return where a quarantined arrival is."""
        return self.quarantine / f"{arrival}.dcm"

    def link_instances(self, arrivals: Iterable[str]) -> None:
        """Give files of incoming/ their names in instances/, durably; again does no harm."""
        self._link_durably((self.incoming_path(a), self.instance_path(a)) for a in arrivals)

    def link_incoming(self, arrivals: Iterable[str]) -> None:
        """Give files of instances/ their names in incoming/ again, to register them anew.

        Nothing is synced: until they have rows, the next sweep finds them in instances/ again.
        """
        for arrival in arrivals:
            self._link(self.instance_path(arrival), self.incoming_path(arrival))

    def settle_registered(self, arrivals: Iterable[str]) -> None:
        """Take registered files out of incoming/: the last step of a registration.

        Nothing is synced: a name that comes back is settled again, by its row.
        """
        for arrival in arrivals:
            self.files.unlink(self.incoming_path(arrival))

    def settle_quarantined(self, arrival: str) -> None:
        """Move a file to quarantine/, durably, from wherever its registration left it.

        By renaming: a file that may not be linked (its owner is another user, link(2)) may still be
        moved.
        """
        self._move(
            (self.incoming_path(arrival), self.instance_path(arrival)),
            self.quarantine_path(arrival),
        )

    def settle_retried(self, arrival: str) -> None:
        """Move a quarantined file back to incoming/, durably; twice is as good as once.

        Raises
        ------
        NotYetVisible
            If it is in neither place.
        """
        target = self.incoming_path(arrival)
        self._move((self.quarantine_path(arrival), self.instance_path(arrival)), target)
        if not target.exists():
            raise NotYetVisible("a quarantined file is not visible (yet)")

    def find_quarantined(self, arrival: str) -> Path:
        """Return where a quarantined file is: it stays where it was if it could not be moved."""
        expected = self.quarantine_path(arrival)
        places = (expected, self.incoming_path(arrival), self.instance_path(arrival))
        return next((path for path in places if path.exists()), expected)

    def probe(self, arrival: str) -> None:
        """Do with a file of our own what registration does with an arrival's.

        Raises
        ------
        OSError
            If it fails: then the spool is at fault, and not one arrival's file.
        """
        name = f".{uuid.uuid4().hex}.part"
        source = self.incoming_path(arrival).with_name(name)
        target = self.instance_path(arrival).with_name(name)
        try:
            descriptor = self.files.open_new(source)
            try:
                self.files.write(descriptor, [b"probe"])
            finally:
                os.close(descriptor)
            self.files.link(source, target)
            self.files.sync_directory(target.parent)
            source.read_bytes()
        finally:
            for path in (source, target):
                self.files.unlink(path)

    def delete_arrivals(self, arrivals: Iterable[str]) -> dict[str, OSError]:
        """Delete arrivals' files wherever they are, durably; already gone is gone.

        A file that came back after its row said that it is deleted would stay until the row is
        forgotten, and then be registered anew.  In incoming/ its row settles it.

        Returns
        -------
        dict of str to OSError
            The arrivals whose files cannot be deleted, and why.
        """
        folders: set[Path] = set()
        refused: dict[str, OSError] = {}
        for arrival in arrivals:
            kept = (self.instance_path(arrival), self.quarantine_path(arrival))
            folders.update(path.parent for path in kept)
            try:
                for path in (*kept, self.incoming_path(arrival)):
                    self.files.unlink(path)
            except OSError as error:
                refused[arrival] = error
        for folder in folders:  # also where nothing was: who deleted it may have died before this
            self.files.sync_directory(folder)
        return refused

    def _link_durably(self, pairs: Iterable[tuple[Path, Path]]) -> None:
        folders = set()
        for source, target in pairs:
            self._link(source, target)
            folders.add(target.parent)
        for folder in folders:  # also of names that exist: who gave them may have died before this
            self.files.sync_directory(folder)

    def _link(self, source: Path, target: Path) -> None:
        try:
            self.files.link(source, target)
        except FileExistsError:
            pass
        except FileNotFoundError:
            if not target.exists():
                raise NotYetVisible("a file of the spool is not visible (yet)") from None

    def _move(self, sources: Iterable[Path], target: Path) -> None:
        """Move a file to its new name, durably, from each of the names that it may have."""
        moved = False
        for source in sources:
            with suppress(FileNotFoundError):
                self.files.rename(source, target)
                # Where both are names of one file rename(2) leaves them as they are.
                self.files.unlink(source)
                moved = True
        if moved or target.exists():
            self.files.sync_directory(target.parent)

    def _list(self, top: Path) -> Iterator[ArrivalId]:
        for number in range(SHARDS):
            yield from self._scan(top / f"{number:02d}")

    @staticmethod
    def _scan(folder: Path) -> Iterator[ArrivalId]:
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if entry.name.endswith(".dcm"):
                    with suppress(ValueError):  # what no SCP named is not ours to read
                        yield ArrivalId.parse(entry.name[:-4])

    def delete_stale(self, before: float) -> int:
        """Delete unfinished files last written before a time, and return how many there were."""
        count = 0
        for number in range(SHARDS):
            for top in (self.incoming, self.instances):
                for path in (top / f"{number:02d}").glob(".*.part"):
                    with suppress(FileNotFoundError):
                        if path.stat().st_mtime < before:
                            self.files.unlink(path)
                            count += 1
        return count

    # -- results -----------------------------------------------------------------------------

    def result_folder(self, job: str) -> Path:
        """Return the folder that a job's results are published as."""
        return self.results / str(uuid.UUID(job))

    def work_folder(self, job: str) -> Path:
        """Return the folder of a job's payload and attempts."""
        return self.work / str(uuid.UUID(job))

    def make_work_folder(self, job: str) -> None:
        """Make the folder of a job's payload and attempts, durably, unless it exists already."""
        self.files.make_folder(self.work_folder(job))
        self.files.sync_directory(self.work)

    def publish_results(self, job: str, folder: Path) -> bool:
        """Publish a folder of files as a job's results, durably and at most once.

        Returns
        -------
        bool
            False if the job's results had been published before; `folder` is then left alone.
        """
        for path in folder.iterdir():
            self.files.sync_file(path)
        self.files.sync_directory(folder)
        published = True
        try:
            self.files.rename(folder, self.result_folder(job))
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            published = False
        self.files.sync_directory(self.results)  # also for whoever published before, and died
        return published

    def has_results(self, job: str) -> bool:
        """Tell whether a job's results are published; what is, is durable then."""
        if not self.result_folder(job).exists():
            return False
        self.files.sync_directory(self.results)  # who published them may have died before this
        return True

    def list_jobs(self) -> Iterator[str]:
        """Yield the jobs that have a folder of results or of work; those with both, twice."""
        for top in (self.results, self.work):
            for path in top.iterdir():
                with suppress(ValueError):  # what no stage named is not ours to read
                    yield str(uuid.UUID(path.name))

    def delete_job(self, job: str) -> None:
        """Delete a job's results, payload and attempts; already gone is gone.

        Nothing is synced: the sweep deletes whatever comes back of a reclaimed group's jobs.

        Raises
        ------
        OSError
            If something of it cannot be deleted.
        """
        for folder in (self.result_folder(job), self.work_folder(job)):
            delete_tree(folder)
            if folder.exists():
                shutil.rmtree(folder)  # once more, to learn why

    # -- what the SCP needs when ledger and Redis are away -----------------------------------

    def write_configuration(self, snapshot: dict[str, Any]) -> None:
        """Keep a copy of the configuration beside the files."""
        data = json.dumps(snapshot).encode("utf-8")
        write_durably(self.root / "configuration.json", data, self.files)

    def read_configuration(self) -> dict[str, Any] | None:
        """Return the copy of the configuration, or None if there never was one."""
        try:
            text = (self.root / "configuration.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        snapshot: dict[str, Any] = json.loads(text)
        return snapshot

    # -- space -------------------------------------------------------------------------------

    def space(self, storage: Storage) -> DiskSpace:
        """Read the disk's space now, and judge it by the original's rule.

        Parameters
        ----------
        storage : Storage
            Says which share of the disk may be used, and how much to keep free.
        """
        usage = shutil.disk_usage(self.root)
        reserved = max(
            usage.total * (1 - storage.watermark_percent / 100), storage.reserve_space_gb * 1e9
        )
        return DiskSpace(usage.total, usage.free, usage.free <= reserved, int(reserved))
