# SPDX-License-Identifier: Apache-2.0
"""What runs beside the C-STORE path, in threads of its own, so that no C-STORE ever waits for it.

=============  ===================================================================================
thread         does
=============  ===================================================================================
scp-wake-up    wakes notification: one wake-up for a batch of instances
scp-ledger     takes over configuration changes and writes events, each second, if there is a ledger
scp-heartbeat  writes the heartbeat each second, whether the others hang or not
=============  ===================================================================================
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from adapter import heartbeat, stages
from adapter.core import open_ledger
from adapter.log import get_logger
from adapter.scp.configuration import LiveConfiguration
from adapter.scp.events import ScpEvents
from adapter.settings import Settings
from adapter.spool import Spool

log = get_logger(__name__)

ROLE = "scp"

#: Seconds between looks at the ledger, and between heartbeats.
PERIOD = heartbeat.PERIOD
#: Seconds that a thread is waited for at the end; one that hangs dies with the process.
_STOP_SECONDS = 1.0


#: Seconds without a wake-up after the broker did not take one; the due-work poll wakes meanwhile.
_AWAY_SECONDS = 5.0


class NotificationWaker:
    """Wakes notification for what has been stored: once for a batch, never for each instance.

    A wake-up that the broker does not take is forgotten: the due-work poll repeats it.

    Parameters
    ----------
    settings : Settings
        Says who the broker is, and how large and how old a batch gets.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._waiting = 0
        self._stopping = False
        self._app: Celery | None = None
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._run, name="scp-wake-up", daemon=True)

    def start(self) -> None:
        """Start waking notification."""
        self._thread.start()

    def stop(self) -> None:
        """Wake notification for what waits, and stop."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(_STOP_SECONDS / 4)  # a lost wake-up costs one poll

    def stored(self) -> None:
        """Say that one more instance is stored."""
        with self._changed:
            self._waiting += 1
            if self._waiting in {1, self._settings.dicom.scp.wake_up_instances}:
                self._changed.notify()

    def _run(self) -> None:
        scp = self._settings.dicom.scp
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                self._changed.wait_for(
                    lambda: self._waiting >= scp.wake_up_instances or self._stopping,
                    timeout=scp.wake_up_milliseconds / 1000,
                )
                waiting, self._waiting = self._waiting, 0
                stopping = self._stopping
            if waiting and time.monotonic() >= self._quiet_until:
                self._ring()
            if stopping:
                return

    def _ring(self) -> None:
        app = self._app or stages.make_app(self._settings)
        if stages.StageQueues(app).wake(stages.NOTIFICATION):
            self._app = app
        else:  # made anew the next time: a broker that was started since may have a new password
            app.close()
            self._app = None
            # To fail is dear, and what receives would have to wait for its turn on the processor.
            self._quiet_until = time.monotonic() + _AWAY_SECONDS


class BackgroundTasks:
    """The other two threads: ledger and heartbeat.

    Parameters
    ----------
    settings : Settings
        Says where the ledger is.
    spool : Spool
        Where heartbeats are written.
    configuration : LiveConfiguration
        What is kept up to date.
    events : ScpEvents
        Whose events and counts are written.
    active : callable
        Tells how many associations are open.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        configuration: LiveConfiguration,
        events: ScpEvents,
        active: Callable[[], int],
    ) -> None:
        self._spool = spool
        self._configuration = configuration
        self._events = events
        self._active = active
        self._port = settings.dicom.scp.port
        self._ledger = open_ledger(settings)
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._counters = events.metrics.counters
        self._complained: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True)
            for name, work in (("scp-ledger", self._visit_ledger), ("scp-heartbeat", self._beat))
        ]

    def start(self, patience: float) -> None:
        """Start, and wait up to `patience` seconds for the first look at the ledger."""
        heartbeat.forget_gone(self._spool)
        for thread in self._threads:
            thread.start()
        self._looked.wait(patience)

    def stop(self) -> None:
        """Write the last events if the ledger takes them, and stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_STOP_SECONDS)
        self._ledger.close()
        heartbeat.remove(self._spool, ROLE)

    def _repeat(self, work: Callable[[], None]) -> None:
        stopping = False
        while True:
            try:
                work()
            except (SQLAlchemyError, OSError) as error:
                self._complain(threading.current_thread().name, error)
            if stopping:
                return
            stopping = self._stop.wait(PERIOD)  # and once more, for what came last

    def _visit_ledger(self) -> None:
        try:
            self._configuration.refresh(self._ledger)
            self._looked.set()  # before events, which may be many
            self._events.flush(self._ledger)
        except SQLAlchemyError:
            self._ledger.close()  # so that the next visit connects to what is there then
            raise
        finally:
            self._looked.set()

    def _beat(self) -> None:
        active = self._active()
        self._counters.beat()
        self._counters.set_active(active)
        heartbeat.write(
            self._spool,
            ROLE,
            port=self._port,
            active_associations=active,
            configuration_version=self._configuration.snapshot.version,
            **dict.fromkeys(("accepted", "rejected", "stored", "failed", "ignored"), 0)
            | self._events.counts(),
        )

    def _complain(self, thread: str, error: Exception) -> None:
        if time.monotonic() > self._complained.get(thread, 0.0) + 60:
            self._complained[thread] = time.monotonic()
            log.warning("receiving goes on without", thread=thread, error=type(error).__name__)
