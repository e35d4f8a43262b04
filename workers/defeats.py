# SPDX-License-Identifier: Apache-2.0
"""Errors that nobody foresaw: whose fault each is, and that it is counted, logged and shown.

The rule stands in `adapter.ledger.attempts`; here is its one base for all stages.  Every stage does
the work on one row inside `counted`, or asks `blame` where a batch was tried row by row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from adapter.errors import LeaseLost
from adapter.ledger import attempts, leases
from adapter.ledger.attempts import Defeat
from adapter.ledger.leases import Lease
from adapter.log import get_logger
from adapter.models import ArrivalId
from workers.stage import Parked, TryFailed, Work, failure_of

log = get_logger(__name__)

#: What came of a row that was lost to another worker.
LOST = "lost"

#: Stands for any arrival where the work on a row touches the spool as a whole.
_ANY_ARRIVAL = str(ArrivalId(0.0, "000000000000", 0, 0))


#: Seconds after which the disk counts as failing, also where it answers in the end.
_SLOW_PROBE = 5.0


@dataclass
class RowAttempt:
    """One attempt on a row.

    Attributes
    ----------
    outcome : str
        What came of it, set by the stage.
    failure : TryFailed or Parked, optional
        Why it failed.
    """

    outcome: str = LOST
    failure: TryFailed | Parked | None = None
    began: float = field(default_factory=time.monotonic)


@contextmanager
def counted(
    work: Work, stage: str, lease: Lease, row: str, record: Callable[[Defeat], str]
) -> Iterator[RowAttempt]:
    """Work on one leased row: keep its lease, and count an error that nobody foresaw against it.

    Parameters
    ----------
    work : Work
        What the stage works with.
    stage : str
        Which stage.
    lease : Lease
        The row's lease.
    row : str
        The row's id.
    record : callable
        Counts the defeat in the ledger, and returns the outcome of the attempt.

    Raises
    ------
    Exception
        What is no row's fault: the ledger is away, or the spool fails.  The row is given back.
    """
    attempt = RowAttempt()
    ledger = work.adapter.ledger
    try:
        with leases.kept(ledger, lease):
            work.adapter.spool.check_whole()
            yield attempt
    except LeaseLost:
        log.warning("a row was lost to another worker", stage=stage, row=row)
        if lease.excused.is_set():
            work.owe(partial(leases.excuse, ledger, lease, row))
    except Exception as error:  # noqa: BLE001 - the one base of the work on a row
        try:
            why = blame(work, stage, row, error, since=attempt.began)
        except Exception:
            work.owe(partial(leases.excuse, ledger, lease, row))
            raise
        with suppress(LeaseLost):
            attempt.outcome = record(why)
            attempt.failure = failure_of(attempt.outcome, why.text)


def blame(
    work: Work,
    stage: str,
    row: str,
    error: Exception,
    *,
    arrival: str | None = None,
    since: float | None = None,
) -> Defeat:
    """Return why a row defeated its worker; log and count it.

    Parameters
    ----------
    arrival : str, optional
        The arrival whose file the work was about, if it was one.
    since : float, optional
        When the work on it began (``time.monotonic``).

    Raises
    ------
    Exception
        The error itself if it is no row's fault: the ledger is away, or the spool fails other files
        as well.  `SpoolAway` if the spool is away, or was since the work began.
    """
    raise_if_nobodys(work, error, arrival, since)
    why = attempts.why(error)
    log_and_count(work, stage, row, why)
    return why


def raise_if_nobodys(
    work: Work, error: Exception, arrival: str | None = None, since: float | None = None
) -> None:
    """Raise an error again if it is no row's fault, as `blame` does."""
    if attempts.is_nobodys(error):
        raise error
    work.adapter.spool.check_whole(since)
    if isinstance(error, OSError):
        began = time.monotonic()
        work.adapter.spool.probe(arrival or _ANY_ARRIVAL)
        if time.monotonic() - began > _SLOW_PROBE:
            raise error


def log_and_count(work: Work, stage: str, row: str, why: Defeat) -> None:
    """Log and count a defeat."""
    log.error(
        "a row defeated its worker", stage=stage, row=row, reason=why.reason, problem=why.message
    )
    work.metrics.defeated(stage, why.reason)
