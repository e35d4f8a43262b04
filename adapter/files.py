# SPDX-License-Identifier: Apache-2.0
"""File operations that keep their word: durable when they return, and following no link.

What the spool is made of; nothing here knows what a spool is.
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
from contextlib import suppress
from pathlib import Path, PurePosixPath

from adapter.errors import NotYetVisible, PermanentError

#: ioctl_iflags(2), and the flag of a directory whose subdirectories are no kin of each other.
_GET_FLAGS, _SET_FLAGS, _TOP_DIRECTORY = 0x80086601, 0x40086602, 0x00020000


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder unless it is there already, be it not to be seen yet on this host."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)


def spread_subdirectories(path: Path) -> None:
    """Let ext4 lay the directories that are made in this one far from each other, and from others.

    It passes over inodes that were freed in the last minutes one by one, so that a file is slow to
    make where many were just deleted, whoever deleted them (docs/decisions/0004).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # another file system, which has its own ways
            (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
            fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags | _TOP_DIRECTORY))
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file's content so that a reader sees the old or the new, and it stays."""
    temporary = _write_beside(path, data)
    temporary.replace(path)
    sync_directory(path.parent)


def write_once(path: Path, data: bytes) -> None:
    """Make a small file, durably, unless it is there already, whoever makes it at the same time."""
    temporary = _write_beside(path, data)
    try:
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def _write_beside(path: Path, data: bytes) -> Path:
    """Write and sync a file's content under a name of its own, and return that."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def delete_tree(folder: Path) -> None:
    """Delete a folder with all that is in it, as far as that can be done; gone is gone.

    A pipeline may have nested folders deeper than Python can follow, or made them read-only.
    """
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for command in (("chmod", "-R", "u+rwX", "--"), ("rm", "-rf", "--")):
            subprocess.run([*command, folder], stderr=subprocess.DEVNULL, check=False)


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
