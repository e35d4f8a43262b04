# SPDX-License-Identifier: Apache-2.0
"""A destination of kind `dicom`: files go out by C-STORE, and DIMSE's answers become receipts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from adapter.dicom.rejections import (
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
)
from adapter.ledger.receipts import Receipt
from adapter.models import DicomDestination
from adapter.scu.association import (
    AssociationBroken,
    AssociationRejected,
    Unreachable,
)
from adapter.scu.files import Outgoing
from adapter.settings import Scu
from workers.clients.destination import Away, CutShort, Refused
from workers.clients.store_scu import store

#: Rejections that no further try will change (PS3.8 Table 9-21).
_HOPELESS = {
    CALLING_AE_TITLE_NOT_RECOGNIZED: "calling-ae-not-recognised",
    CALLED_AE_TITLE_NOT_RECOGNIZED: "called-ae-not-recognised",
}


class DicomClient:
    """Sends to one application entity; see `workers.clients.destination.DestinationClient`.

    Parameters
    ----------
    destination : DicomDestination
        Whom to send to.
    scu : Scu
        Who sends, and the deadlines.
    """

    def __init__(self, destination: DicomDestination, scu: Scu) -> None:
        self._destination = destination
        self._scu = scu

    def send(
        self, files: Sequence[Outgoing], *, answered: Callable[[], None]
    ) -> Generator[Receipt]:
        """Send files and yield what became of each."""
        try:
            yield from store(files, self._destination, self._scu, answered=answered)
        except Unreachable as unreachable:
            raise Away(str(unreachable)) from None
        except AssociationBroken as broken:
            raise CutShort(f"the destination {broken}") from None
        except AssociationRejected as rejected:
            words = f"the destination {rejected}"
            if rejected.code in _HOPELESS:
                raise Refused(words, _HOPELESS[rejected.code]) from None
            raise CutShort(words) from None
