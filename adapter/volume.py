# SPDX-License-Identifier: Apache-2.0
"""Checks a volume: whether a spool can be on it, for one host or for several.

It tries what the durability of the spool depends on, with files in a folder of its own,
``.check-<name>``, which is removed afterwards: atomic renames, hard links, a sync that takes
effect, and clocks that agree.  With a peer (the same program on another host) it also measures how
late each host sees the other's new files.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapter.files import FILE_SYSTEM
from adapter.mounts import Mount, mount_of
from adapter.settings import Storage

#: Files written to measure how long a sync takes, and bytes of each: a CT slice.
_SYNCS, _SYNC_BYTES = 25, 524_288

#: Difference in seconds between this host's clock and the volume's that does no harm.
_SKEW = 1.0

#: Seconds between two listings of the folder, and between two files that are created for the peer.
_LOOK, _BEAT = 0.1, 0.5

_SEES = "import os, sys; sys.exit(not os.path.exists(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one probe.

    Attributes
    ----------
    probe : str
        Name of the probe.
    result : str
        ``good``, ``doubtful`` (works, with the reservation in `found`) or ``unusable``.
    found : str
        The observation, in words.
    """

    probe: str
    result: str
    found: str


GOOD, DOUBTFUL, UNUSABLE = "good", "doubtful", "unusable"


