# SPDX-License-Identifier: Apache-2.0
"""The SCP with nobody around it: ledger and Redis away, slow, foreign, and back again."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from pynetdicom.sop_class import Verification
from sqlalchemy import text

from adapter import heartbeat
from adapter.core import Adapter, open_adapter
from adapter.errors import ConfigurationError, SpoolAway
from adapter.ledger import Ledger, configuration
from adapter.models import EntityKind
from adapter.scp import Scp, background, events
from adapter.scp.configuration import LiveConfiguration
from adapter.scp.events import ScpEvents, printable
from adapter.scp.shared_counters import SharedCounters
from adapter.settings import load
from adapter.spool import Spool
from tests.support_scp import (
    Peer,
    RealFile,
    add_ae_title,
    add_fixture,
    add_source,
    incoming,
    recorded,
    running,
    wheel_file,
    with_scp,
)
from tests.support_waiting import eventually

CT = RealFile.read(wheel_file("CT_small.dcm"))
CONTEXTS = [(CT.sop_class, [CT.syntax])]


def away(settings, database: int, broker: int):
    """Settings whose ledger and broker are whatever is at these ports of loopback."""
    return settings.model_copy(
        update={
            "database": settings.database.model_copy(
                update={"url": f"postgresql+psycopg://nobody:x@127.0.0.1:{database}/none"}
            ),
            "broker": settings.broker.model_copy(update={"url": f"redis://127.0.0.1:{broker}/0"}),
        }
    )


@pytest.fixture
def closed_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def silent_ports() -> Iterator[tuple[int, int]]:
    """Two ports that take a connection and never answer."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in "ab"]
        yield tuple(server.getsockname()[1] for server in servers)


def store_some(scp: Scp, count: int = 5) -> float:
    """Store instances, and return the seconds that it took."""
    began = time.monotonic()
    with Peer(scp, CONTEXTS) as peer:
        for _ in range(count):
            assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
    return time.monotonic() - began


@pytest.fixture
def configured(adapter: Adapter) -> Adapter:
    """An adapter whose copy of the configuration is beside its spool."""
    add_fixture(adapter)
    LiveConfiguration(adapter.spool).refresh(adapter.ledger)
    return adapter


@pytest.mark.parametrize("ports", ["closed_ports", "silent_ports"])
def test_ledger_and_redis_away(configured: Adapter, settings, request, ports):
    """With ledger and Redis stopped, or hanging, C-STORE succeeds, also after a restart."""
    alone = with_scp(away(settings, *request.getfixturevalue(ports)))
    for restart in range(2):
        with running(alone) as scp:
            assert store_some(scp) < 3
            assert len(incoming(configured)) == 5 * (restart + 1)
            assert not Peer(scp, CONTEXTS, calling="STRANGER").assoc.is_established
            assert scp.events.counts()["events_waiting"] >= 1


def test_ledger_goes_and_comes_back(configured: Adapter, settings):
    """A ledger that goes away delays nothing; when it is back, events and changes get through."""
    path = settings.data / "ledger.sqlite"
    with running(with_scp(settings)) as scp:
        blocker = configured.ledger.engine.connect()
        blocker.execution_options(adapter_writes=True)
        with blocker.begin():  # nobody else may write now
            blocker.execute(text("update meta set value = value"))
            assert store_some(scp) < 3
            eventually(lambda: scp.acceptor.active == 0)
            assert recorded(configured, events.ASSOCIATION) == []
        blocker.close()
        [event] = eventually(lambda: recorded(configured, events.ASSOCIATION), timeout=10)
        assert event.detail["stored"] == 5
    assert path.exists()


def test_restart_without_the_ledgers_file(configured: Adapter, settings):
    """When the ledger's file is gone at a restart the copy holds; it is not overwritten."""
    configured.close()
    path = settings.data / "ledger.sqlite"
    moved = path.rename(settings.data / "elsewhere")
    copy = (configured.spool.root / "configuration.json").read_bytes()
    with running(with_scp(settings)) as scp:
        store_some(scp)
        eventually(lambda: scp.acceptor.active == 0)
        path.unlink(missing_ok=True)
        moved.rename(path)
        [event] = eventually(lambda: recorded(configured, events.ASSOCIATION))
        assert event.detail["stored"] == 5
    assert (configured.spool.root / "configuration.json").read_bytes() == copy


