# SPDX-License-Identifier: Apache-2.0
"""A receiver with short deadlines, and the checks that must hold after each attack."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.core import open_adapter
from adapter.scp import Scp
from tests import support_wire as wire
from tests.support_scp import add_ae_title, add_source, incoming, leftovers, with_scp
from tests.support_waiting import eventually
from tests.support_wire import Caller

#: Seconds; each has a different length, so that a test shows which one was used.
ARTIM, PDU, IDLE = 0.6, 0.9, 1.2


@dataclass
class Receiver:
    """An SCP in this process, and checks of what it leaves behind."""

    adapter: Any
    port: int
    threads: int
    descriptors: int

    def call(self, **options):
        return Caller(self.port, **options)

    def stored(self):
        return incoming(self.adapter)

    def check_someone_else(self, **changes):
        """A C-ECHO succeeds."""
        with self.call() as caller:
            assert caller.associate(**changes)[:1] == b"\2"
            assert caller.echo()
            assert caller.release()

    def check_at_rest(self, **changes):
        """A C-ECHO succeeds; no thread, descriptor or unfinished file is left."""
        self.check_someone_else(**changes)
        eventually(lambda: associations() == self.threads)
        eventually(lambda: descriptors() <= self.descriptors)
        assert leftovers(self.adapter) == []


def associations():
    return sum(thread.name == "scp-association" for thread in threading.enumerate())


def descriptors():
    """Count those of this process, without the ledger's, which come and go."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(link.readlink().name)
    return sum(not name.startswith(("ledger.sqlite", "anon_inode")) for name in found)


@contextmanager
def receiver(settings, *, tls=None, **changes):
    """Run an SCP that knows ADAPTER and MODALITY, with short deadlines."""
    short = {"artim_seconds": ARTIM, "pdu_seconds": PDU, "idle_seconds": IDLE}
    settings = with_scp(settings, **short | changes)
    adapter = open_adapter(settings, create=True)
    add_ae_title(adapter, "ADAPTER")
    add_source(adapter, "MODALITY")
    try:
        scp = Scp(settings, tls=tls)
        scp.start()
        try:
            at_rest = Receiver(adapter, scp.port, 0, 0)
            with at_rest.call() as caller:  # so that what is opened once is open
                if tls is None:
                    assert caller.associate(contexts=wire.CONTEXTS[:1])[:1] == b"\2"
            eventually(lambda: associations() == 0)
            at_rest.descriptors = descriptors()
            yield at_rest
        finally:
            scp.stop(grace=0)
    finally:
        adapter.close()
