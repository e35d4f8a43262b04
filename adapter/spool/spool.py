# SPDX-License-Identifier: Apache-2.0
"""The spool's layout, and the operations on it in the order that makes them durable."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from adapter import job_output
from adapter.errors import NotYetVisible, SpoolAway
from adapter.files import (
    FILE_SYSTEM,
    FileSystem,
    delete_tree,
    outside,
    read_from_disk,
    spread_subdirectories,
    write_durably,
    write_once,
)
from adapter.models import ArrivalId
from adapter.settings import Storage
from adapter.spool.held_folder import HeldFolder
from adapter.spool.incoming_file import IncomingFile

#: The number of directories <nn> under incoming/ and instances/; fixed for the life of a spool.
SHARDS = 16

#: Inodes that have to be free: the stages need some for their own files.
_SPARE_INODES = 1000
#: Other arrivals' files that are read to find out whether one file or the disk fails.
_OTHERS = 3

_FOLDERS = ("incoming", "instances", "quarantine", "results", "work", "status")


def shards(top: Path) -> list[Path]:
    """Return the directories <nn> under incoming/ or instances/."""
    return [top / f"{number:02d}" for number in range(SHARDS)]


def _shard(association: str) -> str:
    return f"{zlib.crc32(association.encode('ascii')) % SHARDS:02d}"


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The spool's disk: bytes in all, free bytes, and whether receiving stops.

    Attributes
    ----------
    reserved : int
        Free bytes at which it stops.
    problem : str
        Why it stops, in words that follow "the disk"; empty if it does not.
    """

    total: int
    free: int
    low: bool
    reserved: int = 0
    problem: str = ""


