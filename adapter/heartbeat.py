# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: what each role's process says about itself, in a small file beside the spool.

A heartbeat is a hint for health and tables, never a fact that anything depends on: it is replaced
whole but not synced, and an old one only means that nobody writes it any more.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapter.spool import Spool

#: Seconds after which the process of a heartbeat counts as gone.
SILENCE_SECONDS = 10.0

_FORGOTTEN_SECONDS = 3600.0


def _path(spool: Spool, role: str) -> Path:
    return spool.status / f"{role}-{socket.gethostname()}-{os.getpid()}.json"


def write(spool: Spool, role: str, **facts: Any) -> None:
    """Replace this process's heartbeat for a role.

    Raises
    ------
    OSError
        If the file system refuses it.
    """
    path = _path(spool, role)
    beat = {"role": role, "host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps({**beat, **facts}), encoding="utf-8")
    temporary.replace(path)


def remove(spool: Spool, role: str) -> None:
    """Take this process's heartbeat for a role away: it has stopped as it should."""
    with suppress(OSError):
        _path(spool, role).unlink(missing_ok=True)


def forget_gone(spool: Spool) -> None:
    """Delete the heartbeats of processes that died long ago."""
    with suppress(OSError):
        for path in spool.status.glob("*.json"):
            if path.stat().st_mtime < time.time() - _FORGOTTEN_SECONDS:
                path.unlink(missing_ok=True)


def read_all(spool: Spool) -> list[dict[str, Any]]:
    """Return the heartbeats that are there and can be read, by role, host and process.

    Returns
    -------
    list of dict
        Each as written, with ``"age"``: seconds since then.  One older than `SILENCE_SECONDS` is of
        a process that is gone.
    """
    found = []
    for path in sorted(spool.status.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            beat = json.loads(path.read_text(encoding="utf-8"))
            found.append({**beat, "age": max(0.0, time.time() - float(beat["at"]))})
    return found
