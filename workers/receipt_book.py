# SPDX-License-Identifier: Apache-2.0
"""Receipts on their way into the ledger: soon, in batches, and beside the sending.

A file whose receipt is not in the ledger when a worker is killed is sent again.  So there must be
few of them: sixteen files, or those that were answered in the last half second.

The thread is not a background loop: it ends with its export, and an error that it meets is the
export's error.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from adapter.errors import LeaseLost
from adapter.ledger import Ledger, exports
from adapter.ledger.exports import Export
from adapter.ledger.receipts import Receipt

#: Receipts that may wait, in all and before they are written at once; and how long, in seconds.
MOST, ENOUGH, SECONDS = 16, 8, 0.5


class ReceiptBook:
    """Writes an export's receipts from a thread of its own, while a `with` block sends files.

    Parameters
    ----------
    ledger : Ledger
        Where to.
    export : Export
        Whose they are.

    Raises
    ------
    LeaseLost
        At the next receipt, or at the end of the block, if another worker holds the export.
    Exception
        In the same places, whatever else kept a receipt from being written.
    """

    def __init__(self, ledger: Ledger, export: Export) -> None:
        self._ledger = ledger
        self._export = export
        self._waiting: list[Receipt] = []
        self._closed = False
        self._ended = False
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="receipts", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._failure is not None:
            raise self._failure from error

    def add(self, receipt: Receipt) -> None:
        """Take a receipt; waits while too many are not written yet."""
        with self._changed:
            self._waiting.append(receipt)
            self._changed.notify_all()
            while len(self._waiting) >= MOST and not self._ended:
                self._changed.wait()
            if self._ended:
                raise self._failure or LeaseLost("receipts are not written any more")

    def _write(self) -> None:
        try:
            while batch := self._next_batch():
                exports.confirm(self._ledger, self._export, batch)
                with self._changed:
                    del self._waiting[: len(batch)]
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - raised again where the files are sent
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _next_batch(self) -> list[Receipt]:
        """Wait for receipts that have to be written; none when the book is closed and empty."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            deadline = time.monotonic() + SECONDS
            while len(self._waiting) < ENOUGH and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return list(self._waiting)