def test_a_foreign_ledger_is_not_believed(configured: Adapter, settings, tmp_path):
    """A ledger of another spool, or an empty one, changes neither configuration nor copy."""
    stranger = Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}")
    stranger.upgrade()
    live = LiveConfiguration(configured.spool)
    known = live.snapshot
    assert not live.refresh(stranger)
    stranger.adopt_spool("0" * 32)
    configuration.put(
        stranger,
        EntityKind.AE_TITLE,
        configuration.parse(EntityKind.AE_TITLE, {"aeTitle": "Foreign"}),
        replace=False,
    )
    assert not live.refresh(stranger)
    stranger.close()
    assert live.snapshot is known
    with pytest.raises(SpoolAway):  # nothing is received but into the spool that a ledger names
        configured.spool.check()
    copy = LiveConfiguration(Spool(settings.spool_path)).snapshot
    assert set(copy.ae_titles) == {"CECHOTEST", "Clara1"}


def test_changes_are_in_force_within_two_seconds(adapter: Adapter, settings):
    """Sources and AE titles added and removed apply to the next association, without a restart."""

    def answers(scp, calling="NEW", called="Late"):
        peer = Peer(scp, [(Verification, ["1.2.840.10008.1.2"])], calling, called)
        established = peer.assoc.is_established
        if established:
            peer.assoc.release()
        return established

    with running(with_scp(settings)) as scp:
        assert not answers(scp)
        add_source(adapter, "NEW")
        add_ae_title(adapter, "Late")
        eventually(lambda: answers(scp), timeout=2)
        configuration.remove(adapter.ledger, EntityKind.SOURCE, "NEW")
        eventually(lambda: not answers(scp), timeout=2)
        add_source(adapter, "NEW", "10.0.0.0/8")
        assert not answers(scp)
        causes = eventually(
            lambda: (
                {e.detail["cause"] for e in recorded(adapter, events.REJECTED)}
                >= {"unknown-calling-ae"}
            )
        )
        assert causes


def test_an_unreadable_copy_is_no_reason_not_to_start(configured: Adapter, settings):
    """With the copy torn the SCP starts, and takes the ledger's configuration."""
    (configured.spool.root / "configuration.json").write_text("{")
    with running(with_scp(settings)) as scp:
        store_some(scp, 1)


def test_a_row_of_another_release(configured: Adapter, settings):
    """A configuration row that cannot be read is left out; the others are in force."""
    saved = configured.spool.read_configuration()
    saved["rows"][0]["body"]["fromTheFuture"] = True
    configured.spool.write_configuration(saved)
    snapshot = LiveConfiguration(configured.spool).snapshot
    assert set(snapshot.ae_titles) == {"Clara1"}
    assert set(snapshot.sources) == {"PACS1", "PACS2"}


def test_the_queue_of_events_is_bounded(adapter: Adapter, monkeypatch):
    """More events than the queue holds are counted; the others are written in order."""
    monkeypatch.setattr(events, "QUEUE_LENGTH", 500)
    queue = ScpEvents()
    for number in range(600):
        queue.record("association", association="a", number=number)
    assert queue.counts() == {"events_dropped": 100, "events_waiting": 500}
    queue.flush(adapter.ledger)
    numbers = [event.detail["number"] for event in recorded(adapter, "association")]
    assert numbers == list(range(500))
    assert queue.counts()["events_waiting"] == 0


