# SPDX-License-Identifier: Apache-2.0
"""Reads headers in a child process, so that hostile bytes kill the child and nobody else.

The child (`workers.clients.header_child`) has a bounded address space, its parent has a clock, and
it ends when its parent does.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapter.dicom.instance import Instance
from adapter.errors import NotYetVisible, UnreadableInstance
from adapter.settings import Notification

#: Tries of one header before its file is given up: a child may also die of somebody else's doing.
TRIES = 3

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

    def read(self, path: Path, tags: Sequence[int]) -> Instance:
        """Return the header of a file.

        Raises
        ------
        UnreadableInstance
            If it cannot be read within the limits, or reading it killed the child three times.
        NotYetVisible
            If the file is not there.
        OSError
            If the disk or the file's owner refuses it.
        """
        try:
            seconds = self._limits.header_seconds + path.stat().st_size / _SLOWEST
        except FileNotFoundError:
            raise NotYetVisible("an acknowledged file is not visible (yet)") from None
        request = json.dumps({"path": str(path), "tags": list(tags)}).encode() + b"\n"
        failure = ""
        for _ in range(TRIES):
            answer, failure = self._ask(request, seconds)
            if answer is not None:
                return _instance(answer)
        raise UnreadableInstance(f"reading the header {failure}", "reader-died")

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, request: bytes, seconds: float) -> tuple[bytes | None, str]:
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(request)
            child.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                if not selector.select(seconds):
                    self.close()
                    return None, f"took more than {seconds:.0f} s"
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            self.close()
            return None, "killed its reader"
        return answer, ""

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
    return Instance(**fields)
