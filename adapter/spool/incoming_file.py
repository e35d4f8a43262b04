# SPDX-License-Identifier: Apache-2.0
"""A file on its way into incoming/: nameless where that can be, else under a temporary name."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from adapter.files import FILE_SYSTEM, FileSystem
from adapter.models import ArrivalId
from adapter.spool.held_folder import HeldFolder

#: The answers of open where O_TMPFILE is unknown (open(2)).
_NO_NAMELESS_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


class IncomingFile:
    """A file on its way into incoming/: invisible until `publish`, gone after `discard`.

    Until then it has no name, so that nothing of it stays however its process ends.  On a file
    system without nameless files (NFS, CephFS) it has a temporary name.

    Parameters
    ----------
    held : HeldFolder
        The spool's folder.
    folder : Path
        The directory in incoming/ for its association's files.
    durable : bool, optional
        False syncs nothing: for benchmarks only.
    files : FileSystem, optional
        Takes each step.
    """

    def __init__(
        self,
        held: HeldFolder,
        folder: Path,
        *,
        durable: bool = True,
        files: FileSystem = FILE_SYSTEM,
    ) -> None:
        self._held = held
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

    def publish(self, arrival: ArrivalId, visible: Callable[[], None] = lambda: None) -> Path:
        """Make the synced file visible under its arrival's name, durably, and return its path.

        Parameters
        ----------
        arrival : ArrivalId
            Names the file.
        visible : callable, optional
            Called when the name is visible; may raise OSError.

        Raises
        ------
        OSError, SpoolAway
            If it fails; the caller then discards the file, which withdraws the name.
        """
        target = self._folder / f"{arrival}.dcm"
        with self._held.unchanged():
            if self._path is None:
                self._files.link_nameless(self._descriptor, target)
            else:
                self._files.rename(self._path, target)
            self._path = target
            visible()
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