def test_events_of_one_peer_are_limited(monkeypatch):
    """A peer gets 20 events of a kind in a period; what was left out is counted and told once."""
    queue = ScpEvents()

    def due(kind, peer, times):
        return sum(queue.within_rate(kind, peer) for _ in range(times))

    assert due("a", "192.0.2.1", 50) == 20
    assert due("a", "192.0.2.2", 3) == 3  # another peer
    assert due("b", "192.0.2.1", 3) == 3  # another kind
    queue.sum_up_left_out()
    assert not queue._queue  # the period is not over

    monkeypatch.setattr(events, "PERIOD_SECONDS", 0.0)
    queue.sum_up_left_out()
    ((kind, _, _, detail),) = queue._queue
    assert kind == "events-left-out"
    assert detail == {"of": "a", "peer": "192.0.2.1", "number": 30}
    assert due("a", "192.0.2.1", 50) == 20  # a new period


def test_no_number_of_peers_takes_memory():
    """Beyond a number of peers all others share one limit."""
    queue = ScpEvents()
    assert sum(queue.within_rate("a", str(peer)) for peer in range(5000)) == 1000 + 20
    assert len(queue._rates._periods) == 1001


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("PACS1", "PACS1"),
        ("A\r\nforged", "A\\x0d\\x0aforged"),
        ("\x1b[31m", "\\x1b[31m"),
        ("Müller", "M\\xfcller"),
        ("\u2028", "\\u2028"),
        ("x" * 100, "x" * 64),
    ],
)
def test_printable(sent, shown):
    """What a peer sends is shown escaped and bounded."""
    assert printable(sent) == shown


def test_notification_is_woken_in_batches(adapter: Adapter, settings, monkeypatch):
    """A burst of instances makes one wake-up, at once when a batch is full, else a little later."""
    woken = []
    monkeypatch.setattr(
        background.stages.StageQueues, "wake", lambda _self, *stages: woken.append(stages) or True
    )
    slow = settings.dicom.scp.model_copy(
        update={"wake_up_instances": 50, "wake_up_milliseconds": 60000}
    )
    dicom = settings.dicom.model_copy(update={"scp": slow})
    waker = background.NotificationWaker(settings.model_copy(update={"dicom": dicom}))
    waker.start()
    waker.stored()
    time.sleep(0.1)  # let it begin to gather: that cannot be seen from outside
    for _ in range(48):
        waker.stored()
    assert woken == []
    waker.stored()
    eventually(lambda: woken == [("notification",)])
    waker.stored()
    waker.stop()
    eventually(lambda: woken == [("notification",)] * 2)


def test_a_store_wakes_notification(configured: Adapter, settings, monkeypatch):
    """An association's instances are woken for soon after they are stored."""
    woken = []
    monkeypatch.setattr(
        background.stages.StageQueues, "wake", lambda _self, *stages: woken.append(stages) or True
    )
    with running(with_scp(settings)) as scp:
        store_some(scp, 20)
        eventually(lambda: woken, timeout=1)
        assert len(woken) <= 20
        assert set(woken) == {("notification",)}


def test_heartbeat(configured: Adapter, settings):
    """The SCP says each second what it does, and takes its heartbeat away when it stops."""

    def beats():
        return [beat for beat in heartbeat.read_all(configured.spool) if beat["role"] == "scp"]

    with running(with_scp(settings)) as scp:
        with Peer(scp, CONTEXTS) as peer:
            peer.store(CT.sop_class, CT.sop_instance, CT.data)
            peer.store(CT.sop_class, CT.sop_instance, b"\xff\xff")
            Peer(scp, CONTEXTS, calling="STRANGER")
            beat = eventually(lambda: [b for b in beats() if b["stored"]])[0]
        assert (beat["pid"], beat["active_associations"]) == (os.getpid(), 1)
        assert beat["age"] < heartbeat.SILENCE_SECONDS
        counts = {name: beat[name] for name in ("accepted", "rejected", "stored", "failed")}
        assert counts == {"accepted": 1, "rejected": 1, "stored": 1, "failed": 1}
    assert beats() == []


