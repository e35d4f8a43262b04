# SPDX-License-Identifier: Apache-2.0
"""Waiting for what a test expects, for as long as it takes on a busy machine and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def eventually(check: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Return what `check` returns as soon as it is true; fail when it stays false.

    Parameters
    ----------
    check : callable
        Asked again and again.
    timeout : float, optional
        Seconds until it has to be true.
    """
    deadline = time.monotonic() + timeout
    while not (result := check()):
        assert time.monotonic() < deadline, f"still {result!r} after {timeout} s"
        time.sleep(0.02)  # what is waited for is in other threads and processes: none can wake us
    return result
