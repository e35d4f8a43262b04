# SPDX-License-Identifier: Apache-2.0
"""The supervisor: starts everything on this machine, keeps it running, and stops it in order.

All processes are started by one thread, because the kernel ends them with the thread that started
them (see `adapter.embedded.parent_death`).  What the roles know is in the ledger and the spool, so
that a restart is the normal path and needs no hand-over.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from adapter.core import open_adapter
from adapter.embedded import ports
from adapter.embedded.child import Child
from adapter.embedded.logs import RoleLog
from adapter.embedded.roles import REDIS, Role, redis_role, roles
from adapter.errors import AdapterError
from adapter.settings import Settings

_LOOK_SECONDS = 0.1


class Supervisor:
    """Everything of one adapter on this machine.

    Parameters
    ----------
    settings : Settings
        Which adapter; the roles read the same settings again, from the file and the environment.
    extra : sequence of Role
        Further roles, e.g. a demo's PACS.
    tell : callable
        Takes a line for the operator; called from a thread of the supervisor's own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        extra: Sequence[Role] = (),
        tell: Callable[[str], None] = print,
    ) -> None:
        self.logs = settings.data / "logs"
        self._settings = settings
        self._extra = extra
        self._terminal = tell
        self._children: list[Child] = []
        self._lock: IO[str] | None = None
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int | None]:
        """The roles by name, and the process id of each that runs."""
        return {child.role.name: child.pid for child in self._children}

    @property
    def running(self) -> bool:
        """Whether the supervisor is at work."""
        return self._thread.is_alive()

    def missing(self) -> list[str]:
        """Return the names of the roles that are not seen at work."""
        return [child.role.name for child in self._children if not child.ready]

    def log_of(self, name: str) -> RoleLog:
        """Return the log of a role."""
        return next(child.log for child in self._children if child.role.name == name)

    def start(self) -> None:
        """Make sure that everything may start, and begin to start it.

        Raises
        ------
        AdapterError
            If another supervisor runs this adapter, a port is taken, there is no Redis server, or
            spool and ledger do not belong together.
        """
        settings = self._settings
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = only_one(settings.data / "up.lock")
        try:
            ports.check_free(settings, self._tell, self._stopping)
            open_adapter(settings).close()
            everything = [redis_role(settings)] if settings.broker.url is None else []
            everything += [*roles(settings), *self._extra]
        except BaseException:
            self._lock.close()
            raise
        environment = {**os.environ, **settings.environment}
        self._children = [
            Child(role, RoleLog(self.logs / f"{role.name}.log"), self._tell, environment)
            for role in everything
        ]
        self._thread.start()

    def wait_ready(self, timeout: float) -> bool:
        """Wait until every role was seen at work; False if `timeout` (seconds) passes before."""
        end = time.monotonic() + timeout
        while self.missing():
            if time.monotonic() > end or not self.running or self._stopping.wait(_LOOK_SECONDS):
                return False
        return True

    def stop(self) -> None:
        """Stop everything in order, the SCP first and Redis last, and wait for the end.

        Interrupted (a second Ctrl-C), it kills what is left: nothing acknowledged is lost by that.
        """
        self._stopping.set()
        try:
            self._join()
        except KeyboardInterrupt:
            self._hurry.set()
            self._join()
        if self._lock is not None:
            self._lock.close()

    def _tell(self, line: str) -> None:
        """Tell the operator; a terminal that has gone ends nothing."""
        with suppress(OSError, ValueError):
            self._terminal(line)

    def _join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_LOOK_SECONDS):
                self._look()
        finally:
            self._stop_all()

    def _look(self) -> None:
        for child in self._children:
            child.look()
            if child.role.name == REDIS and not child.seen:
                break  # the others need its port and password
        for child in self._children:
            child.report()

    def _stop_all(self) -> None:
        for turn in sorted({child.role.stop_turn for child in self._children}):
            together = [child for child in self._children if child.role.stop_turn == turn]
            for child in together:
                child.terminate()
            begin = time.monotonic()
            for child in together:
                child.await_end(begin + child.role.stop_seconds, self._hurry)
                child.report()


def end_by_interrupt() -> None:
    """Let SIGTERM and SIGHUP end this program as Ctrl-C does: by KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def only_one(path: Path) -> IO[str]:
    """Take the lock that says that a supervisor runs this adapter, and return it.

    Raises
    ------
    AdapterError
        If another one holds it.
    """
    lock = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise AdapterError(
            f"this adapter runs already (process {holder}); stop that one first, or choose another "
            "data folder with --data"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
