# SPDX-License-Identifier: Apache-2.0
"""The Storage SCU as export uses it: what becomes of each file is a receipt for the ledger."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from adapter.ledger.receipts import Receipt
from adapter.models import DicomDestination
from adapter.scu import store as storage
from adapter.scu.files import Outgoing
from adapter.settings import Scu
from workers.clients.reencoding import reencode


def store(
    files: Sequence[Outgoing],
    destination: DicomDestination,
    scu: Scu,
    *,
    answered: Callable[[], None],
) -> Generator[Receipt]:
    """Send files and yield a receipt for each; close the iterator to stop between two files.

    Files in an uncompressed syntax are re-encoded if the destination asks for it.

    Raises
    ------
    Unreachable, AssociationRejected, AssociationBroken
        If there is no association, or it ends; the file on its way then has its receipt.
    """
    reencoding = reencode if destination.reencode_uncompressed else None
    sending = storage.store(files, destination, scu, answered=answered, reencode=reencoding)
    with closing(sending) as results:
        for result in results:
            file, tries = result.file, result.file.tries + result.sent
            yield Receipt(file.number, tries, result.outcome, result.status, result.reason)