def test_a_receiver_whose_spool_fails_says_so(configured: Adapter, settings, monkeypatch):
    """From the first A700 on its heartbeat says why; a stored instance ends that.

    Where no heartbeat can be written either, its metrics say it.
    """

    def beats(_spool, _role, **facts):
        told.append(facts["refuses"])

    def fails(*_arguments, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    told, counters = [], SharedCounters(1)
    scp = Scp(with_scp(settings), counters=counters.process(0))
    monkeypatch.setattr(heartbeat, "write", beats)
    scp.start()
    try:
        with Peer(scp, CONTEXTS) as peer, monkeypatch.context() as patched:
            patched.setattr(type(configured.spool), "receive", fails)
            assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0xA700
            eventually(lambda: told[-1:] == ["the spool fails (EROFS)"])
            assert counters.refusing() == 1
        store_some(scp, 1)
        eventually(lambda: told[-1] is None and counters.refusing() == 0)

        monkeypatch.setattr(heartbeat, "write", fails)
        eventually(lambda: counters.refusing() == 1)
    finally:
        scp.stop()


def test_taken_port(configured: Adapter, settings):
    """A port that is taken is said in words, and nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        scp = Scp(with_scp(settings, port=taken.getsockname()[1]))
        with pytest.raises(ConfigurationError, match=r"port: cannot listen on .* in use"):
            scp.start()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(data: Path, port: int) -> Iterator[subprocess.Popen]:
    scp = {"host": "127.0.0.1", "port": port, "processes": 1}
    document = {"DicomAdapter": {"dicom": {"scp": scp}}}
    data.mkdir(exist_ok=True)
    (data / "appsettings.json").write_text(json.dumps(document))
    program = (
        "import sys, pathlib\n"
        "from adapter import log, settings\n"
        "from adapter.scp import serve\n"
        "log.configure(json=True)\n"
        "sys.exit(serve(settings.load(data=pathlib.Path(sys.argv[1]))))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(data)], stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def await_heartbeat(data: Path) -> None:
    eventually(lambda: list((data / "spool" / "status").glob("scp-*.json")), timeout=30)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_role_stops_when_told(tmp_path, number):
    """The role serves, and stops with exit code 0 when told."""
    data, port = tmp_path / "data", free_port()
    open_adapter(load(data=data), create=True).close()
    with serving(data, port) as process:
        await_heartbeat(data)
        eventually(lambda: listens(port))
        process.send_signal(number)
        _, output = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in output
    assert json.loads(output.splitlines()[-1])["event"] == "stopped"


def test_stop_lets_an_association_end(configured: Adapter, settings):
    """A stop waits for the association that is open, and takes no new one."""
    scp = Scp(with_scp(settings))
    scp.start()
    with Peer(scp, CONTEXTS) as peer:
        stopping = threading.Thread(target=scp.stop, args=(10,))
        stopping.start()
        eventually(lambda: not listens(scp.port))
        assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
        assert stopping.is_alive()
    stopping.join(timeout=5)
    assert not stopping.is_alive()
    assert len(incoming(configured)) == 1


def test_killed_receiver_loses_nothing(tmp_path):
    """SIGKILL right after the Success: the instances are there, whole."""
    data, port = tmp_path / "data", free_port()
    opened = open_adapter(load(data=data), create=True)
    add_fixture(opened)
    with serving(data, port):
        eventually(lambda: listens(port), timeout=20)
        peer = Peer(SimpleNamespace(port=port), CONTEXTS)
        statuses = [peer.store(CT.sop_class, CT.sop_instance, CT.data) for _ in range(3)]
    opened.close()
    assert statuses == [0, 0, 0]
    assert [RealFile.read(path).data for path in incoming(opened)] == [CT.data] * 3


@pytest.mark.parametrize("durability", ["instance", "none"])
def test_it_warns_when_nothing_is_synced(configured: Adapter, settings, capsys, durability):
    """Without durability each start says that a power loss loses what was acknowledged."""
    storage = settings.storage.model_copy(update={"durability": durability})
    with running(with_scp(settings.model_copy(update={"storage": storage}))):
        pass

    assert ("a power loss loses them" in capsys.readouterr().out) is (durability == "none")
