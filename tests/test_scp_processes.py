# SPDX-License-Identifier: Apache-2.0
"""Several receiving processes on one port, and what becomes of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from adapter.core import open_adapter, open_spool
from adapter.ledger.configuration import current
from adapter.models import EntityKind
from tests import support_wire as wire
from tests.support_scp import add_ae_title, add_source, incoming, leftovers
from tests.support_waiting import eventually

COMMAND = "from adapter.scp import serve; from adapter.settings import load; serve(load())"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    def __init__(
        self,
        settings,
        port=None,
        *,
        stop_seconds=1,
        metrics_port=None,
        first="",
        more=None,
        **changes,
    ):
        self.port = port or free_port()
        scp = {"host": "127.0.0.1", "port": self.port, "processes": 2, **changes}
        environment = {f"DICOMADAPTER__DICOM__SCP__{k.upper()}": str(v) for k, v in scp.items()}
        environment |= {
            "DICOMADAPTER_DATA": str(settings.data),
            "DICOMADAPTER__STORAGE__WATERMARKPERCENT": "100",
            "DICOMADAPTER__STORAGE__RESERVESPACEGB": "0",
            "DICOMADAPTER__WORKERS__STOPSECONDS": str(stop_seconds),
            **(more or {}),
        }
        self.expected = scp["processes"] if scp["processes"] > 1 else 0
        if metrics_port is not None:
            environment |= {
                "DICOMADAPTER__METRICS__HOST": "127.0.0.1",
                "DICOMADAPTER__METRICS__PORT": str(metrics_port),
            }
            self.expected += self.expected > 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", first + COMMAND], env=os.environ | environment
        )

    def call(self):
        return wire.Caller(self.port)

    @contextmanager
    def calls(self, count):
        with ExitStack() as stack:
            yield [stack.enter_context(self.call()) for _ in range(count)]

    def answers(self):
        try:
            with self.call() as caller:
                return caller.associate()[:1] == b"\2" and caller.echo() and caller.release()
        except ConnectionError:
            return False

    def children(self):
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextmanager
def processes(settings, **changes):
    adapter = open_adapter(settings, create=True)
    if not current(adapter.ledger, EntityKind.AE_TITLE):
        add_ae_title(adapter, "ADAPTER")
        add_source(adapter, "MODALITY")
    adapter.close()
    found = Processes(settings, **changes)
    try:
        eventually(found.answers, timeout=20)
        eventually(lambda: len(found.children()) == found.expected)
        yield found
    finally:
        if found.process.poll() is None:
            found.process.terminate()
        found.process.wait(timeout=20)


def owner(found, caller):
    """Return the process that has the other end of a connection."""
    port = f":{caller.socket.getsockname()[1]:04X} "
    lines = Path("/proc/net/tcp").read_text().splitlines()
    local = f":{found.port:04X} "
    (inode,) = [line.split()[9] for line in lines if local in line and port in line.split(local)[1]]
    for pid in found.children():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if link.is_symlink() and str(link.readlink()) == f"socket:[{inode}]":
                return pid
    raise AssertionError("nobody")


def test_connections_are_spread(settings):
    """Connections that come at once go to the processes in turn, more or less."""
    with processes(settings) as found:

        def spread():
            with found.calls(8) as callers:
                assert all(caller.associate()[:1] == b"\2" for caller in callers)
                owners = [owner(found, caller) for caller in callers]
                return {owners.count(pid) for pid in found.children()} <= {2, 3, 4, 5, 6}

        eventually(spread)  # one of them may still be starting


def test_one_that_dies_is_replaced_and_the_others_go_on(settings):
    """SIGKILL of a process ends its associations only, and its places are free again."""
    with processes(settings, maximumNumberOfAssociations=4) as found, found.calls(4) as callers:
        assert all(caller.associate()[:1] == b"\2" for caller in callers)
        assert not found.answers()
        owners = [owner(found, caller) for caller in callers]

        os.kill(owners[0], signal.SIGKILL)

        for pid, caller in zip(owners, callers, strict=True):
            assert pid == owners[0] or caller.echo()
        eventually(found.answers)
        eventually(lambda: owners[0] not in (now := found.children()) and len(now) == 2)


@pytest.mark.parametrize("limit", ["maximumNumberOfAssociations", "maximumAssociationsPerPeer"])
def test_a_limit_holds_over_all_processes(settings, limit):
    """However connections are spread, no more associations are open than the limit says."""
    with processes(settings, **{limit: 3}) as found, found.calls(12) as callers:
        answers = [caller.associate() for caller in callers]
        assert [answer[:1] for answer in answers].count(b"\2") == 3
        assert [answer for answer in answers if answer[:1] != b"\2"] == [wire.reject(2, 3, 2)] * 9


def test_stopping_lets_a_message_end(settings):
    """SIGTERM: no new connection, an association may end in time, and then all have gone."""
    with processes(settings, stop_seconds=20) as found, found.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(wire.message(wire.CT, wire.store_command()))
        began = time.monotonic()
        found.process.terminate()
        eventually(lambda: not found.answers())

        caller.send(wire.data(wire.pdv(wire.CT, 2, wire.data_set(pixels=100))))

        assert caller.status() == 0x0000
        assert caller.release()
        assert found.process.wait(timeout=10) == 0
        assert time.monotonic() < began + 10
    assert len(incoming(open_for(settings))) == 1


def test_stopping_aborts_what_does_not_end(settings):
    """SIGTERM: an association that does not end in time gets an A-ABORT, and leaves nothing."""
    with processes(settings) as found, found.call() as caller:
        assert caller.associate()[:1] == b"\2"
        caller.send(wire.message(wire.CT, wire.store_command()))
        found.process.terminate()
        assert caller.rest() == wire.abort(0, 0)
        assert found.process.wait(timeout=10) == 0
    assert leftovers(open_for(settings)) == incoming(open_for(settings)) == []


def test_none_outlives_its_parent(settings):
    """SIGKILL of the process that forks ends the others, and the port is free for the next."""
    with processes(settings) as found:
        children = found.children()
        found.process.kill()
        found.process.wait()
        with processes(settings, port=found.port) as again:
            assert again.answers()
        eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children))


def open_for(settings):
    class Only:
        spool = open_spool(settings)

    return Only