def check(folder: Path, storage: Storage) -> list[Finding]:
    """Probe the volume that a folder is on, from this host.

    Parameters
    ----------
    folder : Path
        The folder of the spool, present or future; created if it does not exist.
    storage : Storage
        The settings of the spool, for its watermark.
    """
    probes: list[tuple[str, Callable[[Path], Finding | list[Finding]]]] = [
        ("rename", _rename),
        ("hard link", _link),
        ("nameless file", _nameless),
        ("folder rename", _folder_rename),
        ("visibility here", _visibility),
        ("sync", _sync),
        ("clock", _clock),
    ]
    findings = [*_mount(mount_of(folder), storage), _space(folder, storage)]
    with _own_folder(folder) as place:
        for name, probe in probes:
            try:
                found = probe(place)
            except OSError as error:
                found = Finding(name, UNUSABLE, error.strerror or str(error))
            findings += found if isinstance(found, list) else [found]
    return findings


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    place = folder / f".check-{uuid.uuid4().hex}"
    place.mkdir(mode=0o700, parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


# -- one host ------------------------------------------------------------------------------------


def _rename(place: Path) -> Finding:
    """Replace a name: in one step, and the old content stays whole for its readers."""
    new, name = place / "new", place / "name"
    name.write_bytes(b"old")
    with name.open("rb") as before:
        new.write_bytes(b"new")
        new.replace(name)
        if before.read() != b"old" or name.read_bytes() != b"new" or new.exists():
            return Finding("rename", UNUSABLE, "a name is not replaced in one step")
    return Finding("rename", GOOD, "replaces a name in one step")


def _link(place: Path) -> Finding:
    """Give a file a second name, as registration does before it removes the first."""
    one, two = place / "one", place / "two"
    one.write_bytes(b"bytes")
    os.link(one, two)
    with suppress(FileExistsError):
        os.link(one, two)
        return Finding("hard link", UNUSABLE, "a link replaces an existing name")
    if not two.samefile(one) or one.stat().st_nlink != 2:
        return Finding("hard link", UNUSABLE, "a link is a copy")
    one.unlink()
    if two.read_bytes() != b"bytes":
        return Finding("hard link", UNUSABLE, "a file is deleted with the first of its names")
    return Finding("hard link", GOOD, "gives a file a second name, and replaces none")


def _nameless(place: Path) -> Finding:
    """Open a file without a name, as a receiver does where the file system allows it."""
    try:
        os.close(os.open(place, os.O_WRONLY | os.O_TMPFILE, 0o600))
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            raise
        return Finding("nameless file", GOOD, "not supported: temporary names are used instead")
    return Finding("nameless file", GOOD, "a file gets its name when it is whole")


def _folder_rename(place: Path) -> Finding:
    """Rename a folder to a name that can be taken only once, as results are published."""
    for name in ("first", "second"):
        (place / name).mkdir()
        (place / name / "result").write_bytes(b"1")
    (place / "first").rename(place / "results")
    with suppress(OSError):
        (place / "second").rename(place / "results")
        return Finding("folder rename", UNUSABLE, "results can be published twice")
    return Finding("folder rename", GOOD, "a folder's name can be taken once")


def _visibility(place: Path) -> Finding:
    """Look for a new name from another process of this host."""
    path = place / "seen"
    path.write_bytes(b"1")
    seen = subprocess.run([sys.executable, "-I", "-S", "-c", _SEES, str(path)], check=False)
    if seen.returncode != 0:
        return Finding("visibility here", UNUSABLE, "another process does not see a new file")
    return Finding("visibility here", GOOD, "another process sees a new file at once")


def _sync(place: Path) -> list[Finding]:
    """Measure how long it takes until bytes, and then their name, are durable."""
    files, folders = [], []
    content = os.urandom(_SYNC_BYTES)
    for number in range(_SYNCS):
        with (place / f"sync-{number}").open("wb") as file:
            file.write(content)
            file.flush()
            files.append(_seconds(lambda file=file: os.fdatasync(file.fileno())))  # type: ignore[misc]
        folders.append(_seconds(lambda: FILE_SYSTEM.sync_directory(place)))
    times = {"sync of a file": files, "sync of a folder": folders}
    return [
        Finding(
            name,
            GOOD,
            f"median {1000 * statistics.median(taken):.1f} ms, slowest {1000 * max(taken):.1f} ms",
        )
        for name, taken in times.items()
    ]


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _clock(place: Path) -> Finding:
    """Compare the volume's clock with the host's: the age of a file depends on both."""
    path = place / "clock"
    path.write_bytes(b"1")
    skew = path.stat().st_mtime - time.time()
    words = f"the volume's clock is {abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} ours"
    return Finding("clock", GOOD if abs(skew) <= _SKEW else DOUBTFUL, words)


def _space(folder: Path, storage: Storage) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    words = f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB are free"
    reserved = max(
        usage.total * (1 - storage.watermark_percent / 100), storage.reserve_space_gb * 1e9
    )
    if usage.free <= reserved:
        return Finding("space", DOUBTFUL, f"{words}: nothing would be received (watermark)")
    return Finding("space", GOOD, words)


def _mount(mount: Mount, storage: Storage) -> list[Finding]:
    """Judge the options of the mount; docs/operations.md has the reason for each."""
    found = [Finding("mount", GOOD, f"{mount.kind} at {mount.point} ({mount.source})")]
    has = mount.options
    if mount.kind in {"nfs", "nfs4"}:
        if "soft" in has or "softerr" in has:
            words = "mounted soft: a write may fail silently after Success; mount it hard"
            found.append(Finding("mount", UNUSABLE, words))
        if has.get("local_lock", "none") != "none":
            words = f"local_lock={has['local_lock']}: other hosts do not see locks; use none"
            found.append(Finding("mount", DOUBTFUL, words))
        if not has.get("vers", "4.2").startswith("4") or has.get("vers") == "4.0":
            words = f"NFS version {has['vers']}: use vers=4.1 or newer, which has sessions"
            found.append(Finding("mount", DOUBTFUL, words))
    elif mount.kind in {"tmpfs", "ramfs"}:
        words = f"{mount.kind} is memory: what is acknowledged is lost with the machine"
        found.append(Finding("mount", DOUBTFUL, words))
    elif mount.kind in {"cifs", "smb3"}:
        words = "SMB: hard links and syncs depend on the server; NFS or CephFS is the safer choice"
        found.append(Finding("mount", DOUBTFUL, words))
    if "ro" in has:
        found.append(Finding("mount", UNUSABLE, "mounted read-only"))
    return [*found, _lag(mount, storage)]


def _lag(mount: Mount, storage: Storage) -> Finding:
    lag = mount.lag_seconds if storage.lag_seconds is None else storage.lag_seconds
    words = f"new files of other hosts are expected within {lag:g} s (storage > lagSeconds)"
    if lag < mount.lag_seconds:
        more = f"{words}, but the mount's options allow {mount.lag_seconds:g} s"
        return Finding("lag", UNUSABLE, f"{more}: studies would be split")
    if lag > 10:
        return Finding("lag", DOUBTFUL, f"{words}: every study waits that long; see acdirmax")
    return Finding("lag", GOOD, words)


# -- two hosts -----------------------------------------------------------------------------------


def meet(folder: Path, word: str, wait_seconds: float, lag_seconds: float) -> list[Finding]:
    """Measure with the same program on another host how late names appear, and compare clocks.

    Each creates a file every half second, named by its time, and looks for the other's files.

    Parameters
    ----------
    folder : Path
        The spool's folder.
    word : str
        The word that was given to both, by which they find each other.
    wait_seconds : float
        Seconds to wait for the other, and to watch its files.
    lag_seconds : float
        Seconds within which new files are expected.
    """
    # Not in a folder of their own: the folder itself would appear late.
    theirs = f".check-peer-{word}-"
    mine = f"{theirs}{socket.gethostname()}-{os.getpid()}@"
    delays: list[float] = []
    seen: set[str] = set()
    began = time.time()
    until, next_beat = began + wait_seconds, 0.0
    made: list[Path] = []
    try:
        while time.time() < until:
            if time.time() >= next_beat:
                made.append(folder / f"{mine}{time.time():.3f}")
                made[-1].touch(mode=0o600)
                next_beat = time.time() + _BEAT
            for name in os.listdir(folder):  # noqa: PTH208 - names are all that is wanted
                if name.startswith(theirs) and not name.startswith(mine) and name not in seen:
                    seen.add(name)
                    made_at = float(name.rpartition("@")[2])
                    if made_at >= began:  # else it was created before the measurement began
                        delays.append(time.time() - made_at)
            time.sleep(_LOOK)
    finally:
        for path in made:
            path.unlink(missing_ok=True)
    return [_judge_peer(delays, wait_seconds, lag_seconds)]


def _judge_peer(delays: list[float], wait_seconds: float, lag_seconds: float) -> Finding:
    if not delays:
        words = f"no file of a peer was seen in {wait_seconds:g} s: is it on the same volume?"
        return Finding("peer", UNUSABLE, words)
    words = (
        f"{len(delays)} files seen {min(delays):.2f} to {max(delays):.2f} s after they were made"
    )
    if min(delays) < -_SKEW:
        return Finding("peer", DOUBTFUL, f"{words}: the hosts' clocks disagree; run NTP on both")
    if max(delays) > lag_seconds + _SKEW:
        more = f"later than the expected {lag_seconds:g} s; set storage > lagSeconds"
        return Finding("peer", UNUSABLE, f"{words}, {more}")
    return Finding("peer", GOOD, words)
