# SPDX-License-Identifier: Apache-2.0
"""The one rule for a row that kills or defeats its worker.

A row *kills* a worker if the worker dies while it holds the row's lease.  A row *defeats* a worker
if an error that nobody foresaw ends the work on it: one that has no place of its own among the
failed tries of a job or an export.  Both count against the row, in the same counter:

==========================  =======================================================================
the ledger or the spool is  counts against no row: the rows are given back, and the stage pauses;
away, the disk fails, the   a lease that ran out meanwhile is taken back (`leases.excuse`)
worker is suspended
a row defeats its worker    that row is separated from its batch, counted, and rests, longer each
                            time; the others go on
a row kills its worker      its lease runs out, which counts; it is due at once
a job processor fails       the row is quarantined or parked at once: it would fail again.  If it is
                            not installed here, a file is quarantined at once, so that no other
                            waits for it; a group rests, since another worker may have it
counted too often           it is parked or quarantined with the reason, an event and a metric; an
                            operator lets it be tried again (`retry`) or gives it up (`discard`)
==========================  =======================================================================

===========  ====================  ===========================  ==================================
row          counter               bound                        then
===========  ====================  ===========================  ==================================
arrival      `attempts`            `ARRIVAL_ATTEMPTS`           `quarantined`
group        `lease_expiries`      `maximumLeaseExpiries`       `parked`; while it is reclaimed it
                                                                stays `reclaiming`, shown as stuck
job, export  `lease_expiries`      `maximumLeaseExpiries`       `parked`
report       `report_failures`     `maximumLeaseExpiries`       goes on, with an event: the answer
                                                                stays owed
===========  ====================  ===========================  ==================================

An arrival has a lower bound than the rest: while it waits it holds the groups of its AE title open.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from adapter.errors import (
    AdapterError,
    ChildKilled,
    ConfigurationError,
    LeaseLost,
    NotYetVisible,
    ProcessorError,
    SpoolAway,
)
from adapter.ledger import leases
from adapter.ledger.delays import growing_delay
from adapter.ledger.engines import AWAY
from adapter.ledger.leases import LONGEST_REST, Lease

#: Attempts to register an arrival, ended by a death or a defeat, before it is quarantined.
ARRIVAL_ATTEMPTS = 3

#: The first rest of a row that defeated its worker (seconds); each further one is twice as long.
FIRST_REST = 2.0
#: The same for an arrival whose file could not be read or written: it has few attempts, and a disk
#: that fails for a while gets time to be well again before the last one.
FIRST_REST_OF_A_FILE = 30.0

#: Errors that are the host's or the volume's and never one row's.  EIO is none of them: one sector
#: may be bad, so other files are tried (`Spool.probe`).
_OF_THE_HOST = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EHOSTDOWN,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.EROFS,
        errno.ESHUTDOWN,
        errno.ESTALE,
    }
)

KILLS = "kills-its-worker"
FILE_SYSTEM = "file-system"
PROCESSOR = "job-processor"
LEDGER_REFUSES = "ledger-refuses"
NOT_VISIBLE = "not-visible"
UNKNOWN_VERSION = "unknown-version"
UNFORESEEN = "unforeseen"

#: Every reason of a defeat: the values of a metric's label.
REASONS = (
    KILLS,
    FILE_SYSTEM,
    PROCESSOR,
    LEDGER_REFUSES,
    NOT_VISIBLE,
    UNKNOWN_VERSION,
    UNFORESEEN,
)


@dataclass(frozen=True, slots=True)
class Defeat:
    """Why a row defeated or killed its worker.

    Attributes
    ----------
    reason : str
        One of `REASONS`.
    message : str
        A sentence for people, without PHI.
    is_final : bool
        Whether another attempt would end like this one, on whatever worker.
    """

    reason: str
    message: str
    is_final: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What a row and an event say of it."""
        return {"reason": self.reason, "message": self.message[:500]}

    @property
    def rest_of_arrival(self) -> float:
        """The first rest of an arrival that defeated its worker (seconds)."""
        return FIRST_REST_OF_A_FILE if self.reason == FILE_SYSTEM else FIRST_REST

    @property
    def text(self) -> str:
        """The reason and the sentence, for people."""
        return f"{self.reason}: {self.message}"


def why(error: Exception) -> Defeat:
    """Return why an error ended the work on a row.

    An error's text is shown only if it is one of ours: others may quote patient data.
    """
    match error:
        case ProcessorError() | ConfigurationError():
            # Another worker may have a plug-in that is not installed here.
            is_final = isinstance(error, ProcessorError)
            return Defeat(PROCESSOR, str(error), is_final=is_final)
        case NotYetVisible():
            return Defeat(NOT_VISIBLE, str(error))
        case AdapterError():
            return Defeat(KILLS if isinstance(error, ChildKilled) else UNFORESEEN, str(error))
        case OSError():
            name = errno.errorcode.get(error.errno or 0, "no errno")
            return Defeat(FILE_SYSTEM, f"{type(error).__name__} ({name})")
        case SQLAlchemyError():
            return Defeat(LEDGER_REFUSES, type(error).__name__)
        case _:
            return Defeat(UNFORESEEN, type(error).__name__)


def is_nobodys(error: Exception) -> bool:
    """Tell whether an error can be no single row's fault, whichever row it came up with."""
    if isinstance(error, OSError):
        return error.errno in _OF_THE_HOST
    return isinstance(error, (*AWAY, LeaseLost, SpoolAway))


def killed(expiries: int, maximum: int) -> Defeat | None:
    """Return why a row whose leases keep running out has to be parked; None if it has not."""
    if expiries < maximum:
        return None
    words = "attempts on it ended without a result: its worker died, or an error came up"
    return Defeat(KILLS, f"{expiries} {words}")


def rest(
    connection: Connection,
    lease: Lease,
    row: str,
    count: int,
    *,
    first: float = FIRST_REST,
    **values: Any,
) -> None:
    """Write to a row that defeated its worker for the `count`-th time, and give it back to rest.

    Parameters
    ----------
    first : float, optional
        The first rest in seconds; each further one is twice as long.

    Raises
    ------
    LeaseLost
        If another worker holds the row.
    """
    seconds = growing_delay(first, max(0, count - 1), LONGEST_REST * lease.seconds)
    leases.rest(connection, lease, row, seconds, **values)
