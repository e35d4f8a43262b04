# SPDX-License-Identifier: Apache-2.0
"""The roles' log files: rotated, and followed for warnings and errors to show on the terminal.

A role writes to its file itself, so neither a slow terminal nor a dead supervisor can block it.  A
full file is copied and emptied; lines written at that moment may be lost.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

#: Bytes after which a file is rotated, and the number of rotated files.
FULL = 10_000_000
KEPT = 3

#: Lines of one message that are shown in each period; then it is said how many more there were.
MOST_ALIKE = 10
PERIOD_SECONDS = 60.0

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
        self._period_began = time.monotonic()
        self._shown: Counter[str] = Counter()  # lines of the present period, by message

    def open(self) -> BinaryIO:
        """Open the file for a process to append to."""
        return self.path.open("ab")

    def follow(self) -> Iterator[str]:
        """Yield a line of text for each warning or error since the last call.

        A peer may cause the same message again and again: only some of them are shown.
        """
        yield from self._sum_up()
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read(_READ)
            self._read += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            self._rest = self._rest[-_READ:]
            for entry in filter(None, map(_loud_entry, lines)):
                message = str(entry.get("event", ""))[:100]
                self._shown[message] += 1
                if self._shown[message] <= MOST_ALIKE:
                    yield _for_people(entry)

    def _sum_up(self) -> Iterator[str]:
        """End the period when it is over; say what was not shown in it."""
        now = time.monotonic()
        if now - self._period_began < PERIOD_SECONDS:
            return
        for message, number in self._shown.items():
            if number > MOST_ALIKE:
                more = f"warning: {message}: {number - MOST_ALIKE} more in {self.path}"
                yield _printable(more)
        self._period_began = now
        self._shown.clear()

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


def _loud_entry(line: bytes) -> dict[str, Any] | None:
    """Return a JSON log line if it is a warning or worse."""
    if b'"level"' not in line:
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.get("level") in _LOUD else None


def _for_people(entry: dict[str, Any]) -> str:
    """Return a log entry as text, without its stack."""
    facts = [f"{key}={value}" for key, value in entry.items() if key not in _QUIET_KEYS]
    return _printable(" ".join([f"{entry['level']}:", str(entry.get("event", "")), *facts]))


def _printable(text: str) -> str:
    """Return a text that may contain a peer's, which must not control the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])
