# SPDX-License-Identifier: Apache-2.0
"""The supervisor: starts everything on this machine, keeps it running, and stops it in order.

One thread starts all processes, because the kernel ends them together with the thread that started
them (see `adapter.embedded.parent_death`).  All state of the roles is in the ledger and the spool,
so a restart needs no hand-over.
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
from adapter.errors import AdapterError, SpoolAway
from adapter.rights import make_private_folder
from adapter.settings import Settings

_LOOK_SECONDS = 0.1


class Supervisor:
    """Everything of one adapter on this machine.

    Parameters
    ----------
    settings : Settings
        The adapter's settings; the roles read them again, from the file and the environment.
    extra : sequence of Role
        Further roles, e.g. the PACS of the demo.
    print_line : callable
        Takes a line for the operator; called from a thread of the supervisor's own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        extra: Sequence[Role] = (),
        print_line: Callable[[str], None] = print,
    ) -> None:
        self.logs = settings.data / "logs"
        self._settings = settings
        self._extra = extra
        self._terminal = print_line
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
        """The process id of each role by name; None while it does not run."""
        return {child.role.name: child.pid for child in self._children}

    @property
    def running(self) -> bool:
        """Whether the supervisor runs."""
        return self._thread.is_alive()

    def missing(self) -> list[str]:
        """Return the names of the roles that are not ready."""
        return [child.role.name for child in self._children if not child.ready]

    def log_of(self, name: str) -> RoleLog:
        """Return the log of a role."""
        return next(child.log for child in self._children if child.role.name == name)

    def start(self) -> None:
        """Check that everything can start, and begin to start it.

        Raises
        ------
        AdapterError
            If another supervisor runs this adapter, a port is in use, there is no Redis server, or
            spool and ledger do not belong together.
        """
        settings = self._settings
        make_private_folder(settings.data)
        self._lock = only_one(settings.data / "up.lock")
        try:
            ports.check_free(settings, self._print_line, self._stopping)
            self._open(settings)
            everything = [redis_role(settings)] if settings.broker.url is None else []
            everything += [*roles(settings), *self._extra]
        except BaseException:
            self._lock.close()
            raise
        environment = {**os.environ, **settings.environment}
        self._children = [
            Child(role, RoleLog(self.logs / f"{role.name}.log"), self._print_line, environment)
            for role in everything
        ]
        self._thread.start()

    def wait_ready(self, timeout: float) -> bool:
        """Wait until every role is ready; return False after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.missing():
            if time.monotonic() > end or not self.running or self._stopping.wait(_LOOK_SECONDS):
                return False
        return True

    def stop(self) -> None:
        """Stop everything in order, the SCP first and Redis last, and wait for the end.

        A second Ctrl-C kills the remaining roles: that loses nothing acknowledged.
        """
        self._stopping.set()
        try:
            self._join()
        except KeyboardInterrupt:
            self._hurry.set()
            self._join()
        if self._lock is not None:
            self._lock.close()

    def _open(self, settings: Settings) -> None:
        """Create the adapter on first use; say it if its spool is away: the roles wait for it."""
        adapter = open_adapter(settings, create=True)
        try:
            adapter.spool.check()
        except SpoolAway as away:
            self._print_line(f"{away}: nothing is received or processed until it is back")
        finally:
            adapter.close()

    def _print_line(self, line: str) -> None:
        """Show a line to the operator; a closed terminal does not end the supervisor."""
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
    """Make SIGTERM and SIGHUP end this program as Ctrl-C does: by KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def only_one(path: Path) -> IO[str]:
    """Take the lock of this adapter's supervisor, and return it.

    Raises
    ------
    AdapterError
        If another supervisor has it.
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
