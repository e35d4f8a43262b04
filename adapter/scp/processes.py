# SPDX-License-Identifier: Apache-2.0
"""Several processes on one listening socket, each a whole SCP; one that dies is replaced.

::

    serve -- listens, makes the association limiter and the counters, forks, waits
      +-- process: Scp.start ... SIGTERM or the end of `serve` ... Scp.stop
      +-- process: ...
      +-- process: metrics and probes, if a port is set for them

The processes share the socket, the limit of associations and the counters, and nothing else.  They
are forked rather than given sockets of their own (SO_REUSEPORT), so that a connection which waits
to be accepted is not lost with a process that dies.  Metrics are answered by a process, too: a
thread of the process that forks could hold a lock at that moment, and the new process would wait
for it for ever.  So every thread starts after the fork.
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
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from prometheus_client.registry import CollectorRegistry

from adapter import metrics
from adapter.core import open_spool
from adapter.errors import ConfigurationError
from adapter.log import get_logger
from adapter.scp.association_limiter import AssociationLimiter
from adapter.scp.background import ROLE
from adapter.scp.main import Scp
from adapter.scp.metrics import ScpCollector, loop_failures
from adapter.scp.server import listen
from adapter.scp.shared_counters import SharedCounters
from adapter.settings import ScpSettings, Settings

log = get_logger(__name__)

#: The most processes that `processes: 0` makes: more would wait for the disk.
_MOST = 4
#: Seconds to wait for the port of an SCP that was killed.
_PORT_SECONDS = 2.0
#: Seconds of life after which a process that dies is replaced at once.
_SHORT_LIFE = 1.0
#: Seconds beyond `stopSeconds` before a process that does not stop is killed.
_KILL_SECONDS = 5.0

#: Seconds between the beats of the process that forks.
_BEAT_SECONDS = 1.0
#: Seconds between looks at whether to stop.
_LOOK_SECONDS = 0.2

#: Seconds of computing after which a thread lets another run: receiving hardly computes at all, and
#: must not wait for background loops.
_SWITCH_SECONDS = 0.0005

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def serve(settings: Settings) -> int:
    """Run the SCP until SIGTERM or SIGINT, and return the exit code.

    Raises
    ------
    ConfigurationError
        If the address cannot be listened on.
    """
    open_spool(settings)  # refuses a configuration that cannot work
    listener = _listen(settings.dicom.scp)
    for_metrics = metrics.listen(settings.metrics)
    scp = settings.dicom.scp
    limiter = AssociationLimiter(
        scp.maximum_number_of_associations, scp.maximum_associations_per_peer
    )
    count = scp.processes or min(_MOST, len(os.sched_getaffinity(0)))
    if count == 1:
        counters = SharedCounters(1)
        endpoint = None
        if for_metrics is not None:
            endpoint = make_endpoint(settings, for_metrics, counters)
            endpoint.start()
        _serve_alone(settings, listener, limiter, counters)
        if endpoint is not None:
            endpoint.stop()
        return 0
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    Processes(settings, listener, limiter, count, for_metrics).run()
    return 0


def make_endpoint(
    settings: Settings, listener: socket.socket, counters: SharedCounters
) -> metrics.Endpoint:
    """Return the endpoint for the SCP whose processes have these counters."""
    registry = CollectorRegistry()
    registry.register(
        metrics.RoleCollector(ROLE, counters.silence, lambda: loop_failures(counters))
    )
    registry.register(ScpCollector(counters, settings.dicom.scp.maximum_number_of_associations))
    return metrics.Endpoint(
        listener,
        registry,
        lambda: metrics.silent(counters.silence()) + metrics.unrecovered(counters.lost_loops()),
        lambda: [] if counters.listening() else ["nobody listens"],
        settings.metrics.host_names,
    )


@dataclass(frozen=True)
class _Child:
    number: int | None  # None: it answers for metrics
    started: float


class Processes:
    """The processes of one SCP, seen by the one that forks them.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    listener : socket
        The socket that they accept from.
    limiter : AssociationLimiter
        The limit of associations.
    count : int
        How many receive.
    for_metrics : socket, optional
        The socket that the process for metrics accepts from.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        limiter: AssociationLimiter,
        count: int,
        for_metrics: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._limiter = limiter
        self._for_metrics = for_metrics
        self._counters = SharedCounters(count + 1)  # the last is this process's own
        self._own_counters = self._counters.process(count)
        self._numbers: list[int | None] = [*range(count), *([] if for_metrics is None else [None])]
        self._alive: dict[int, _Child] = {}  # by process id
        # Nobody ever writes: it ends when this process does.
        self._parent_pipe, self._own_end = os.pipe()

    def run(self) -> None:
        """Keep them alive until a signal says stop; the signals have to be blocked."""
        gc.collect()
        gc.freeze()  # so that the collector does not touch, and so copy, what they share
        log.info("receiving", processes=self._counters.processes - 1)
        retry = 0.0
        while True:
            self._own_counters.beat()
            missing = self._missing()
            if missing and time.monotonic() >= retry:
                for number in missing:
                    self._fork(number)
                missing = []
            wait = max(0.0, retry - time.monotonic()) if missing else _BEAT_SECONDS
            caught = signal.sigtimedwait(_SIGNALS, min(wait, _BEAT_SECONDS))
            if caught is not None and caught.si_signo != signal.SIGCHLD:
                break
            for pid, status in self._reap():
                child = self._alive.pop(pid)
                lived = time.monotonic() - child.started
                retry = time.monotonic() + (0 if lived > _SHORT_LIFE else _SHORT_LIFE)
                if child.number is not None:
                    self._counters.vacate(child.number)
                code = os.waitstatus_to_exitcode(status)
                what = "receives" if child.number is not None else "answers for metrics"
                log.error("a process has died", which=what, pid=pid, code=code)
        self._stop()

    def _missing(self) -> list[int | None]:
        taken = {child.number for child in self._alive.values()}
        return [number for number in self._numbers if number not in taken]

    def _fork(self, number: int | None) -> None:
        pid = os.fork()
        if pid:
            self._alive[pid] = _Child(number, time.monotonic())
            return
        code = 1
        try:
            os.close(self._own_end)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that forks
            if number is None:
                self._answer_for_metrics()
            self._receive(number)
            code = 0
        except BaseException:  # the top of a process
            log.exception("receiving failed")
        finally:
            os._exit(code)

    def _receive(self, number: int) -> None:
        if self._for_metrics is not None:
            self._for_metrics.close()
        _serve_alone(
            self._settings,
            self._listener,
            self._limiter,
            self._counters,
            number,
            parent_pipe=self._parent_pipe,
        )

    def _answer_for_metrics(self) -> NoReturn:
        """Answer until the process that forks is gone; it ends this one when nobody receives."""
        assert self._for_metrics is not None
        self._listener.close()
        make_endpoint(self._settings, self._for_metrics, self._counters).run(self._parent_pipe)
        os._exit(0)

    def _stop(self) -> None:
        self._listener.close()
        receiving = {pid for pid, child in self._alive.items() if child.number is not None}
        for pid in receiving:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + self._settings.workers.stop_seconds + _KILL_SECONDS
        while receiving & self._alive.keys() and (left := deadline - time.monotonic()) > 0:
            self._own_counters.beat()
            signal.sigtimedwait({signal.SIGCHLD}, min(left, _BEAT_SECONDS))
            for pid, _status in self._reap():
                del self._alive[pid]
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _reap(self) -> list[tuple[int, int]]:
        found = (os.waitpid(pid, os.WNOHANG) for pid in self._alive)
        return [(pid, status) for pid, status in found if pid]


