# SPDX-License-Identifier: Apache-2.0
"""A worker that is told to stop ends when its work has ended, whatever holds its main thread."""

from __future__ import annotations

import subprocess
import sys
import time

PROGRAM = """
import sys, time
from workers import shutdown
shutdown.LINGER_SECONDS = 0.5
here = shutdown.Shutdown()
with here.at_work():
    here.begin()
    time.sleep(2)
    print("worked", flush=True)
time.sleep(1000)  # as Celery for its broker
"""


def test_it_ends_after_its_work() -> None:
    """The run at work is not cut short; then the process ends, and well."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert time.monotonic() - began > 2.4
    assert done.stdout.splitlines()[0] == "worked"
    assert "ending without Celery" in done.stdout + done.stderr
