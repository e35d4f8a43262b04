# SPDX-License-Identifier: Apache-2.0
"""The adapter behind the API: opened as soon as its ledger answers, however late that is."""

from __future__ import annotations

import threading

from sqlalchemy.exc import SQLAlchemyError

from adapter.core import Adapter, open_adapter
from adapter.errors import AdapterError, TemporaryError
from adapter.heartbeat import Heart
from adapter.log import get_logger
from adapter.settings import Settings
from adapter.spool import Spool
from adapter.stages import DueWorkPoll, StageQueues, make_app

log = get_logger(__name__)

ROLE = "api"


class NotOpen(TemporaryError):
    """The adapter could not be opened yet; the text says why."""


class AdapterOpening:
    """Opens the adapter from a thread of its own, and polls for due work as every role does.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queues = StageQueues(make_app(settings))
        self._adapter: Adapter | None = None
        self._reason = "the adapter is being opened"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._open, name="open", daemon=True)
        self._due_work_poll: DueWorkPoll | None = None
        self.heart = Heart(Spool(settings.spool_path), ROLE, lambda: {"port": settings.api.port})

    @property
    def adapter(self) -> Adapter:
        """The adapter.

        Raises
        ------
        NotOpen
            If it could not be opened yet.
        """
        if self._adapter is None:
            raise NotOpen(self._reason)
        return self._adapter

    def start(self) -> None:
        """Begin to open the adapter."""
        self.heart.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop polling and close the adapter."""
        self._stop.set()
        self._thread.join(timeout=10)
        if self._due_work_poll is not None:
            self._due_work_poll.stop()
        self.heart.stop()
        if self._adapter is not None:
            self._adapter.close()

    def _open(self) -> None:
        while not self._stop.is_set():
            try:
                adapter = open_adapter(self.settings)
            except AdapterError as error:
                self._explain(str(error))
            except (SQLAlchemyError, OSError) as error:
                # Their text may quote addresses and statements: the type says enough.
                self._explain(f"the ledger cannot be opened ({type(error).__name__})")
            else:
                self.heart.beat()  # there is a place for it now
                self._adapter = adapter
                self._due_work_poll = DueWorkPoll(adapter, self.queues)
                self._due_work_poll.start()
                return
            self._stop.wait(self.settings.workers.due_work_poll_seconds)

    def _explain(self, reason: str) -> None:
        if reason != self._reason:
            log.error("the adapter cannot be opened", reason=reason)
        self._reason = reason
