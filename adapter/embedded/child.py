# SPDX-License-Identifier: Apache-2.0
"""A role's process: started, checked for readiness, restarted when it ends, and stopped.

::

    waiting -> running -> ready
       ^          |         |
       +----------+---------+   ended: waits 0.5 s, 1 s, ... 10 s
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from adapter.embedded import parent_death
from adapter.embedded.logs import RoleLog
from adapter.embedded.roles import Role

BACK_OFF_SECONDS = 0.5
LONGEST_BACK_OFF_SECONDS = 10.0
#: A role that ran this long restarts with the shortest back-off.
STEADY_SECONDS = 30.0

_LOOK_SECONDS = 0.05
_LINES_AT_A_TIME = 5


class Child:
    """A role and its process, one after the other.

    Parameters
    ----------
    role : Role
        What to run.
    log : RoleLog
        Where its output goes.
    print_line : callable
        Takes a line for the operator.
    environment : mapping
        The environment of the process, without the role's own part.

    Attributes
    ----------
    ready : bool
        Whether the running process has become ready.
    seen : bool
        Whether any of its processes has.
    """

    def __init__(
        self,
        role: Role,
        log: RoleLog,
        print_line: Callable[[str], None],
        environment: Mapping[str, str],
    ) -> None:
        self.role = role
        self.log = log
        self.ready = False
        self.seen = False
        self._print_line = print_line
        self._environment = {**environment, **role.environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._back_off = BACK_OFF_SECONDS
        self._due = 0.0

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def look(self) -> None:
        """Start the process if it is due, and notice when it becomes ready or ends."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._start(now)
        elif (code := self._reap(self._process)) is not None:
            if not self.ready and self.role.unready is not None:
                self.role.unready()
            if now - self._started >= STEADY_SECONDS:
                self._back_off = BACK_OFF_SECONDS
            self.ready = False
            self._again(now, f"ended ({_how(code)})")
        elif not self.ready and self.role.ready(self._process.pid):
            if self.seen:
                self._print_line(f"{self.role.name} is back")
            self.ready = self.seen = True

    def report(self) -> None:
        """Show warnings and errors of its log to the operator, and rotate the log."""
        lines = list(self.log.follow())
        for line in lines[:_LINES_AT_A_TIME]:
            self._print_line(f"{self.role.name}: {line}")
        if len(lines) > _LINES_AT_A_TIME:
            self._print_line(f"{self.role.name}: ... and more in {self.log.path}")
        self.log.rotate()

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGTERM)

    def await_end(self, deadline: float, hurry: threading.Event) -> None:
        """Wait for the process to end; kill it at `deadline` (monotonic) or when `hurry` is set."""
        process = self._process
        if process is None:
            return
        while self._reap(process) is None:
            if hurry.wait(_LOOK_SECONDS) or time.monotonic() > deadline:
                self._print_line(f"{self.role.name} has not stopped yet; killing it")
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self._process = None
                return

    def _start(self, now: float) -> None:
        command = [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid())]
        try:
            with self.log.open() as output:
                self._process = subprocess.Popen(
                    [*command, str(self.role.nice), *self.role.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    # Only the supervisor gets Ctrl-C: it stops the roles in order.
                    start_new_session=True,
                )
        except OSError as error:  # e.g. no memory for a process, or no space for its log
            self._again(now, f"cannot be started ({error.strerror})")
        else:
            self._started = now

    def _again(self, now: float, why: str) -> None:
        self._due = now + self._back_off
        self._print_line(f"{self.role.name} {why}; starting it again in {self._back_off:.1f} s")
        self._back_off = min(2 * self._back_off, LONGEST_BACK_OFF_SECONDS)

    def _reap(self, process: subprocess.Popen[bytes]) -> int | None:
        """Return the exit code of a process that has ended, after killing its process group."""
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return None
        # It was not waited for yet, so its process group id cannot have been reused.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._process = None
        return process.wait()


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
