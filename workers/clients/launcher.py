# SPDX-License-Identifier: Apache-2.0
"""Runs one command under limits and lets nothing of it live on: a program of its own.

``python -I -S launcher.py`` is started by `workers.clients.pipeline_process` for each run.  It
reads one line of JSON on standard input, runs the command, and answers one line of JSON when
nothing of the command is left.  Its standard input stays open as long as the worker wants the run:
the end of it, which is also what the worker's death brings, kills the command.  The standard
library only, and little of it: its start is the price of every run.

The command is the child of this process and not of the worker because a worker's threads come and
go: PR_SET_PDEATHSIG is tied to the thread that forked.  This process is also a child subreaper
(prctl(2)), so that what the command leaves behind becomes its child however often it forked.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any, NoReturn

#: Bytes of each output stream that are kept: so many from its beginning, so many from its end.
HEAD = TAIL = 128 * 1024

#: Seconds between looks whether the worker is still our parent, should its pipe be inherited.
PARENT_LOOK = 0.5

#: Seconds that killed processes get to disappear; one that hangs in the kernel is left to it.
REAP = 10.0

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STDIN, _STDOUT, _STDERR = 0, 1, 2

#: Signals that we, or Python, ignore, and that the command gets as they are by default.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class Capture:
    """A bounded copy of an output stream: its head at once, its tail at the end."""

    def __init__(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - pathlib doubles our start-up time
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self._room = HEAD
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._left_out = 0

    def take(self) -> bool:
        """Read what is there; False at the end of the stream."""
        try:
            data = os.read(self.read_end, 65536)
        except BlockingIOError:
            return True
        head, rest = data[: self._room], data[self._room :]
        self._write(head)
        self._room -= len(head)
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
        while self._tail and self._tail_size - len(self._tail[0]) >= TAIL:
            gone = len(self._tail.popleft())
            self._tail_size -= gone
            self._left_out += gone
        return bool(data)

    def close(self) -> None:
        """Read what is left in the pipe and write the tail."""
        for _ in range(64):
            if not self.take():
                break
        tail = b"".join(self._tail)
        left_out = self._left_out + max(0, len(tail) - TAIL)
        if left_out:
            self._write(b"\n[... %d bytes left out ...]\n" % left_out)
        self._write(tail[-TAIL:])
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # a full disk must not end the run
            while data:
                data = data[os.write(self._file, data) :]


class RunningCommand:
    """The command, from its start until nothing of it is left."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._captures = (Capture(order["stdout"]), Capture(order["stderr"]))
        self._status: int | None = None
        self._pid = 0

    def start(self) -> str:
        """Fork and execute; return why it could not, or nothing."""
        report, report_to = os.pipe()
        launcher = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._become(launcher, report_to)
        os.close(report_to)
        for capture in self._captures:
            os.close(capture.write_end)
        problem = os.read(report, 4096).decode()
        os.close(report)
        return problem

    def _become(self, launcher: int, report_to: int) -> NoReturn:
        order = self._order
        try:
            os.setsid()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:
                os._exit(1)
            for number in _IGNORED:
                signal.signal(number, signal.SIG_DFL)
            with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
                file.write("500")  # rather the pipeline than the receiver
            null = os.open(os.devnull, os.O_RDONLY)
            ends = (null, *(capture.write_end for capture in self._captures))
            for source, target in zip(ends, (_STDIN, _STDOUT, _STDERR), strict=True):
                os.dup2(source, target)
            os.chdir(order["folder"])
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            hardest = resource.getrlimit(resource.RLIMIT_AS)[1]
            memory = order["memory"] if hardest < 0 else min(order["memory"], hardest)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            os.execvpe(order["command"][0], order["command"], order["environment"])  # noqa: S606
        except (OSError, ValueError, MemoryError) as error:
            text = getattr(error, "strerror", None) or type(error).__name__
            os.write(report_to, text.encode())
        finally:
            os._exit(127)

    def follow(self) -> str:
        """Wait until it has ended, or must, and return ``ended``, ``timed-out`` or ``stopped``."""
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        parent, deadline = self._order["parent"], time.monotonic() + self._order["seconds"]
        with selectors.DefaultSelector() as selector:
            selector.register(_STDIN, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            for capture in self._captures:
                selector.register(capture.read_end, selectors.EVENT_READ, capture)
            while True:
                self._reap()
                if self._status is not None:
                    return "ended"
                left = deadline - time.monotonic()
                if left <= 0:
                    return "timed-out"
                for key, _ in selector.select(min(left, PARENT_LOOK)):
                    if key.data is not None:
                        if not key.data.take():
                            selector.unregister(key.fileobj)
                    elif not os.read(key.fd, 4096):
                        return "stopped"
                if os.getppid() != parent:
                    return "stopped"

    def _reap(self) -> bool:
        """Take the status of every process that has ended; False if there is none left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = status

    def end(self) -> None:
        """Kill whatever of the command still runs, and keep the end of its output."""
        deadline = time.monotonic() + REAP
        while self._reap() and time.monotonic() < deadline:
            for pid in _descendants(os.getpid()):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        for capture in self._captures:
            capture.close()

    @property
    def code(self) -> int | None:
        """The exit code; negative for the signal that killed it."""
        return None if self._status is None else os.waitstatus_to_exitcode(self._status)


def _descendants(ancestor: int) -> list[int]:
    """Return the processes below one, by the parents that /proc names."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - as above
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                # "pid (name) state ppid ...", and a name may hold anything
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    level = [ancestor]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


def main() -> None:
    """Run what standard input says and answer ``{"how": ..., "code": ...}``."""
    os.umask(0o077)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # the worker says when it ends
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    command = RunningCommand(json.loads(line))
    problem = command.start()
    how = "could-not-start" if problem else command.follow()
    command.end()
    answer = {"how": how, "code": command.code, "problem": problem}
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
