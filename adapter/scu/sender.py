# SPDX-License-Identifier: Apache-2.0
"""Sends files as a modality does: again and again, until the destination has answered for each.

The command `send` and the demo use it.  Nothing of it is kept: when the process ends, so does the
sending.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace

from adapter.dicom.rejections import PERMANENT
from adapter.models import DicomDestination, Outcome
from adapter.scu.association import AssociationBroken, AssociationRejected, Unreachable
from adapter.scu.files import Outgoing
from adapter.scu.store import StoreResult, store
from adapter.settings import Scu

#: Seconds between tries: the first pause, which doubles up to the longest.
_PAUSE, _LONGEST_PAUSE = 0.5, 5.0

#: Called with the result of each file, once.
Settled = Callable[[StoreResult], None]


def send(
    files: Iterable[Outgoing],
    destination: DicomDestination,
    scu: Scu,
    settled: Settled,
    *,
    give_up_seconds: float = 30.0,
    insist: bool = False,
) -> None:
    """Send files, and send again those that were not answered.

    Parameters
    ----------
    files : iterable of Outgoing
        The files, each with a number of its own.
    destination : DicomDestination
        The peer.
    scu : Scu
        Our AE title, and the deadlines.
    settled : callable
        Called once for each file: when it is answered, or given up.
    give_up_seconds : float, seconds
        How long to try again without a single answer.
    insist : bool
        Whether to try again even when the destination rejects the association for good.  It may
        not have a new configuration in force yet.

    Raises
    ------
    AssociationRejected
        If the destination rejects the association for good, and `insist` is false.
    """
    left = {file.number: file for file in files}
    end = time.monotonic() + give_up_seconds
    pause = _PAUSE
    while left:
        before = len(left)
        try:
            why = _send_once(left, destination, scu, settled)
        except AssociationRejected as rejected:
            if rejected.code[0] == PERMANENT and not insist:
                raise
            why = f"the destination {rejected}"
        if len(left) < before:
            end, pause = time.monotonic() + give_up_seconds, _PAUSE
        elif time.monotonic() + pause > end:
            for file in left.values():
                settled(StoreResult(file, Outcome.RETRY, reason=why, sent=file.repeat))
            return
        else:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _send_once(
    left: dict[int, Outgoing], destination: DicomDestination, scu: Scu, settled: Settled
) -> str:
    """Send files and take those that are settled off `left`; return why the others are left."""
    try:
        with closing(store(list(left.values()), destination, scu)) as results:
            for result in results:
                file = left.pop(result.file.number)
                if result.unanswered:
                    # Last, so that a file that breaks every association keeps no other waiting.
                    # The destination may have it, so that a duplicate would be our own.
                    left[file.number] = replace(file, repeat=True)
                else:
                    settled(result)
    except Unreachable as unreachable:
        return str(unreachable)
    except AssociationBroken as broken:
        return f"the destination {broken}"
    return ""
