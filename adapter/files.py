# SPDX-License-Identifier: Apache-2.0
"""File operations that are durable when they return, and follow no link.

`FileSystem` has the single steps; the functions below it put them in the order that makes a file
durable.  The spool is built on both; nothing here knows what a spool is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from adapter.errors import NotYetVisible, PermanentError

#: ioctl_iflags(2), and the flag of a directory whose subdirectories are laid apart.
_GET_FLAGS, _SET_FLAGS, _TOP_DIRECTORY = 0x80086601, 0x40086602, 0x00020000


class FileSystem:
    """The steps of which durable files are made, one method each, and nothing else.

    The spool takes every one of its steps through an instance of this class.  In tests one stands
    there that knows what a power loss may leave after each step (`tests/support_power_loss.py`).

    Every method raises OSError if the file system refuses the step.
    """

    def open_nameless(self, folder: Path) -> int:
        """Open a file for writing that has no name yet, and return its descriptor (O_TMPFILE)."""
        return os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)

    def open_new(self, path: Path) -> int:
        """Make a file for writing, and return its descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600)

    def write(self, descriptor: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Append bytes, in at most IOV_MAX (1024) pieces."""
        left = os.writev(descriptor, pieces) - sum(map(len, pieces))
        if left:  # a part of them: all of it once more, or the reason why not
            view = memoryview(b"".join(pieces))[left:]
            while view:
                view = view[os.write(descriptor, view) :]

    def sync_data(self, descriptor: int) -> None:
        """Make a file's bytes durable, but none of its names."""
        os.fdatasync(descriptor)

    def sync_file(self, path: Path) -> None:
        """Make the bytes of a file that somebody else wrote durable; no link is followed."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable, and the loss of names that were removed."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which nothing may have yet."""
        os.link(source, target)

    def link_nameless(self, descriptor: int, target: Path) -> None:
        """Give a nameless file a name, which nothing may have yet."""
        nameless = f"/proc/self/fd/{descriptor}"
        # Only with a directory, which is not used, does Python follow the link (linkat(2)).
        os.link(nameless, target, src_dir_fd=descriptor, follow_symlinks=True)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or folder, and replace what has the name if rename(2) allows it."""
        os.rename(source, target)  # noqa: PTH104 - the receive path: a third faster than Path's

    def unlink(self, path: Path) -> None:
        """Take away a name of a file; gone is gone, but only from a directory that is there."""
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=folder)
        finally:
            os.close(folder)

    def make_folder(self, path: Path) -> None:
        """Make a folder unless it exists already, even if this host does not see it yet."""
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)


#: The file system of this machine.
FILE_SYSTEM = FileSystem()


def spread_subdirectories(path: Path) -> None:
    """Make ext4 lay the subdirectories of this directory far from each other, and from others.

    ext4 passes over recently freed inodes one by one.  So creating a file is slow where many were
    just deleted, whoever deleted them (docs/decisions/0004).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # another file system does this in its own way
            (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags | _TOP_DIRECTORY))
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, files: FileSystem = FILE_SYSTEM) -> None:
    """Replace a small file's content so that a reader sees the old or the new, and it stays."""
    temporary = _write_temporary(path, data, files)
    try:
        files.rename(temporary, path)
    except OSError:
        files.unlink(temporary)
        raise
    files.sync_directory(path.parent)


def write_once(path: Path, data: bytes, files: FileSystem = FILE_SYSTEM) -> None:
    """Make a small file, durably, unless it exists already; several may try at the same time."""
    temporary = _write_temporary(path, data, files)
    try:
        with suppress(FileExistsError):
            files.link(temporary, path)
    finally:
        files.unlink(temporary)
    files.sync_directory(path.parent)


def _write_temporary(path: Path, data: bytes, files: FileSystem) -> Path:
    """Write and sync a file's content under a temporary name, and return that name."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    descriptor = files.open_new(temporary)
    try:
        files.write(descriptor, [data])
        files.sync_data(descriptor)
    except OSError:
        files.unlink(temporary)  # on a full disk it would stay, and fill it further
        raise
    finally:
        os.close(descriptor)
    return temporary


#: How a path begins that leads through a descriptor of this process (proc_pid_fd(5)).
_DESCRIPTORS = "/proc/self/fd/"


def outside(path: Path) -> Path:
    """Return the name, for people and other processes, of a path through a descriptor of ours.

    It is the name that the kernel knows now.  Another process that follows it may find another
    folder there, so it is for reading and for scratch files.
    """
    text = str(path)
    if not text.startswith(_DESCRIPTORS):
        return path
    number, _, rest = text.removeprefix(_DESCRIPTORS).partition("/")
    return Path(_DESCRIPTORS, number).readlink() / rest


def read_from_disk(path: Path, size: int = 65_536) -> None:
    """Read the beginning of a file, from the disk and not from the kernel's memory of it.

    Raises
    ------
    OSError
        If the disk refuses it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.read(descriptor, size)
    finally:
        os.close(descriptor)


def delete_tree(folder: Path) -> None:
    """Delete a folder and everything in it, as far as that is possible; gone is gone.

    A pipeline may nest folders deeper than Python can follow, or make them read-only.
    """
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        # Programs of their own: they begin in the parent folder, since the path may lead through a
        # descriptor of ours.
        for command in (("chmod", "-R", "u+rwX", "--"), ("rm", "-rf", "--")):
            subprocess.run(
                [*command, folder.name], cwd=folder.parent, stderr=subprocess.DEVNULL, check=False
            )


def open_beneath(root: Path, relative: str) -> int:
    """Open a regular file below a folder for reading, following no link anywhere in its path.

    Parameters
    ----------
    root : Path
        The folder; it may itself be reached through links.
    relative : str
        The file's path below it, which may come from a peer.

    Returns
    -------
    int
        The file's descriptor, for the caller to close.

    Raises
    ------
    NotYetVisible
        If there is no such file (yet).
    PermanentError
        If the path is absolute, climbs, passes a link, or names no regular file.
    """
    parts = PurePosixPath(relative).parts
    if not parts or "\0" in relative or ".." in parts or parts[0].startswith("/"):
        raise PermanentError("the path leaves its folder", "bad-path")
    folder = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = -1
    try:
        descriptor = os.open(root, folder)
        for part in parts[:-1]:
            parent, descriptor = descriptor, -1
            try:
                descriptor = os.open(part, folder | os.O_NOFOLLOW, dir_fd=parent)
            finally:
                os.close(parent)
        # Not blocking: a FIFO would hold its reader for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(parts[-1], flags, dir_fd=descriptor)
    except FileNotFoundError:
        raise NotYetVisible("a file is missing, or not visible yet") from None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENAMETOOLONG}:
            raise PermanentError("the path is no plain path to a file", "bad-path") from None
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise PermanentError("not a regular file", "bad-path")
    return file
