# SPDX-License-Identifier: Apache-2.0
"""What an SCP does beside the C-STORE path, in background loops: no C-STORE waits for any of it.

============  ====================================================================================
loop          does
============  ====================================================================================
scp-wake-up   wakes notification, once for a batch of instances
scp-ledger    takes over changes of the configuration and writes events, each second
heartbeat     writes the heartbeat each second, whether the others hang or not
============  ====================================================================================
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from adapter import background, heartbeat, stages
from adapter.background import BackgroundLoop
from adapter.core import open_ledger
from adapter.errors import SpoolAway
from adapter.heartbeat import Heart
from adapter.scp.configuration import LiveConfiguration
from adapter.scp.events import ScpEvents
from adapter.settings import Settings
from adapter.spool import Spool

ROLE = "scp"

#: Seconds between looks at the ledger.
PERIOD = heartbeat.PERIOD
#: Seconds that a loop is waited for at the end; one that hangs dies with the process.
_STOP_SECONDS = 1.0
#: Seconds without a wake-up after the broker refused one; the due-work poll wakes meanwhile.
_AWAY_SECONDS = 5.0


class NotificationWaker:
    """Wakes notification for stored instances: once for a batch, never for each instance.

    A wake-up that the broker refuses is forgotten: the due-work poll repeats it.

    Parameters
    ----------
    settings : Settings
        Name the broker, and say how large and how old a batch may get.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._waiting = 0
        self._queues: stages.StageQueues | None = None
        self._quiet_until = 0.0
        self._loop = BackgroundLoop("scp-wake-up", self._wake_for_a_batch, once_more=True)

    def start(self) -> None:
        """Start waking notification."""
        self._loop.start()

    def stop(self) -> None:
        """Wake notification for the instances that wait, and stop."""
        with self._changed:
            self._loop.finish()
            self._changed.notify()
        self._loop.stop(_STOP_SECONDS / 4)  # a lost wake-up costs one poll

    def stored(self) -> None:
        """Say that one more instance is stored."""
        with self._changed:
            self._waiting += 1
            if self._waiting in {1, self._settings.dicom.scp.wake_up_instances}:
                self._changed.notify()

    def _wake_for_a_batch(self) -> None:
        scp = self._settings.dicom.scp
        stopping = self._loop.stopping.is_set
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or stopping(), PERIOD)
            if not self._waiting:
                return
            self._changed.wait_for(
                lambda: self._waiting >= scp.wake_up_instances or stopping(),
                scp.wake_up_milliseconds / 1000,
            )
            self._waiting = 0
        if time.monotonic() >= self._quiet_until:
            self._wake()

    def _wake(self) -> None:
        queues = self._queues or stages.StageQueues(stages.make_app(self._settings))
        if queues.wake(stages.NOTIFICATION):
            self._queues = queues
        else:  # made anew the next time: a broker that was started since may have a new password
            queues.close()
            self._queues = None
            # Failing costs processor time that the receiving threads need.
            self._quiet_until = time.monotonic() + _AWAY_SECONDS


class ScpBackgroundTasks:
    """The other two loops: ledger and heartbeat.

    Parameters
    ----------
    settings : Settings
        Say where the ledger is.
    spool : Spool
        Where heartbeats are written.
    configuration : LiveConfiguration
        Is kept up to date.
    events : ScpEvents
        The events and counts to write.
    active : callable
        Returns how many associations are open.
    listening : callable
        Tells whether connections are accepted.
    published_until : callable
        Returns a time before which no instance was received that is not visible by now.
    refuses : callable
        Returns why no instance can be stored at present, or None.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        configuration: LiveConfiguration,
        events: ScpEvents,
        *,
        active: Callable[[], int],
        listening: Callable[[], bool],
        published_until: Callable[[], float],
        refuses: Callable[[], str | None],
    ) -> None:
        self._configuration = configuration
        self._events = events
        self._active = active
        self._listening = listening
        self._published_until = published_until
        self._refuses = refuses
        self._port = settings.dicom.scp.port
        self._ledger = open_ledger(settings)
        self._looked = threading.Event()
        # Once more at the end, for the last events.
        self._loop = BackgroundLoop("scp-ledger", self._visit_ledger, period=PERIOD, once_more=True)
        self._heart = Heart(spool, ROLE, self._say)

    def start(self, seconds: float) -> None:
        """Start, and wait up to `seconds` seconds for the first look at the ledger."""
        self._heart.start()
        self._loop.start()
        self._looked.wait(seconds)

    def stop(self) -> None:
        """Write the last events if the ledger takes them, and stop."""
        self._loop.stop(_STOP_SECONDS)
        self._heart.stop()
        self._ledger.close()

    def _visit_ledger(self) -> None:
        not_saved: Exception | None = None
        try:
            self._configuration.recall()
            try:
                self._configuration.refresh(self._ledger)
            except (SpoolAway, OSError) as error:
                not_saved = error
            self._looked.set()  # before events, of which there may be many
            self._events.sum_up_left_out(all_periods=self._loop.stopping.is_set())
            self._events.flush(self._ledger)
        except SQLAlchemyError:
            self._ledger.close()  # the next visit makes a new connection
            raise
        finally:
            self._looked.set()
        if not_saved is not None:  # the next visit saves it
            raise not_saved

    def _say(self) -> dict[str, Any]:
        """Return what the heartbeat says, and tell the processes that share the counters."""
        active = self._active()
        metrics = self._events.metrics
        metrics.counters.beat()
        metrics.counters.set_active(active)
        metrics.counters.set_listening(self._listening())
        metrics.counters.set_lost_loops(background.lost())
        metrics.loops_failed(background.failures())
        # After the counters: a disk that hangs holds this up.
        refuses = self._refuses()
        if refuses is None and (problem := self._heart.problem) is not None:
            refuses = f"the spool cannot be written ({problem})"
        metrics.counters.set_refusing(refuses is not None)
        return {
            "refuses": refuses,
            heartbeat.PUBLISHED_UNTIL: self._published_until(),
            "port": self._port,
            "active_associations": active,
            "configuration_version": self._configuration.snapshot.version,
            **dict.fromkeys(("accepted", "rejected", "dropped", "stored", "failed", "ignored"), 0),
            **self._events.counts(),
        }
