# SPDX-License-Identifier: Apache-2.0
"""Re-encoding for a destination that asks for it, in a child process, by pydicom.

Values stay what they are; only how elements are encoded changes (PS3.5 Annexes A.1 and A.2).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from adapter.errors import PermanentError

#: Bytes of address space for the child: its own, and times the data set.
_MEMORY, _COPIES = 1_000_000_000, 4
#: Seconds that it may take: its own, and bytes a second.
_SECONDS, _SLOWEST = 60.0, 5_000_000


def reencode(descriptor: int, source: str, target: str) -> BinaryIO:
    """Return a temporary file with a data set in another uncompressed little-endian syntax.

    Parameters
    ----------
    descriptor : int
        The file, at the first byte of the data set.
    source, target : str
        The transfer syntax UIDs.

    Raises
    ------
    PermanentError
        If the data set cannot be decoded, or not in time.
    OSError
        If there is no room for it.
    """
    size = os.fstat(descriptor).st_size
    command = [sys.executable, "-m", "workers.clients.reencode_child", source, target]
    with ExitStack() as unless_returned:
        out = unless_returned.enter_context(tempfile.TemporaryFile())
        try:
            ended = subprocess.run(
                [*command, str(_MEMORY + _COPIES * size)],
                stdin=descriptor,
                stdout=out,
                stderr=subprocess.DEVNULL,  # a traceback could quote patient data
                start_new_session=True,
                cwd=Path(__file__).parents[2],
                timeout=_SECONDS + size / _SLOWEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PermanentError("re-encoding the file took too long", "took-too-long") from None
        if ended.returncode:
            raise PermanentError("the file cannot be re-encoded", "not-parseable")
        unless_returned.pop_all()
        return out
