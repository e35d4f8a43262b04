# SPDX-License-Identifier: Apache-2.0
"""The adapter behind the API: opened when its ledger answers, however late that is."""

from __future__ import annotations

import time

from adapter.background import BackgroundLoop
from adapter.core import Adapter, open_adapter
from adapter.errors import TemporaryError
from adapter.heartbeat import Heart
from adapter.settings import Settings
from adapter.spool import Spool
from adapter.stages import DueWorkPoll, StageQueues, make_app

ROLE = "api"

#: Seconds between looks at whether the ledger takes transactions.
_TRANSACTION_SECONDS = 5.0
_OPENING = "the adapter is being opened"
#: Seconds that an opening under way is waited for at the end.
_STOP_SECONDS = 10.0


class NotOpen(TemporaryError):
    """The adapter could not be opened yet; the text says why."""


class AdapterOpening:
    """Opens the adapter from a background loop, and then polls for due work as every role does.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queues = StageQueues(make_app(settings))
        #: the id that spool and ledger share, once the adapter is open
        self.spool_id: str | None = None
        self._adapter: Adapter | None = None
        self._due_work_poll: DueWorkPoll | None = None
        self._loop = BackgroundLoop("opening", self._open)
        self._asked_at: float | None = None
        self._transactions = BackgroundLoop(
            "ledger-transaction", self._begin_transaction, period=_TRANSACTION_SECONDS
        )
        self.heart = Heart(Spool(settings.spool_path), ROLE, lambda: {"port": settings.api.port})

    @property
    def is_open(self) -> bool:
        """Whether the adapter is open."""
        return self._adapter is not None

    @property
    def problem(self) -> str:
        """Why the adapter is not open."""
        problem = self._loop.problem
        return f"the adapter cannot be opened: {problem}" if problem else _OPENING

    @property
    def locked_seconds(self) -> float:
        """For how many seconds the ledger has taken no transaction; 0 if it does."""
        since = self._asked_at
        return 0.0 if since is None else time.monotonic() - since

    @property
    def adapter(self) -> Adapter:
        """The adapter.

        Raises
        ------
        NotOpen
            If it could not be opened yet.
        """
        if self._adapter is None:
            raise NotOpen(self.problem)
        return self._adapter

    def start(self) -> None:
        """Begin to open the adapter."""
        self.heart.start()
        self._loop.start()

    def stop(self) -> None:
        """Stop polling and close the adapter."""
        self._loop.stop(_STOP_SECONDS)
        self._transactions.stop(0)
        if self._due_work_poll is not None:
            self._due_work_poll.stop()
        self.heart.stop()
        if self._adapter is not None:
            self._adapter.close()

    def _open(self) -> None:
        adapter = self._adapter = self._adapter or open_adapter(self.settings)
        self.spool_id = adapter.ledger.spool_id
        self.heart.beat()  # the spool is there now
        poll = DueWorkPoll(adapter, self.queues)
        poll.start()
        self._due_work_poll = poll
        self._transactions.start()
        self._loop.finish()

    def _begin_transaction(self) -> None:
        """Begin a writing transaction, and write nothing: a ledger that is locked takes none."""
        self._asked_at = self._asked_at or time.monotonic()
        with self.adapter.ledger.write():
            self._asked_at = None
