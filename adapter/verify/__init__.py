# SPDX-License-Identifier: Apache-2.0
"""Verification: spool and ledger account for each other.

Every file has its row, every row that needs a file has it with all its bytes, and every row that
is not at its end has a next step.  Work in flight is no difference: what is found is looked for
again a little later, and only what is still the same is told.

::

    listing.py    what is in the spool
    arrivals.py   acknowledged files and their rows
    steps.py      groups, jobs, tasks, exports and leases: does each have a next step?
    results.py    what pipelines produced, and its rows
    digests.py    the bytes themselves (deep)

Nothing is changed here, on either side.
"""

from __future__ import annotations

import time

from adapter.core import Adapter
from adapter.verify import arrivals, digests, results, steps
from adapter.verify.difference import Difference
from adapter.verify.listing import list_spool

__all__ = ["Difference", "verify"]


def verify(
    adapter: Adapter, settle_seconds: float = 5.0, *, deep: bool = False
) -> list[Difference]:
    """Return what spool and ledger disagree on, and still do after a while.

    Parameters
    ----------
    adapter : Adapter
        Whose spool and ledger are compared.
    settle_seconds : float
        Seconds between the two looks.
    deep : bool
        Whether the bytes of every file are read and their digests compared too.
    """
    found = _look(adapter)
    if found:
        time.sleep(settle_seconds)
        found &= _look(adapter)
    if deep:
        found |= digests.compare(adapter)
    return sorted(found)


def _look(adapter: Adapter) -> set[Difference]:
    listing = list_spool(adapter.spool)  # before the rows: a file is there before its row is
    return {
        *listing.strangers,
        *arrivals.compare(adapter, listing),
        *steps.compare(adapter),
        *results.compare(adapter, listing),
    }
