# SPDX-License-Identifier: Apache-2.0
"""What a run's folder takes of the disk, measured while the run may do anything to it.

Part of the launcher: the standard library only (`workers.clients.launcher`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

#: Folders within folders that a run may make.
DEEPEST = 64

#: Seconds between two looks, at least; one takes no more than a tenth of the time.
_PERIOD = 0.5


class DiskUse:
    """Compares what is in a run's folder with what the run may take.

    Parameters
    ----------
    folder : str
        The run's folder.
    left_out : str
        The folder in it that is not the run's own: its input.
    bytes_, files : int
        The most that it may hold.
    floor : int
        Free bytes of its disk below which the run has to end: a file without a name is seen there
        only.
    """

    def __init__(self, folder: str, left_out: str, bytes_: int, files: int, floor: int) -> None:
        self._folder = folder
        self._left_out = left_out
        self._bytes = bytes_
        self._files = files
        self._floor = floor
        self._next = 0.0
        self._size = 0
        self._number = 0

    def look(self, *, now: bool = False) -> tuple[str, str] | None:
        """Say what is too much, by a word and in words, if it is time to look; None if nothing."""
        began = time.monotonic()
        if not now and began < self._next:
            return None
        with suppress(OSError):
            space = os.statvfs(self._folder)
            if space.f_bavail * space.f_frsize < self._floor:
                return "disk-full", "stopped because the disk is full"
        problem = self._measure()
        ended = time.monotonic()
        self._next = ended + max(_PERIOD, 9 * (ended - began))
        return ("over-limit", problem) if problem else None

    def _measure(self) -> str:
        """Walk through the folder by descriptors, whatever it is turned into meanwhile."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._size = self._number = 0
        way: list[
            tuple[int, list[str]]
        ] = []  # the folders that lead here, and what is left of each
        try:
            top = os.open(self._folder, flags)
            below = [name for name in self._count(top) if name != self._left_out]
            way.append((top, below))
            while way and not (problem := self._problem(len(way))):
                handle, left = way[-1]
                if not left:
                    way.pop()
                    os.close(handle)
                    continue
                with suppress(OSError):  # gone meanwhile, or closed to us
                    folder = os.open(left.pop(), flags, dir_fd=handle)
                    way.append((folder, []))
                    way[-1][1].extend(self._count(folder))
        except OSError:  # the folder itself is gone
            return ""
        else:
            return problem if way else ""
        finally:
            for handle, _ in way:
                os.close(handle)

    def _count(self, folder: int) -> Iterator[str]:
        """Count what is in a folder, and yield the names of the folders in it."""
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    self._size += entry.stat(follow_symlinks=False).st_blocks * 512
                    self._number += 1
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name
                if self._number > self._files:
                    return

    def _problem(self, depth: int) -> str:
        if self._size > self._bytes:
            return f"its files take more than {self._bytes // 1_000_000} MB (diskMB)"
        if self._number > self._files:
            return f"it has more than {self._files} files and folders (maximumFiles)"
        return f"its folders are more than {DEEPEST} deep" if depth > DEEPEST + 1 else ""
