# SPDX-License-Identifier: Apache-2.0
"""Values that are looked up by a thread of their own, so that nobody waits long for what hangs.

Ledger, spool and broker may each hang for minutes.  A look that hangs blocks one thread, and a
caller for a moment only; whoever asks meanwhile shares that look.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from adapter.errors import AdapterError

#: Seconds that a value is kept, whatever the number of callers.
FRESH_SECONDS = 3.0
#: Seconds that a caller waits, for all that it asks.
ANSWER_SECONDS = 0.7
#: Seconds of a look after which the value before it is not shown any more.
HANGS_SECONDS = 5.0

V = TypeVar("V")


class NotAvailable(Exception):
    """What was asked for did not answer, or not in time; the text is the type of the error.

    Attributes
    ----------
    late : bool
        Whether it may still answer.
    """

    def __init__(self, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.late = late


class Fresh(Generic[V]):
    """A cached value that one thread at a time renews, when it is read and too old.

    Parameters
    ----------
    find : callable
        Returns the present value.
    """

    def __init__(self, find: Callable[[], V]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._look: Future[V] | None = None
        self._last: Future[V] | None = None
        self._began = self._at = 0.0

    def begin(self, keep: float | None = None) -> Future[V]:
        """Begin to renew a value that is older than `keep` seconds (`FRESH_SECONDS`).

        Whoever asks for several values begins all of them before it waits for the first.
        """
        keep = FRESH_SECONDS if keep is None else keep
        with self._lock:
            look = self._look
            if look is None or (look.done() and time.monotonic() > self._at + keep):
                self._look = look = Future()
                self._began = time.monotonic()
                # A daemon, unlike an executor's: a thread that hangs must not delay the exit.
                threading.Thread(
                    target=self._renew, args=(look,), name="fresh", daemon=True
                ).start()
            return look

    def get(self, *, keep: float | None = None, until: float | None = None, last: bool = True) -> V:
        """Return the value.

        Parameters
        ----------
        keep : float, optional
            As for `begin`.
        until : float, optional
            When (``time.monotonic()``) the caller stops waiting; by default in `ANSWER_SECONDS`.
        last : bool, optional
            Whether the value before may be returned while a look takes its time.

        Raises
        ------
        NotAvailable
            If it cannot be determined now.
        """
        until = time.monotonic() + ANSWER_SECONDS if until is None else until
        look = self.begin(keep)
        try:
            return look.result(max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            if look.done():  # what the look raised
                raise NotAvailable(type(error).__name__) from None
            hangs = time.monotonic() - self._began > HANGS_SECONDS
            before = self._last
            if last and before is not None and not hangs:
                return before.result()
            raise NotAvailable("late", late=not hangs) from None
        except (AdapterError, SQLAlchemyError, OSError) as error:
            raise NotAvailable(type(error).__name__) from error

    def _renew(self, look: Future[V]) -> None:
        try:
            value = self._find()
        except Exception as error:  # noqa: BLE001 - `get` raises it again
            self._at = time.monotonic()
            self._last = None
            look.set_exception(error)
        else:
            self._at = time.monotonic()
            self._last = look
            look.set_result(value)
