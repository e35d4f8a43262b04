# SPDX-License-Identifier: Apache-2.0
"""Starts a program that cannot outlive its supervisor: ``parent_death.py PARENT NICE PROGRAM ...``.

It runs as a script and imports nothing of the adapter.  It asks the kernel for the parent-death
signal, SIGTERM when the parent dies, even by SIGKILL; then the program replaces it.  It is not a
`preexec_fn`, because Python must not run between fork and exec of a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: prctl(2): the signal that this process gets when the thread that started it ends.
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the program."""
    parent, nice, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # the parent died before the signal was set
        sys.exit(1)
    os.nice(int(nice))
    signal.signal(
        signal.SIGPIPE, signal.SIG_DFL
    )  # Python ignores it, and programs would inherit that
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
