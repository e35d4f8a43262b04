# SPDX-License-Identifier: Apache-2.0
"""A folder that is held by an open descriptor, so that nothing lands in another of its name.

The name of a mounted folder leads elsewhere as soon as its volume leaves: to the mount point below
it, or to a folder that somebody has made there.  So everything in a held folder is reached through
a path that begins at the descriptor (``/proc/self/fd/<number>``, proc_pid_fd(5)).  The folder's
name is only looked at to find out whether it still leads to the folder that is held.

The number never changes.  A volume that was away and comes back as another mount is put behind the
same number by dup2(2), but only if it has the same id.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapter.errors import OtherSpool, SpoolAway

#: What is held before there is a folder: nothing can be reached or made below it.
_NOTHING = "/dev/null"

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class HeldFolder:
    """A folder that is known by its id, a file ``id`` in it.

    Until somebody says which id it has to be (`expect`), it is the folder that is there.

    Parameters
    ----------
    name : Path
        Where it is to be found.

    Attributes
    ----------
    path : Path
        The folder that is held, for this process: what is below it stays in that folder.
    """

    def __init__(self, name: Path) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._descriptor = os.open(_NOTHING, os.O_PATH | os.O_CLOEXEC)
        # Not earlier, and not at the end of the process: a path through it may be in use.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self.path = Path(f"/proc/self/fd/{self._descriptor}")
        self._identity: tuple[int, int] | None = None
        self._holding = 0
        self._away_at = float("-inf")
        #: the id of the folder that is held, or has to be; None before it is known
        self.id: str | None = None
        self._expected = False

    @property
    def is_held(self) -> bool:
        """Whether there is a folder behind the descriptor, wherever it is now."""
        return self._holding > 0

    def check(self) -> None:
        """Make sure that the name leads to the folder that is held, or to it as it has come back.

        It takes one stat(2) as long as nothing has changed.

        Raises
        ------
        SpoolAway
            If it leads nowhere, to a folder without an id, or to one with another id than expected.
        """
        try:
            there = os.stat(self._name)  # noqa: PTH116 - the receive path: faster than Path's
        except OSError as error:
            raise self.away(error.strerror or "it cannot be examined") from None
        if (there.st_dev, there.st_ino) != self._identity:
            self._hold()

    def check_id(self) -> None:
        """Make sure, as `check` does, and that the folder still has the id.

        Raises
        ------
        SpoolAway
            If it does not: others may have put something else into it, or taken all away.
        """
        self.check()
        try:
            found = _id_of(self._descriptor)
        except (OSError, ValueError):
            raise self.away("its id is missing") from None
        self._compare(found)
        self.id = found

    def expect(self, known: str) -> None:
        """Take no folder but the one with this id from now on.

        Raises
        ------
        SpoolAway
            If another is there.
        """
        with self._lock:
            if self.id != known:
                self.id, self._identity = known, None
            self._expected = True
        self.check()

    def hold_new(self) -> None:
        """Hold the folder that is there and has no id yet.

        Raises
        ------
        OSError
            If there is none.
        """
        with self._lock:
            self._take(os.open(self._name, _FLAGS))

    def learn_id(self) -> None:
        """Read the id of the folder, which may have been given to it just now."""
        with self._lock:
            self._identity = None
        self.check()

    def away(self, why: str) -> SpoolAway:
        """Return the error that says that the folder is not there, and remember when it was not."""
        self._away_at = time.monotonic()
        return SpoolAway(f"the spool {self._name} is away: {why}")

    def was_away(self, since: float) -> bool:
        """Tell whether the folder was found away at or after a moment (``time.monotonic``)."""
        return self._away_at >= since

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Take several steps in one and the same folder.

        Raises
        ------
        SpoolAway
            At the end, if the folder was put behind the descriptor again meanwhile: some steps may
            have been taken in one mount, and some in another.
        """
        holding = self._holding
        yield
        if self._holding != holding:
            raise self.away("its volume left and came back")

    def _hold(self) -> None:
        """Hold the folder that the name leads to if it has the id."""
        with self._lock:
            try:
                new = os.open(self._name, _FLAGS)
            except OSError as error:
                raise self.away(error.strerror or "it cannot be opened") from None
            try:
                found = _id_of(new)
            except (OSError, ValueError):
                os.close(new)
                raise self.away("there is no spool in this folder") from None
            try:
                self._compare(found)
            except OtherSpool:
                os.close(new)
                raise
            self._take(new)
            self.id = found

    def _compare(self, found: str) -> None:
        if self._expected and found != self.id:
            self.away("another spool is there")
            raise OtherSpool(
                f"{self._name} is another spool than this ledger's; check `storage > temporary` "
                "and `database > url`"
            )

    def _take(self, new: int) -> None:
        """Put a descriptor's folder behind ours."""
        found = os.fstat(new)
        os.dup2(new, self._descriptor, inheritable=False)
        os.close(new)
        self._identity = found.st_dev, found.st_ino
        self._holding += 1


def _id_of(folder: int) -> str:
    """Return the id in a folder, given its descriptor.

    Raises
    ------
    OSError, ValueError
        If there is none.
    """
    descriptor = os.open("id", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.read(descriptor, 100).decode("ascii").strip()
    finally:
        os.close(descriptor)
    if not found:
        raise ValueError("the id is empty")
    return found
