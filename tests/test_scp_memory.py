# SPDX-License-Identifier: Apache-2.0
"""How much memory receiving takes: proportional (PSS), of all its processes together."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from struct import pack

from tests import support_wire as wire
from tests.support_scp import incoming
from tests.test_scp_processes import open_for, processes

MB = 1_000_000
#: Fragments of the length that `maximumPduBytes` offers.
PIECE = bytes(131_066)


def memory(found):
    """Return the memory of all receiving processes in bytes."""
    total = 0
    for pid in [found.process.pid, *found.children()]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


@contextmanager
def watched(found):
    """Yield a list whose last item is, in the end, the most memory that was seen meanwhile."""
    seen, done = [memory(found)], threading.Event()

    def watch():
        while not done.wait(0.05):
            seen.append(memory(found))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
        seen.append(max(seen))


def test_a_large_object(settings):
    """An object of 300 MB is received with less than 32 MB more than before."""
    pieces = 300 * MB // len(PIECE)
    pixels = pieces * len(PIECE)
    head = wire.data_set()[:-4] + pack("<I", pixels)
    with processes(settings) as found, found.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(wire.message(wire.CT, wire.store_command(), wire.data_set()))
        assert caller.status() == 0x0000  # so that what is made once is made
        before = memory(found)
        with watched(found) as seen:
            caller.send(wire.message(wire.CT, wire.store_command("1.2.3.4.5")))
            caller.send(wire.data(wire.pdv(wire.CT, 0, head)))
            piece = wire.data(wire.pdv(wire.CT, 0, PIECE))
            for _ in range(pieces - 1):
                caller.socket.sendall(piece)
            caller.send(wire.data(wire.pdv(wire.CT, 2, PIECE)))
            caller.socket.settimeout(60)
            assert caller.status() == 0x0000
        assert seen[-1] - before < 32 * MB
    _, large = sorted(incoming(open_for(settings)), key=lambda path: path.stat().st_size)
    assert large.stat().st_size > pixels
    large.unlink()


def test_many_associations_that_are_idle(settings):
    """200 idle associations take less than 200 kB each, threads and buffers included."""
    limits = dict.fromkeys(("maximumNumberOfAssociations", "maximumAssociationsPerPeer"), 220)
    limits["maximumHalfOpen"] = 220
    with processes(settings, **limits) as found, found.calls(20) as first:
        assert all(caller.associate()[:1] == b"\2" for caller in first)  # so that all are awake
        before = memory(found)
        with found.calls(200) as callers:
            assert all(caller.associate()[:1] == b"\2" for caller in callers)
            assert not found.answers()
            assert memory(found) - before < 40 * MB
