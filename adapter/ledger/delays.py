# SPDX-License-Identifier: Apache-2.0
"""How long a row waits: the longest legal wait, and the delay that grows with each failure."""

from __future__ import annotations

#: The longest that a row legally waits for its due time (seconds).
LONGEST_WAIT = 7 * 86400.0

#: Doublings after which a delay grows no more: beyond them ``2 ** n`` only overflows.
_DOUBLINGS = 32


def growing_delay(first: float, failures: int, longest: float) -> float:
    """Return the delay after a failure (seconds): doubled with each failure before it.

    Parameters
    ----------
    first : float
        The delay after the first failure, in seconds.
    failures : int
        Failures before this one.
    longest : float
        The longest delay, in seconds.
    """
    return min(first * 2.0 ** min(failures, _DOUBLINGS), longest, LONGEST_WAIT)
