# SPDX-License-Identifier: Apache-2.0
"""Receiving processes are killed in mid-store, again and again: what was acknowledged is there."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from contextlib import suppress

import pytest

from adapter.dicom.part10 import read_file_meta
from tests import support_wire as wire
from tests.support_scp import incoming, leftovers
from tests.support_waiting import eventually
from tests.test_scp_processes import open_for, processes

#: `make soak` kills more often.
KILLS = 500 if os.environ.get("SOAK") else 20
SENDERS = 3


class Sender(threading.Thread):
    """Sends instances until it is told to stop, on a new association whenever one breaks."""

    def __init__(self, found, number):
        super().__init__(name="sender", daemon=True)
        self._found = found
        self._number = number
        self._random = random.Random(number)
        self.stop = threading.Event()
        self.sent, self.acknowledged = {}, set()

    def run(self):
        while not self.stop.is_set():
            # What a death does to a sender is its own trouble: a reset, an end, no listener.
            with suppress(OSError, AssertionError), self._found.call() as caller:
                assert caller.associate()[:1] == b"\2"
                while not self.stop.is_set():
                    self._store(caller)
                caller.release()

    def _store(self, caller):
        uid = f"1.2.3.{self._number}.{len(self.sent)}"
        data_set = wire.data_set(uid, pixels=2 * self._random.randrange(100_000))
        self.sent[uid] = hashlib.sha256(data_set).hexdigest()
        message = wire.message(wire.CT, wire.store_command(uid), data_set)
        half = self._random.randrange(len(message))
        caller.socket.sendall(message[:half])
        time.sleep(0.02 * self._random.random())  # so that most deaths come within a message
        caller.socket.sendall(message[half:])
        assert caller.status() == 0x0000
        self.acknowledged.add(uid)


def kept(path):
    """Return the SOP instance and the digest of the data set of a file in the spool."""
    with path.open("rb") as file:
        uid = read_file_meta(file)[0x0003]
        return uid, hashlib.sha256(file.read()).hexdigest()


@pytest.mark.timeout(3600 if os.environ.get("SOAK") else 120)
def test_killed_in_mid_store(settings):
    """After SIGKILLs at random moments all that was acknowledged is there, and nothing in part."""
    chance = random.Random(20)
    with processes(settings) as found:
        senders = [Sender(found, number) for number in range(SENDERS)]
        for sender in senders:
            sender.start()

        def acknowledged():
            return sum(len(sender.acknowledged) for sender in senders)

        try:
            for _ in range(KILLS):
                enough = acknowledged() + chance.randrange(1, 20)
                eventually(lambda enough=enough: acknowledged() >= enough, timeout=30)
                os.kill(chance.choice(eventually(found.children)), signal.SIGKILL)
            enough = acknowledged() + SENDERS
            eventually(lambda: acknowledged() >= enough, timeout=30)
        finally:
            for sender in senders:
                sender.stop.set()
            for sender in senders:
                sender.join(20)

    sent = {uid: digest for sender in senders for uid, digest in sender.sent.items()}
    there = dict(kept(path) for path in incoming(open_for(settings)))
    assert set().union(*(sender.acknowledged for sender in senders)) <= set(there)
    assert there.items() <= sent.items()
    assert leftovers(open_for(settings)) == []
