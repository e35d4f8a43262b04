# SPDX-License-Identifier: Apache-2.0
"""What the export stage asks of a destination, whatever its kind.

A client sends files and says what became of each.  How often to try, whom to hold back and what to
park is the export stage's to decide.  So a client raises no error of its protocol, but these::

    Away       it cannot be reached: it is put on hold, and no try is used
    CutShort   it answered, but this try is over: what is not confirmed gets another
    Refused    it answered that no further try will change anything
    OSError    our own disk fails, which is for the export stage to judge
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from adapter.errors import PermanentError, TemporaryError
from adapter.ledger.receipts import Receipt
from adapter.scu.files import Outgoing


class Away(TemporaryError):
    """The destination cannot be reached."""


class CutShort(TemporaryError):
    """The destination answered, but the try is over before all files are sent."""


class Refused(PermanentError):
    """The destination answered that it will take nothing, however often it is asked."""


class DestinationClient(Protocol):
    """Sends files to one destination."""

    def send(
        self, files: Sequence[Outgoing], *, answered: Callable[[], None]
    ) -> Generator[Receipt]:
        """Send files and yield what became of each; close the iterator to stop between two files.

        Parameters
        ----------
        files : sequence of Outgoing
            What to send, in order.
        answered : callable
            Called when the destination is there and answers.

        Raises
        ------
        Away, CutShort, Refused
            A file that was on its way has been yielded before.
        """
