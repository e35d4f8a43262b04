# SPDX-License-Identifier: Apache-2.0
"""Reads headers in a child process, so that hostile bytes kill the child and nobody else.

The child (`workers.clients.header_child`) has a bounded address space and a bounded processor time,
and it ends when its parent does.  What a file's content costs is processor time, so only that is
held against the file; the rest of the time is the disk's, and an error of ours.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from adapter.dicom.instance import Instance
from adapter.errors import NotYetVisible, UnreadableInstance
from adapter.files import outside
from adapter.settings import Notification

#: Deaths of children before a file is given up: a child may also die of somebody else's doing.
#: Processor time that is used up is used up again: it is not tried again.
TRIES = 3

#: Seconds without an answer after which a caller is told, and after which the child is looked at
#: again and again.
_SLOW = 0.25
#: Seconds that a child may take to start.
_START_SECONDS = 60.0
#: Times the processor time that a file has, after which its disk counts as failing.
_DISK = 6
#: Units of processor time in a second, as the kernel counts it (proc(5)).
_PER_SECOND = os.sysconf("SC_CLK_TCK")

#: Bytes a second at which a file is hashed at the very least; large files get time for it.
_SLOWEST = 10_000_000


class HeaderReader:
    """One child process that reads headers.

    Parameters
    ----------
    limits : Notification
        The settings' limits.
    strict_uids : bool, optional
        Whether UIDs must have the grammar of PS3.5 section 9.1.
    """

    def __init__(self, limits: Notification, *, strict_uids: bool = False) -> None:
        self._limits = limits
        self._strict_uids = strict_uids
        self._child: subprocess.Popen[bytes] | None = None

    def read(
        self, path: Path, tags: Sequence[int], *, slow: Callable[[], None] = lambda: None
    ) -> Instance:
        """Return the header of a file.

        Parameters
        ----------
        path : Path
            The file.
        tags : sequence of int
            Further tags whose values are wanted.
        slow : callable, optional
            Called once if the answer takes long, before it is waited for.

        Raises
        ------
        UnreadableInstance
            If it cannot be read within the limits, or reading it killed the child three times.
        NotYetVisible
            If the file is not there.
        OSError
            If the disk or the file's owner refuses it; `TimeoutError` if the disk does not answer.
        """
        try:
            seconds = self._limits.header_seconds + path.stat().st_size / _SLOWEST
        except FileNotFoundError:
            raise NotYetVisible("an acknowledged file is not visible (yet)") from None
        request = json.dumps({"path": str(outside(path)), "tags": list(tags)}).encode() + b"\n"
        for _ in range(TRIES):
            answer = self._ask(request, seconds, slow)
            if answer.endswith(b"\n"):
                return _instance(answer)
            self.close()
        raise UnreadableInstance("reading the header killed its reader", "reader-died")

    def close(self) -> None:
        """End the child; one that its disk does not let go ends when the disk does."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # the rest of a request
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(1)

    def _ask(self, request: bytes, seconds: float, slow: Callable[[], None]) -> bytes:
        """Return the child's answer: a line, or less if it died."""
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            limit = _processor_seconds(child.pid) + seconds
            child.stdin.write(request)
            child.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                if not selector.select(_SLOW):
                    slow()
                    self._await(selector, child.pid, limit, _DISK * seconds)
            return child.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:
            self.close()  # an answer that nobody takes would be taken for the next one
            raise

    def _await(
        self, selector: selectors.BaseSelector, child: int, limit: float, longest: float
    ) -> None:
        """Wait for a child's answer or end, until its processor time reaches `limit` (seconds)."""
        end = time.monotonic() + longest
        while not selector.select(_SLOW):
            if _processor_seconds(child) >= limit:
                raise UnreadableInstance("reading the header took too long", "took-too-long")
            if time.monotonic() >= end:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        return self._child or self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        limits = {
            "elements": self._limits.header_elements,
            "depth": self._limits.header_depth,
            "inflated_bytes": self._limits.header_inflated_mb * 1_000_000,
            "strict_uids": self._strict_uids,
            "memory_bytes": self._limits.header_memory_mb * 1_000_000,
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", "workers.clients.header_child", json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a traceback could quote patient data
            start_new_session=True,  # a Ctrl-C in the terminal is for the worker
            cwd=Path(__file__).parents[2],
        )
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            if not (selector.select(_START_SECONDS) and self._child.stdout.readline()):
                # No file's fault: none has been named to it.
                self.close()
                raise OSError(errno.EAGAIN, "the process that reads headers does not start")
        return self._child


class HeaderReaders:
    """As many header readers as run at once, reused.

    Parameters
    ----------
    limits : Notification
        The settings' limits.
    strict_uids : bool, optional
        Whether UIDs must have the grammar of PS3.5 section 9.1.
    """

    def __init__(self, limits: Notification, *, strict_uids: bool = False) -> None:
        self._limits = limits
        self._strict_uids = strict_uids
        self._idle: queue.LifoQueue[HeaderReader] = queue.LifoQueue()

    @contextmanager
    def borrow(self) -> Iterator[HeaderReader]:
        """Give a reader that nobody else uses meanwhile."""
        try:
            reader = self._idle.get_nowait()
        except queue.Empty:
            reader = HeaderReader(self._limits, strict_uids=self._strict_uids)
        try:
            yield reader
        finally:
            self._idle.put(reader)

    def close(self) -> None:
        """End all idle readers."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _processor_seconds(child: int) -> float:
    """Return the processor time (seconds) that a child of ours has used (proc(5))."""
    with Path(f"/proc/{child}/stat").open("rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _PER_SECOND


def _instance(answer: bytes) -> Instance:
    document = json.loads(answer)
    if "missing" in document:
        raise NotYetVisible("an acknowledged file is not visible (yet)")
    if "failed" in document:
        number = document["failed"] or errno.EIO
        raise OSError(number, os.strerror(number))
    if "unreadable" in document:
        message, code = document["unreadable"]
        raise UnreadableInstance(message, code)
    fields = document["instance"]
    fields["values"] = {int(tag): value for tag, value in fields["values"].items()}
    if fields["patient"] is not None:
        fields["patient"] = tuple(fields["patient"])
    return Instance(**fields)
