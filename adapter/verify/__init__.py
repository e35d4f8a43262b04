# SPDX-License-Identifier: Apache-2.0
"""Verification: spool and ledger account for each other.

Every file has its row, every row that needs a file has it with all its bytes, and every unfinished
row has a next step.  Work in progress is not a difference: both sides are compared a second time a
little later, and only what differs both times is reported.

::

    listing.py    what is in the spool
    arrivals.py   acknowledged files and their rows
    steps.py      groups, jobs, tasks, exports and leases: does each have a next step?
    results.py    the output of pipelines, and its rows
    digests.py    the bytes themselves (deep)

Verification changes nothing, on either side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from adapter.core import Adapter
from adapter.ledger.engines import AWAY
from adapter.verify import arrivals, digests, results, steps
from adapter.verify.difference import Difference
from adapter.verify.listing import list_spool

__all__ = ["Difference", "verify"]


def verify(
    adapter: Adapter, settle_seconds: float = 5.0, *, deep: bool = False
) -> list[Difference]:
    """Return the differences between spool and ledger that persist.

    Parameters
    ----------
    adapter : Adapter
        The adapter whose spool and ledger are compared.
    settle_seconds : float
        Seconds between the two comparisons.
    deep : bool
        Whether the bytes of every file are read and their digests compared too.
    """
    found = _look(adapter)
    if found:
        time.sleep(settle_seconds)
        found &= _look(adapter)
    if deep:
        found |= set(_whatever_it_meets("digests", lambda: digests.compare(adapter)))
    return sorted(found)


def _look(adapter: Adapter) -> set[Difference]:
    listing = list_spool(adapter.spool)  # before the rows: a file exists before its row does
    return {
        *listing.strangers,
        *_whatever_it_meets("arrivals", lambda: arrivals.compare(adapter, listing)),
        *_whatever_it_meets("steps", lambda: steps.compare(adapter)),
        *_whatever_it_meets("results", lambda: results.compare(adapter, listing)),
    }


def _whatever_it_meets(
    what: str, compare: Callable[[], Iterable[Difference]]
) -> Iterator[Difference]:
    """Yield the differences of one comparison; if it cannot go on, that is the last of them."""
    try:
        yield from compare()
    except AWAY:
        raise
    except Exception as error:  # noqa: BLE001 - verification is for what nobody foresaw
        problem = f"the comparison cannot go on: {type(error).__name__}"
        yield Difference("verify", what, problem, "report this as a defect")
