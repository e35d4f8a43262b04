# SPDX-License-Identifier: Apache-2.0
"""Runs one command under limits and lets nothing of it live on: a program of its own.

::

    worker --- launcher --- command
    worker --- launcher --- [ first process --- command ]   isolated (`workers.clients.sandbox`)

``python -I -S launcher.py`` is started by `workers.clients.pipeline_process` for each run.  It
reads an order on standard input, runs the command, and answers when nothing of the command is left;
both are marshalled, since json alone would take a quarter of the time until the command runs.
Its standard input stays open as long as the worker wants the run: the end of it, which is also what
the worker's death brings, kills the command.  The standard library only, and little of it: its
start is the price of every run.

The command is the child of this process and not of the worker because a worker's threads come and
go: PR_SET_PDEATHSIG is tied to the thread that forked.  This process is also a child subreaper
(prctl(2)), so that what the command leaves behind becomes its child however often it forked.  With
isolation the first process of the PID namespace waits for the command, and takes all others with it
when it ends (pid_namespaces(7)).

What the run's folder takes of the disk is looked at every now and then, and at the end.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import selectors
import signal
import struct
import sys
import time
from collections import deque
from contextlib import suppress

# Run as a program: the standard library comes first, whatever our modules are called.
sys.path.append(os.path.abspath(f"{__file__}/../../.."))

from workers.clients.disk_use import DiskUse
from workers.clients.sandbox import Sandbox, SandboxError, prctl

TYPE_CHECKING = False  # as typing's, which takes long to import
if TYPE_CHECKING:
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

#: A process's status, as it is told through a pipe.
_STATUS = struct.Struct("=i")

#: Signals that we, or Python, ignore, and that the command gets as they are by default.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)


class Capture:
    """A bounded copy of an output stream: its head at once, its tail at the end."""

    def __init__(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)
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
        self._disk_use = DiskUse(
            order["folder"], order["input"], order["disk"], order["files"], order["floor"]
        )
        self._sandbox: Sandbox | None = None
        self._status_pipe = -1  #: where the first process of the sandbox tells the command's status

    def start(self) -> str:
        """Fork and execute; return why it could not, or nothing."""
        order = self._order
        try:
            if order["sandbox"] is not None:
                protected = (order["input"], order["metadata"])
                self._sandbox = Sandbox(
                    order["sandbox"], order["folder"], protected, order["memory"]
                )
                self._sandbox.prepare()
        except SandboxError as error:
            return f"it could not be isolated: {error}"
        report, report_to = os.pipe()
        self._status_pipe, tell = os.pipe()
        launcher = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._become(launcher, report_to, tell)
        os.close(report_to)
        os.close(tell)
        for capture in self._captures:
            os.close(capture.write_end)
        problem = os.read(report, 4096).decode()
        os.close(report)
        return problem

    def _become(self, launcher: int, report_to: int, tell: int) -> NoReturn:
        """Be the command, or the first process of its sandbox."""
        try:
            os.setsid()
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() not in {launcher, 0}:
                os._exit(1)
            with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")  # rather the pipeline than the receiver
            null = os.open(os.devnull, os.O_RDONLY)
            ends = (null, *(capture.write_end for capture in self._captures))
            for source, target in zip(ends, (_STDIN, _STDOUT, _STDERR), strict=True):
                os.dup2(source, target)
            if self._sandbox is not None:
                self._sandbox.enter()
                prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # another user's is none
                if _is_alone(report_to):
                    os._exit(1)
                command = os.fork()
                if command != 0:
                    os.close(report_to)
                    _wait_for(command, tell)
            self._execute()
        except SandboxError as error:
            os.write(report_to, f"it could not be isolated: {error}".encode())
        except (OSError, ValueError, MemoryError) as error:
            text = getattr(error, "strerror", None) or type(error).__name__
            os.write(report_to, text.encode())
        finally:
            os._exit(127)

    def _execute(self) -> None:
        order = self._order
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        os.chdir(order["folder"])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for kind, most in (
            (resource.RLIMIT_AS, order["memory"]),
            (resource.RLIMIT_FSIZE, order["disk"]),
        ):
            hardest = resource.getrlimit(kind)[1]
            limit = most if hardest < 0 else min(most, hardest)
            resource.setrlimit(kind, (limit, limit))
        if self._sandbox is not None:
            self._sandbox.limit_processes()
        os.execvpe(order["command"][0], order["command"], order["environment"])  # noqa: S606

    def follow(self) -> tuple[str, str]:
        """Wait until it has ended, or must; return how in a word, and what is to be said of it."""
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
                    return self._disk_use.look(now=True) or ("ended", "")
                if found := self._disk_use.look():
                    return found
                left = deadline - time.monotonic()
                if left <= 0:
                    return "timed-out", ""
                ready = selector.select(min(left, PARENT_LOOK))
                if not self._is_wanted(selector, ready) or os.getppid() != parent:
                    return "stopped", ""

    def _is_wanted(self, selector: Any, ready: list[Any]) -> bool:
        """Take what is ready to be read, and tell whether the worker still wants the run."""
        for key, _ in ready:
            if key.data is not None:
                if not key.data.take():
                    selector.unregister(key.fileobj)
            elif not os.read(key.fd, 4096):
                return False
        return True

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
                packed = b"" if self._sandbox is None else os.read(self._status_pipe, 4)
                self._status = _STATUS.unpack(packed)[0] if len(packed) == 4 else status

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


def _is_alone(pipe: int) -> bool:
    """Tell whether nobody has the other end of a pipe (any more)."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))


def _wait_for(command: int, tell: int) -> NoReturn:
    """Be the first process of a PID namespace until its command has ended, and tell how it has."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            os.write(tell, _STATUS.pack(status))
            os._exit(0)


def _descendants(ancestor: int) -> list[int]:
    """Return the processes below one, by the parents that /proc names."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
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
    """Run what standard input says and answer how it ended."""
    os.umask(0o077)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # the worker says when it ends
    try:
        order = marshal.load(sys.stdin.buffer)  # noqa: S302 - from the worker
    except (EOFError, ValueError, TypeError):
        return
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    command = RunningCommand(order)
    problem = command.start()
    how, problem = ("could-not-start", problem) if problem else command.follow()
    command.end()
    answer = {"how": how, "code": command.code, "problem": problem}
    with suppress(BrokenPipeError):
        marshal.dump(answer, sys.stdout.buffer)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