class Spool:
    """The spool under one folder, which need not be there (yet).

    Parameters
    ----------
    folder : Path
        The spool's folder, by its name.
    files : FileSystem, optional
        Takes each step that changes or syncs a file.

    Attributes
    ----------
    root : Path
        The folder that is held, for this process.  All other paths are below it.
    """

    def __init__(self, folder: Path, files: FileSystem = FILE_SYSTEM) -> None:
        self.folder = folder
        self.files = files
        self._held = HeldFolder(folder)
        self.root = root = self._held.path
        self.incoming = root / "incoming"
        self.instances = root / "instances"
        self.quarantine = root / "quarantine"
        self.results = root / "results"
        self.work = root / "work"
        self.status = root / "status"
        with suppress(SpoolAway):
            self._held.check()

    # -- the folder --------------------------------------------------------------------------

    def create(self) -> None:
        """Make the directories and the id, durably; what exists already stays as it is.

        Only for a spool that no ledger names: in the place of one that is away there would then be
        another, which nobody looks for.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held.hold_new()
        for name in _FOLDERS:
            self.files.make_folder(self.root / name)
        spread_subdirectories(self.incoming)
        for folder in (*shards(self.incoming), *shards(self.instances)):
            self.files.make_folder(folder)
        for folder in (self.incoming, self.instances, self.root, self.folder.parent):
            self.files.sync_directory(folder)
        for folder in self.folder.parent.parents:  # new too, perhaps
            with suppress(OSError):  # not ours to read: then somebody else made what is in it
                self.files.sync_directory(folder)
        if not (self.root / "id").exists():
            write_once(self.root / "key", secrets.token_hex(32).encode("ascii"), self.files)
            write_once(self.root / "id", uuid.uuid4().hex.encode("ascii"), self.files)
        self._held.learn_id()

    def check(self) -> None:
        """Make sure that the folder's name leads to this spool; one stat(2) if it does.

        Raises
        ------
        SpoolAway
            If it does not.
        """
        self._held.check()

    def check_id(self) -> None:
        """Make sure, as `check` does, and that it has its id.

        Raises
        ------
        SpoolAway
            If it does not.
        """
        self._held.check_id()

    def check_whole(self, since: float | None = None) -> None:
        """Make sure that the spool is there with its id and all its directories.

        Parameters
        ----------
        since : float, optional
            A moment (``time.monotonic``) since which it must not have been found away either:
            what went wrong since then may have gone wrong for that reason.

        Raises
        ------
        SpoolAway
            If it is or was not.
        """
        self._held.check_id()
        directories = (self.root / name for name in _FOLDERS)
        for folder in (*directories, *shards(self.incoming), *shards(self.instances)):
            if not folder.is_dir():
                raise self._held.away(f"{folder.relative_to(self.root)} is missing")
        if since is not None and self._held.was_away(since):
            raise SpoolAway(f"the spool {self.folder} was away for a while")

    def expect(self, known: str) -> None:
        """Be the spool with this id, which is the one that a ledger names, and no other.

        Raises
        ------
        SpoolAway
            If that one is not there.
        """
        self._held.expect(known)

    @property
    def known_id(self) -> str | None:
        """The id of the spool that is held or expected, be it there or not; None if unknown."""
        return self._held.id

    @property
    def id(self) -> str:
        """The random id that the spool shares with its ledger.

        Raises
        ------
        SpoolAway
            If there is no spool here.
        """
        self._held.check()
        assert self._held.id is not None
        return self._held.id

    @staticmethod
    def outside(path: Path) -> Path:
        """Return the name of a file or folder of the spool for people and other processes."""
        return outside(path)

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
        return IncomingFile(self._held, folder, durable=durable, files=self.files)

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
            self.check_whole()
            raise NotYetVisible("a quarantined file is not visible (yet)")

    def find_quarantined(self, arrival: str) -> Path:
        """Return where a quarantined file is: it stays where it was if it could not be moved."""
        expected = self.quarantine_path(arrival)
        places = (expected, self.incoming_path(arrival), self.instance_path(arrival))
        return next((path for path in places if path.exists()), expected)

    def probe(self, arrival: str) -> None:
        """Do with a file of our own what registration does with an arrival's, and read others.

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
                self.files.sync_data(descriptor)
            finally:
                os.close(descriptor)
            self.files.link(source, target)
            self.files.sync_directory(target.parent)
            read_from_disk(source)
            self._read_others(arrival)
        finally:
            for path in (source, target):
                self.files.unlink(path)

    def _read_others(self, arrival: str) -> None:
        """Read the beginning of some other arrivals' files."""
        others = (
            path
            for folder in (self.incoming_path(arrival).parent, self.instance_path(arrival).parent)
            for path in folder.glob("*.dcm")
            if path.stem != arrival
        )
        for path in islice(others, _OTHERS):
            with suppress(FileNotFoundError):  # it was settled meanwhile
                read_from_disk(path)

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
        with self._held.unchanged():
            for arrival in arrivals:
                kept = (self.instance_path(arrival), self.quarantine_path(arrival))
                folders.update(path.parent for path in kept)
                try:
                    for path in (*kept, self.incoming_path(arrival)):
                        self.files.unlink(path)
                except OSError as error:
                    refused[arrival] = error
            for folder in folders:  # also where nothing was: who deleted may have died before this
                self.files.sync_directory(folder)
        return refused

    def _link_durably(self, pairs: Iterable[tuple[Path, Path]]) -> None:
        folders = set()
        with self._held.unchanged():
            for source, target in pairs:
                self._link(source, target)
                folders.add(target.parent)
            for folder in folders:  # also of names that exist: who gave them may have died by now
                self.files.sync_directory(folder)

    def _link(self, source: Path, target: Path) -> None:
        try:
            self.files.link(source, target)
        except FileExistsError:
            pass
        except FileNotFoundError:
            if not target.exists():
                self.check_whole()
                raise NotYetVisible("a file of the spool is not visible (yet)") from None

    def _move(self, sources: Iterable[Path], target: Path) -> None:
        """Move a file to its new name, durably, from each of the names that it may have."""
        moved = False
        with self._held.unchanged():
            for source in sources:
                with suppress(FileNotFoundError):
                    self.files.rename(source, target)
                    # Where both are names of one file rename(2) leaves them as they are.
                    self.files.unlink(source)
                    moved = True
            if moved or target.exists():
                self.files.sync_directory(target.parent)

    def _list(self, top: Path) -> Iterator[ArrivalId]:
        for folder in shards(top):
            yield from self._scan(folder)

    def _scan(self, folder: Path) -> Iterator[ArrivalId]:
        """Yield the arrivals in a directory.

        Raises
        ------
        SpoolAway
            If it is not there, so that nobody knows what is in it.
        """
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            raise self._held.away(f"{folder.relative_to(self.root)} is missing") from None
        with entries:
            for entry in entries:
                if entry.name.endswith(".dcm"):
                    with suppress(ValueError):  # what no SCP named is not ours to read
                        yield ArrivalId.parse(entry.name[:-4])

    def delete_stale(self, before: float) -> int:
        """Delete unfinished files last written before a time, and return how many there were."""
        count = 0
        for folder in (*shards(self.incoming), *shards(self.instances), self.root, self.status):
            for path in folder.glob(".*.part"):
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
        published = True
        with self._held.unchanged():
            for path in folder.iterdir():
                self.files.sync_file(path)
            self.files.sync_directory(folder)
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
            self.check_whole()
            return False
        self.files.sync_directory(self.results)  # who published them may have died before this
        return True

    def list_jobs(self) -> Iterator[str]:
        """Yield the jobs that have a folder of results or of work; those with both, twice.

        Folders that hold only what a reclaimed job's pipeline printed do not count.
        """
        for top in (self.results, self.work):
            for path in top.iterdir():
                with suppress(ValueError):  # what no stage named is not ours to read
                    job = str(uuid.UUID(path.name))
                    if not (top == self.work and job_output.is_all_that_is_left(path)):
                        yield job

    def delete_job(self, job: str) -> None:
        """Delete a job's results, payload and attempts; already gone is gone.

        What its pipeline printed stays (`adapter.job_output`).

        Nothing is synced: the sweep deletes whatever comes back of a reclaimed group's jobs.

        Raises
        ------
        OSError
            If something of it cannot be deleted.
        SpoolAway
            If nobody knows whether it is gone.
        """
        began = time.monotonic()
        folder = self.result_folder(job)
        delete_tree(folder)
        if folder.exists():
            shutil.rmtree(folder)  # once more, to learn why
        job_output.delete_all_else(self.work_folder(job))
        self.check_whole(began)

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

        A disk that is mounted read-only, or has no inodes left, takes nothing either.

        Parameters
        ----------
        storage : Storage
            Says which share of the disk may be used, and how much to keep free.

        Raises
        ------
        OSError
            If the disk cannot be read.
        SpoolAway
            If the spool was never there.
        """
        if not self._held.is_held:
            raise self._held.away("it was not found yet")
        found = os.statvfs(self.root)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        reserved = max(
            total * (1 - storage.watermark_percent / 100), storage.reserve_space_gb * 1e9
        )
        problem = ""
        if found.f_flag & os.ST_RDONLY:
            problem = "is mounted read-only"
        elif found.f_files and found.f_favail < _SPARE_INODES:  # some file systems have no limit
            problem = "has no inodes left"
        elif free <= reserved:
            problem = "is above the watermark"
        return DiskSpace(total, free, bool(problem), int(reserved), problem)