def _serve_alone(
    settings: Settings,
    listener: socket.socket,
    limiter: AssociationLimiter,
    counters: SharedCounters,
    number: int = 0,
    *,
    parent_pipe: int | None = None,
) -> None:
    """Run one SCP in this process until a signal, or until `parent_pipe` ends."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    if parent_pipe is None:
        signal.signal(signal.SIGINT, stop)
    else:
        threading.Thread(
            target=_await_end, args=(parent_pipe, stopping), name="scp-parent", daemon=True
        ).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    sys.setswitchinterval(_SWITCH_SECONDS)
    scp = Scp(settings, listener, limiter, counters.process(number))
    scp.start()
    # A signal just before an endless wait would not wake it, and one during the wait would find the
    # event's lock taken by the code that it interrupts.
    while not stopping.is_set():
        time.sleep(_LOOK_SECONDS)
    scp.stop()


def _await_end(parent_pipe: int, stopping: threading.Event) -> None:
    os.read(parent_pipe, 1)
    stopping.set()


def _listen(scp: ScpSettings) -> socket.socket:
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            return listen(scp)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)  # the killed SCP's processes are about to notice, and to end
                continue
            where = f"cannot listen on {scp.host or 'all addresses'}, port {scp.port}"
            raise ConfigurationError(
                [f"DicomAdapter > dicom > scp > port: {where}: {error.strerror or error}"]
            ) from None
