# SPDX-License-Identifier: Apache-2.0
"""The SCP of one process: its parts put together, started and stopped."""

from __future__ import annotations

import socket
import ssl

from adapter.core import open_spool
from adapter.errors import ConfigurationError, SpoolAway
from adapter.log import get_logger
from adapter.scp.acceptor import AssociationAcceptor
from adapter.scp.association_limiter import AssociationLimiter
from adapter.scp.background import NotificationWaker, ScpBackgroundTasks
from adapter.scp.configuration import LiveConfiguration
from adapter.scp.events import ScpEvents
from adapter.scp.metrics import ProcessMetrics
from adapter.scp.server import Server
from adapter.scp.shared_counters import ProcessCounters
from adapter.settings import Settings

log = get_logger(__name__)

#: Seconds that a start waits for the ledger's configuration before it takes the copy's.
_LEDGER_WAIT = 2.0


class Scp:
    """The SCP of one adapter.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    listener : socket, optional
        What to accept from, if other processes share it.
    limiter : AssociationLimiter, optional
        The limit of associations, if other processes share it.
    counters : ProcessCounters, optional
        Where it counts, if other processes count too.
    tls : ssl.SSLContext, optional
        Speak TLS.

    Attributes
    ----------
    port : int
        The port it listens on, once it is started.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket | None = None,
        limiter: AssociationLimiter | None = None,
        counters: ProcessCounters | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self.port = 0
        spool = self._spool = open_spool(settings)
        configuration = LiveConfiguration(spool)
        self.events = ScpEvents(None if counters is None else ProcessMetrics(counters))
        self._waker = NotificationWaker(settings)
        self.acceptor = AssociationAcceptor(
            settings, spool, configuration, self.events, self._waker.stored, limiter=limiter
        )
        self._server = Server(settings.dicom.scp, self.acceptor, listener, tls)
        self._background = ScpBackgroundTasks(
            settings,
            spool,
            configuration,
            self.events,
            active=lambda: self.acceptor.active,
            listening=lambda: self._server.listening,
            published_until=self.acceptor.published_until,
            refuses=self.acceptor.refuses,
        )

    def start(self) -> None:
        """Listen, with the ledger's configuration, or the copy's while the ledger is away.

        Raises
        ------
        ConfigurationError
            If the address cannot be listened on.
        """
        self._waker.start()
        self._background.start(_LEDGER_WAIT)
        scp = self._settings.dicom.scp
        try:
            self.port = self._server.start()
        except OSError as error:
            self.stop(0)
            where = f"cannot listen on {scp.host or 'all addresses'}, port {scp.port}"
            raise ConfigurationError(
                [f"DicomAdapter > dicom > scp > port: {where}: {error.strerror or error}"]
            ) from None
        if self._settings.storage.durability == "none":
            log.warning("acknowledged instances are not synced: a power loss loses them")
        try:
            self._spool.check()
        except SpoolAway as away:
            log.error("nothing can be stored until the spool is there", problem=str(away))
        self.events.metrics.counters.set_listening(True)
        log.info("listening", host=scp.host, port=self.port)

    def stop(self, grace: float | None = None) -> None:
        """Stop listening, let associations end, and stop the background loops.

        Parameters
        ----------
        grace : float, optional
            Seconds that associations get to end; by default those of the settings.
        """
        self._server.stop(self._settings.workers.stop_seconds if grace is None else grace)
        self._waker.stop()
        self._background.stop()
        self.acceptor.close()
        log.info("stopped", **self.events.counts())
