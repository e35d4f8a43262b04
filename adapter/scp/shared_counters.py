# SPDX-License-Identifier: Apache-2.0
"""Counters that the processes of one SCP share, and that outlive each of them.

The processes inherit the memory.  Each has a part of its own, and only that process writes there:
counting writes a number, takes no lock that another process could hold, and makes no system call.
A process that takes over the part of a dead one goes on from the numbers that it finds, so no
counter goes back.

::

    part  = head (192 bytes), then entries until one has no name
    head  = beat, active associations, listening, refusing (8 bytes each), names of lost loops (160)
    entry = value (8 bytes), name (56 bytes)
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Sequence

#: Entries of a part: more than the labels' bounds allow to be used.
ENTRIES = 4096

_WORD = 8
_ENTRY = 8 * _WORD
_HEAD = 3 * _ENTRY
_PART = _HEAD + ENTRIES * _ENTRY
_SEPARATOR = "\x1f"  # in no AE title, no status and no name
# Words of a part's head.
_BEAT, _ACTIVE, _LISTENING, _REFUSING = range(4)
_LOST = slice(4 * _WORD, _HEAD)  # bytes of a part

#: A counter's name, and the values of its labels.
Key = tuple[str, ...]


class SharedCounters:
    """The shared memory, made before the processes that share it.

    Parameters
    ----------
    processes : int
        How many processes count or beat.
    """

    def __init__(self, processes: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, processes * _PART))
        self._parts = [self._part(number) for number in range(processes)]
        for number in range(processes):
            ProcessCounters(self._parts[number]).beat()

    @property
    def processes(self) -> int:
        """How many processes have counters."""
        return len(self._parts)

    def _part(self, number: int) -> memoryview:
        return self._memory[number * _PART : (number + 1) * _PART]

    def process(self, number: int) -> ProcessCounters:
        """Return the counters of one process."""
        return ProcessCounters(self._parts[number])

    def vacate(self, number: int) -> None:
        """Take note that a process is gone."""
        process = ProcessCounters(self._parts[number])
        process.set_active(0)
        process.set_listening(False)
        process.set_refusing(False)
        process.set_lost_loops([])

    # -- for those who show them -------------------------------------------------------------

    def silence(self) -> float:
        """Return for how many seconds the most silent process has not beaten."""
        return max(0.0, time.monotonic() - min(m.cast("d")[_BEAT] for m in self._parts))

    def active(self) -> int:
        """Return how many associations are open."""
        return sum(m.cast("q")[_ACTIVE] for m in self._parts)

    def listening(self) -> int:
        """Return how many processes accept connections."""
        return sum(m.cast("q")[_LISTENING] for m in self._parts)

    def refusing(self) -> int:
        """Return how many processes cannot store instances at present."""
        return sum(m.cast("q")[_REFUSING] for m in self._parts)

    def lost_loops(self) -> list[str]:
        """Return the names of the background loops that do not recover."""
        lost = (bytes(part[_LOST]).rstrip(b"\0").decode("ascii") for part in self._parts)
        return sorted({name for names in lost for name in names.split(_SEPARATOR) if name})

    def totals(self) -> dict[Key, int]:
        """Return the counters, each summed over the processes."""
        found: dict[Key, int] = {}
        for part in self._parts:
            for key, (_, value) in _entries(part).items():
                if value:  # while it is 0 its name may not be whole yet
                    found[key] = found.get(key, 0) + value
        return found


class ProcessCounters:
    """The counters of one process.

    Parameters
    ----------
    part : memoryview
        The part of the memory.
    """

    def __init__(self, part: memoryview) -> None:
        self._part = part
        self._words = part.cast("q")
        self._beats = part.cast("d")
        # Threads of one process would lose each other's additions.
        self._lock = threading.Lock()
        self._at = {key: at for key, (at, _) in _entries(part).items()}

    def add(self, key: Key, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            at = self._at.get(key)
            if at is None:
                at = self._new(key)
            self._words[at] += by

    def _new(self, key: Key) -> int:
        name = _SEPARATOR.join(key).encode("ascii")
        if len(name) > _ENTRY - _WORD or len(self._at) >= ENTRIES:
            raise ValueError("no such counter can be kept")
        at = _HEAD + len(self._at) * _ENTRY
        self._part[at + _WORD : at + _WORD + len(name)] = name
        self._at[key] = at // _WORD
        return at // _WORD

    def beat(self) -> None:
        """Say that the process lives."""
        self._beats[_BEAT] = time.monotonic()

    def set_active(self, number: int) -> None:
        """Say how many associations of the process are open."""
        self._words[_ACTIVE] = number

    def set_listening(self, listening: bool) -> None:
        """Say whether the process accepts connections."""
        self._words[_LISTENING] = int(listening)

    def set_refusing(self, refusing: bool) -> None:
        """Say whether the process cannot store instances at present."""
        self._words[_REFUSING] = int(refusing)

    def set_lost_loops(self, names: Sequence[str]) -> None:
        """Say which background loops of the process do not recover."""
        room = _LOST.stop - _LOST.start
        text = _SEPARATOR.join(names).encode("ascii")[:room]
        self._part[_LOST] = text.ljust(room, b"\0")


def _entries(part: memoryview) -> dict[Key, tuple[int, int]]:
    """Return where the value of each counter of a process is, and what it is."""
    words = part.cast("q")
    found: dict[Key, tuple[int, int]] = {}
    for at in range(_HEAD, _PART, _ENTRY):
        name = bytes(part[at + _WORD : at + _ENTRY]).rstrip(b"\0")
        if not name:
            break
        found[tuple(name.decode("ascii").split(_SEPARATOR))] = (at // _WORD, words[at // _WORD])
    return found
