# SPDX-License-Identifier: Apache-2.0
"""Several processes on one listening socket, each a whole SCP; one that dies is replaced.

::

    serve -- listens, makes the places for associations, forks, waits
      +-- process: Scp.start ... SIGTERM or the end of `serve` ... Scp.stop
      +-- process: ...

The processes share the socket and the places, and nothing else.  They are forked rather than given
sockets of their own (SO_REUSEPORT): a connection that waits to be accepted is not lost with a
process that dies.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

from adapter.errors import ConfigurationError
from adapter.log import get_logger
from adapter.scp.main import Scp, open_or_make_spool
from adapter.scp.server import listen
from adapter.scp.slots import Slots
from adapter.settings import Scp as ScpSettings
from adapter.settings import Settings

log = get_logger(__name__)

#: Processes that `processes: 0` makes at most: more would wait for the disk.
_MOST = 4
#: Seconds that the port of an SCP that was killed is waited for.
_PORT_SECONDS = 2.0
#: Seconds that a process lives at least before it is replaced at once.
_SHORT_LIFE = 1.0
#: Seconds beyond `stopSeconds` before a process that does not stop is killed.
_KILL_SECONDS = 5.0

#: Seconds between looks at whether to stop.
_LOOK_SECONDS = 0.2

#: Seconds that a thread computes before another gets its turn: what receives hardly computes at
#: all, and must not wait for what runs beside it.
_SWITCH_SECONDS = 0.0005

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def serve(settings: Settings) -> int:
    """Run the SCP until SIGTERM or SIGINT, and return the exit code.

    Raises
    ------
    ConfigurationError
        If the address cannot be listened on.
    """
    open_or_make_spool(settings)
    listener = _listen(settings.dicom.scp)
    scp = settings.dicom.scp
    slots = Slots(scp.maximum_number_of_associations, scp.maximum_associations_per_peer)
    count = scp.processes or min(_MOST, len(os.sched_getaffinity(0)))
    if count == 1:
        _serve_alone(settings, listener, slots)
        return 0
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    Processes(settings, listener, slots, count).run()
    return 0


class Processes:
    """The processes of one SCP, seen from the one that forks them.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    listener : socket
        What they accept from.
    slots : Slots
        The places for associations.
    count : int
        How many there are.
    """

    def __init__(
        self, settings: Settings, listener: socket.socket, slots: Slots, count: int
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._slots = slots
        self._count = count
        self._alive: dict[int, float] = {}  # when each was started, by process id
        # Nobody ever writes: it ends when this process does.
        self._tether, self._own_end = os.pipe()

    def run(self) -> None:
        """Keep them alive until a signal says stop; the signals have to be blocked."""
        gc.collect()
        gc.freeze()  # so that the collector does not touch, and so copy, what they share
        log.info("receiving", processes=self._count)
        retry = 0.0
        while True:
            while len(self._alive) < self._count and time.monotonic() >= retry:
                self._fork()
            missing = len(self._alive) < self._count
            wait = max(0.0, retry - time.monotonic()) if missing else 3600.0
            caught = signal.sigtimedwait(_SIGNALS, wait)
            if caught is not None and caught.si_signo != signal.SIGCHLD:
                break
            for pid, status in self._reap():
                lived = time.monotonic() - self._alive.pop(pid)
                retry = time.monotonic() + (0 if lived > _SHORT_LIFE else _SHORT_LIFE)
                code = os.waitstatus_to_exitcode(status)
                log.error("a receiving process has died", pid=pid, code=code)
        self._stop()

    def _fork(self) -> None:
        pid = os.fork()
        if pid:
            self._alive[pid] = time.monotonic()
            return
        code = 1
        try:
            os.close(self._own_end)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that forks
            _serve_alone(self._settings, self._listener, self._slots, self._tether)
            code = 0
        except BaseException:  # a process of its own: nobody is above it
            log.exception("receiving failed")
        finally:
            os._exit(code)

    def _stop(self) -> None:
        self._listener.close()
        for pid in self._alive:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + self._settings.workers.stop_seconds + _KILL_SECONDS
        while self._alive and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, deadline - time.monotonic())
            for pid, _status in self._reap():
                del self._alive[pid]
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _reap(self) -> list[tuple[int, int]]:
        found = (os.waitpid(pid, os.WNOHANG) for pid in self._alive)
        return [(pid, status) for pid, status in found if pid]


def _serve_alone(
    settings: Settings, listener: socket.socket, slots: Slots, tether: int | None = None
) -> None:
    """Run one SCP in this process until a signal, or until the tether is cut."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    if tether is None:
        signal.signal(signal.SIGINT, stop)
    else:
        threading.Thread(
            target=_await_end, args=(tether, stopping), name="scp-tether", daemon=True
        ).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    sys.setswitchinterval(_SWITCH_SECONDS)
    scp = Scp(settings, listener, slots)
    scp.start()
    # A signal that comes just before a wait without end does not wake it, and one within would
    # find the event's lock taken by what it interrupts.
    while not stopping.is_set():
        time.sleep(_LOOK_SECONDS)
    scp.stop()


def _await_end(tether: int, stopping: threading.Event) -> None:
    os.read(tether, 1)
    stopping.set()


def _listen(scp: ScpSettings) -> socket.socket:
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            return listen(scp)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)  # its processes are about to notice that they are alone
                continue
            where = f"cannot listen on {scp.host or 'all addresses'}, port {scp.port}"
            raise ConfigurationError(
                [f"DicomAdapter > dicom > scp > port: {where}: {error.strerror or error}"]
            ) from None
