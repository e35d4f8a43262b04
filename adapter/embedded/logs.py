# SPDX-License-Identifier: Apache-2.0
"""The roles' log files: rotated, and followed for warnings and errors to show on the terminal.

A role writes to its file itself, so neither a slow terminal nor a dead supervisor can block it.  A
full file is copied and emptied; lines written at that moment may be lost.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

#: Bytes after which a file is rotated, and the number of rotated files.
FULL = 10_000_000
KEPT = 3

_LOUD = {"warning", "error", "critical"}
_QUIET_KEYS = {"event", "level", "timestamp", "logger", "exception", "stack"}
_READ = 1 << 16


class RoleLog:
    """The log file of one role.

    Parameters
    ----------
    path : Path
        The file; older ones are in the same folder, with .1, .2, ...
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._read = path.stat().st_size
        self._rest = b""

    def open(self) -> BinaryIO:
        """Open the file for a process to append to."""
        return self.path.open("ab")

    def follow(self) -> Iterator[str]:
        """Yield a line of text for each warning or error since the last call."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read(_READ)
            self._read += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            self._rest = self._rest[-_READ:]
            yield from filter(None, map(_for_people, lines))

    def rotate(self) -> None:
        """Copy the file and empty it, when it is full."""
        with suppress(OSError):
            if self.path.stat().st_size < FULL:
                return
            for number in range(KEPT - 1, 0, -1):
                with suppress(FileNotFoundError):
                    self._aside(number).replace(self._aside(number + 1))
            shutil.copyfile(self.path, self._aside(1))
            # Its writers append, so they continue at the new end.
            with self.path.open("r+b") as file:
                file.truncate(0)
            self._read, self._rest = 0, b""

    def tail(self, lines: int = 5) -> list[str]:
        """Return the last lines, to show why a role does not start."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - 8192))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
        return []

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _for_people(line: bytes) -> str | None:
    """Return a JSON log line as text if it is a warning or worse, without its stack."""
    if b'"level"' not in line:
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("level") not in _LOUD:
        return None
    facts = [f"{key}={value}" for key, value in entry.items() if key not in _QUIET_KEYS]
    text = " ".join([f"{entry['level']}:", str(entry.get("event", "")), *facts])
    # It may contain a peer's text, which must not control the terminal.
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])
