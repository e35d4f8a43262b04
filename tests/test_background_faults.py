# SPDX-License-Identifier: Apache-2.0
"""A fault put into each background loop of each role: it is shown, told, and survived.

The fault is an error that nobody foresaw, raised by a real function in the loop's own thread.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from adapter import background, core, heartbeat, stages
from adapter.api import opening as api_opening
from adapter.api.app import create_app
from adapter.api.opening import AdapterOpening
from adapter.core import Adapter
from adapter.ledger import configuration, leases, schema
from adapter.operator import Operator
from adapter.operator import main as operator_main
from adapter.operator.client import KubernetesClient
from adapter.operator.collection import ResourceCollection
from adapter.scp import Scp
from adapter.scp import configuration as scp_configuration
from adapter.scp.events import ScpEvents
from adapter.scp.processes import make_endpoint
from adapter.scp.shared_counters import SharedCounters
from adapter.settings import Settings
from adapter.spool import Spool
from tests.support_kubernetes import OPERATOR, fake_cluster, for_operator, write_credentials
from tests.support_metrics import Scrape, ask, scrape
from tests.support_scp import Peer, add_ae_title, add_fixture, connect, with_scp
from tests.support_stack import free_port
from tests.support_waiting import eventually
from workers import background as worker_background
from workers.clients import results_service
from workers.metrics import WorkerMetrics
from workers.runner import OwnDueWork, StageRunner
from workers.stage import Work

ECHO = [("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])]


class Fault:
    """Lets a real function raise a RuntimeError until it is mended, and counts its calls."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        where: Callable[..., bool] = lambda *_: True,
    ) -> None:
        self.broken = False
        self.raised = self.passed = 0
        real = getattr(owner, name)

        def function(*arguments: Any, **options: Any) -> Any:
            if self.broken and where(*arguments):
                self.raised += 1
                raise RuntimeError("CANARY^NAME")
            self.passed += 1
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, function)


@dataclass
class Role:
    """A role at work in this process, as its heartbeat and its probe show it."""

    name: str
    spool: Spool
    ask_live: Callable[[], tuple[int, str]]

    def loop(self, name: str) -> dict[str, Any]:
        """Return what the heartbeat says of a loop; nothing if it does not name it."""
        for beat in heartbeat.read_all(self.spool):
            if beat["role"] == self.name:
                found: dict[str, Any] = beat["loops"].get(name, {})
                return found
        return {}

    def survives(
        self, loop: str, fault: Fault, *, trigger: Callable[[], object] = lambda: None
    ) -> None:
        """Break a loop until its role is not live any more, mend it, and see it work again."""
        eventually(lambda: fault.passed)
        assert self.ask_live()[0] == 200

        fault.broken = True
        # Some loops only work when there is work to do.
        eventually(lambda: (trigger(), self.loop(loop).get("state") == "failing")[1])
        assert self.loop(loop)["error"] == "RuntimeError"
        eventually(lambda: (trigger(), self.ask_live()[0] == 503)[1])
        assert f"the background loop {loop} does not recover" in self.ask_live()[1]

        before = fault.passed
        fault.broken = False
        eventually(lambda: self.ask_live()[0] == 200)
        eventually(lambda: (trigger(), fault.passed > before)[1])
        eventually(lambda: self.loop(loop).get("state") == "running")
        assert self.loop(loop)["failures"] >= 1


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LOST_SECONDS", 0.4)
    monkeypatch.setattr(background, "LONGEST_DELAY", 0.1)
    monkeypatch.setattr(heartbeat, "PERIOD", 0.05)


# -- the SCP ---------------------------------------------------------------------------------------


@dataclass
class RunningScp(Role):
    """An SCP with an endpoint for metrics."""

    scp: Scp
    port: int

    def echoes(self, called: str = "CECHOTEST") -> bool:
        """Tell whether an association is accepted."""
        peer = Peer(self.scp, ECHO, "PACS1", called)
        if peer.assoc.is_established:
            peer.assoc.release()
            return True
        return False


@contextmanager
def running_scp(adapter: Adapter) -> Iterator[RunningScp]:
    add_fixture(adapter)
    counters = SharedCounters(1)
    settings = with_scp(adapter.settings)
    scp = Scp(settings, counters=counters.process(0))
    endpoint = make_endpoint(settings, socket.create_server(("127.0.0.1", 0)), counters)
    scp.start()
    endpoint.start()
    try:
        yield RunningScp(
            "scp", adapter.spool, lambda: ask(endpoint.port, "/live"), scp, endpoint.port
        )
    finally:
        endpoint.stop()
        scp.stop(grace=0)


def test_the_listener(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that cannot be accepted: not ready at once, not live soon, then as before."""
    ports: list[int] = []
    fault = Fault(monkeypatch, socket.socket, "accept", lambda sock: sock.getsockname()[1] in ports)
    with running_scp(adapter) as role:
        ports.append(role.scp.port)
        assert role.echoes()
        role.survives("scp-listener", fault)
        eventually(lambda: ask(role.port, "/ready")[0] == 200)
        fault.broken = True
        eventually(lambda: ask(role.port, "/ready") == (503, "nobody listens\n"))
        fault.broken = False
        assert role.echoes()


def test_a_connection_whose_thread_cannot_be_started(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed and counted; the open association and the next one are served."""
    fault = Fault(
        monkeypatch, threading.Thread, "start", lambda thread: thread.name == "scp-association"
    )
    with running_scp(adapter) as role:
        with Peer(role.scp, ECHO, "PACS1", "CECHOTEST") as before:
            fault.broken = True
            with connect(role.scp) as refused:
                refused.settimeout(10)
                assert refused.recv(1) == b""
            assert fault.raised == 1
            fault.broken = False

            assert role.echoes()
            assert before.assoc.send_c_echo().Status == 0x0000
        eventually(lambda: heartbeat.read_all(adapter.spool)[0]["dropped"] == 1)
        assert scrape(role.port).value("dicom_adapter_connections_dropped_total") == 1
        eventually(lambda: role.scp.acceptor.active == 0)


def test_the_ledger_of_the_scp(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the ledger's thread fails nothing is taken over; afterwards the last change is."""
    monkeypatch.setattr("adapter.scp.background.PERIOD", 0.05)
    fault = Fault(monkeypatch, scp_configuration, "latest_version")
    with running_scp(adapter) as role:
        role.survives("scp-ledger", fault)
        value = scrape(role.port).value(
            "dicom_adapter_loop_failures_total", role="scp", loop="scp-ledger"
        )
        assert value is not None
        assert value >= fault.raised
        add_ae_title(adapter, "Late")
        eventually(lambda: role.echoes("Late"))


def test_a_change_while_the_mount_is_absent(adapter: Adapter) -> None:
    """The spool's volume is away when the configuration changes: taken over when it is back.

    It is no reason to replace the process, which would find no volume either.
    """
    root = adapter.spool.folder
    with running_scp(adapter) as role:
        hidden = root.rename(root.with_name("unmounted"))
        version = add_ae_title(adapter, "Late")
        eventually(lambda: background.states()["scp-ledger"]["error"] == "SpoolAway")
        assert role.ask_live()[0] == 200
        hidden.rename(root)

        eventually(lambda: _saved_version(adapter.spool) == version)
        assert role.echoes("Late")
        eventually(lambda: role.loop("scp-ledger").get("state") == "running")


def test_a_copy_that_could_not_be_written(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is in force; its copy, for a start without the ledger, follows."""
    fault = Fault(monkeypatch, Spool, "write_configuration")
    with running_scp(adapter) as role:
        eventually(lambda: fault.passed)
        fault.broken = True
        version = add_ae_title(adapter, "Late")
        eventually(lambda: fault.raised)
        assert role.echoes("Late")
        assert _saved_version(adapter.spool) < version

        fault.broken = False
        eventually(lambda: _saved_version(adapter.spool) == version)


def _saved_version(spool: Spool) -> int:
    saved = spool.read_configuration()
    return 0 if saved is None else int(saved["version"])


def test_the_waker_of_notification(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waker that fails loses wake-ups, which the poll repeats; it wakes again afterwards."""
    fault = Fault(monkeypatch, stages.StageQueues, "wake")
    monkeypatch.setattr("adapter.scp.background._AWAY_SECONDS", 0)
    with running_scp(adapter) as role:
        role.scp._waker.stored()
        role.survives("scp-wake-up", fault, trigger=role.scp._waker.stored)


def test_the_heart_of_the_scp(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heart that cannot say how the role is writes no heartbeat: `/live` tells it."""
    fault = Fault(monkeypatch, ScpEvents, "counts")
    with running_scp(adapter) as role:
        eventually(lambda: fault.passed)
        fault.broken = True
        eventually(lambda: ask(role.port, "/live")[0] == 503)
        assert role.ask_live()[1] == "the background loop heartbeat does not recover\n"
        fault.broken = False
        eventually(lambda: ask(role.port, "/live")[0] == 200)
        eventually(lambda: role.loop("heartbeat").get("failures", 0) >= 1)


# -- the API ---------------------------------------------------------------------------------------


@contextmanager
def running_api(settings: Settings) -> Iterator[tuple[Role, TestClient]]:
    opening = AdapterOpening(settings)
    with TestClient(create_app(opening), "http://127.0.0.1") as client:

        def ask_live() -> tuple[int, str]:
            answer = client.get("/health/live")
            return answer.status_code, answer.text

        yield Role("api", Spool(settings.spool_path), ask_live), client


def test_the_due_work_poll(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API's poll, and health, which names role, loop and error."""
    fault = Fault(monkeypatch, stages, "due_stages")
    with running_api(adapter.settings) as (role, client):
        role.survives("due-work-poll", fault)
        fault.broken = True
        told = "the background loop due-work-poll is failing (RuntimeError)"
        health = eventually(lambda: told in client.get("/health/status").text and client)
        body = health.get("/health/status").json()
        assert body["status"] == "yellow"
        assert body["services"]["api"][0]["loops"]["due-work-poll"]["state"] == "failing"
        assert "CANARY" not in str(body)
        fault.broken = False
        eventually(lambda: told not in client.get("/health/status").text)
        found = Scrape.parse(client.get("/metrics").text)
        name = "dicom_adapter_loop_failures_total"
        value = found.value(name, role="api", loop="due-work-poll")
        assert value is not None
        assert value >= fault.raised
        assert found.value(name, role="api", loop="heartbeat") is not None


def test_a_heartbeat_of_another_release_is_read(adapter: Adapter) -> None:
    """What another release says of its loops breaks nothing here, nor does a release without."""
    heartbeat.write(adapter.spool, "worker", loops={"x": {"state": "dancing"}})
    heartbeat.write(adapter.spool, "scp", loops=3)
    heartbeat.write(adapter.spool, "operator")
    with running_api(adapter.settings) as (_, client):
        eventually(lambda: client.get("/health/ready").status_code == 200)
        services = client.get("/health/status").json()["services"]
    assert [services[role][0]["loops"] for role in ("worker", "scp", "operator")] == [{}, {}, {}]


def test_the_opening_of_the_api(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw keeps the adapter closed and is told; then it is opened."""
    fault = Fault(monkeypatch, api_opening, "open_adapter")
    fault.broken = True
    with running_api(adapter.settings) as (role, client):
        eventually(lambda: role.loop("opening").get("state") == "failing")
        eventually(lambda: role.ask_live()[0] == 503)
        detail = client.get("/health/ready").json()["detail"]
        assert detail == "the adapter cannot be opened: RuntimeError"

        fault.broken = False
        eventually(lambda: client.get("/health/ready").status_code == 200)
        assert role.ask_live()[0] == 200
        eventually(lambda: role.loop("opening") == {} and role.loop("due-work-poll"))


# -- a worker --------------------------------------------------------------------------------------


@pytest.fixture
def worker_settings(settings: Settings) -> Settings:
    """A worker with a port for metrics, and a Results Service that nobody runs."""
    remote = settings.services.results_service.model_copy(
        update={"endpoint": f"http://127.0.0.1:{free_port()}"}
    )
    scu = settings.dicom.scu
    export = scu.export.model_copy(update={"poll_frequency_ms": 50, "hold_minimum_seconds": 0.1})
    scu = scu.model_copy(update={"export": export})
    return settings.model_copy(
        update={
            "metrics": settings.metrics.model_copy(
                update={"host": "127.0.0.1", "port": free_port()}
            ),
            "services": settings.services.model_copy(update={"results_service": remote}),
            "dicom": settings.dicom.model_copy(update={"scu": scu}),
        }
    )


@contextmanager
def running_worker(settings: Settings) -> Iterator[Role]:
    """The background loops of a worker that exports, without Celery."""
    opened: list[Adapter] = []

    def work() -> Any:
        opened.append(core.open_adapter(settings))
        return Work(opened[-1], stages.StageQueues(stages.make_app(settings)))

    runner = StageRunner(work, threading.Event(), WorkerMetrics())
    tasks = worker_background.WorkerBackgroundTasks(
        settings, work, WorkerMetrics(), "test", OwnDueWork(runner, [stages.EXPORT])
    )
    tasks.start()
    tasks.consume(SimpleNamespace(connection=object()))
    port = settings.metrics.port
    assert port is not None
    try:
        yield Role("worker", Spool(settings.spool_path), lambda: ask(port, "/live"))
    finally:
        tasks.stop()
        for adapter in opened:
            adapter.close()


def test_the_opening_of_a_worker(
    adapter: Adapter, worker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose adapter cannot be opened says why, and works when it can."""
    fault = Fault(monkeypatch, core, "open_adapter")
    fault.broken = True
    with running_worker(worker_settings) as role:
        eventually(lambda: role.loop("opening").get("state") == "failing")
        eventually(lambda: role.ask_live()[0] == 503)
        fault.broken = False
        eventually(lambda: role.loop("due-work-poll").get("state") == "running")
        assert role.ask_live()[0] == 200


def test_the_poll_of_the_results_service(
    adapter: Adapter, worker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in reading what the service said stops no later poll."""
    fault = Fault(monkeypatch, results_service, "poll")
    # Nobody answers there, which is no fault of ours; so let an answer be empty.
    monkeypatch.setattr(results_service.RestResultsService, "pending", lambda *_: [])
    with running_worker(worker_settings) as role:
        role.survives("results-service-poll", fault)


def test_the_renewal_of_leases(
    adapter: Adapter, worker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease is renewed again as soon as it can be; it was not lost meanwhile."""
    fault = Fault(monkeypatch, leases, "renew")
    with adapter.ledger.write() as connection:
        connection.execute(schema.holds.select())  # the ledger is there
        lease = leases.Lease(schema.groups, "nobody's", 0.3)
    monkeypatch.setattr(leases, "renew", _count_one(fault))
    with running_worker(worker_settings) as role, leases.kept(adapter.ledger, lease):
        role.survives("lease-renewal", fault)
        assert not lease.lost.is_set()
    assert "lease-renewal" not in background.states()


def _count_one(fault: Fault) -> Callable[..., int]:
    """Stand in for a renewal of one row: there is no row, and that would end the loop."""

    def renew(*_: Any) -> int:
        if fault.broken:
            fault.raised += 1
            raise RuntimeError("CANARY^NAME")
        fault.passed += 1
        return 1

    return renew


def test_the_endpoint_of_metrics(
    adapter: Adapter, worker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that cannot be started cannot answer either: the heartbeat tells it."""
    fault = Fault(monkeypatch, asyncio, "start_server")
    fault.broken = True
    with running_worker(worker_settings) as role:
        eventually(lambda: role.loop("metrics").get("state") == "failing")
        eventually(lambda: background.lost() == ["metrics"])
        fault.broken = False
        eventually(lambda: background.lost() == [])
        assert role.ask_live()[0] == 200
        eventually(lambda: role.loop("metrics").get("state") == "running")


def test_the_endpoint_of_metrics_while_it_serves(
    adapter: Adapter, worker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that breaks after its start gives the socket back to the next one."""
    fault = Fault(monkeypatch, asyncio.Event, "wait")
    fault.broken = True
    with running_worker(worker_settings) as role:
        eventually(lambda: fault.raised > 1)
        fault.broken = False
        eventually(lambda: fault.passed)
        assert role.ask_live()[0] == 200


# -- the operator ----------------------------------------------------------------------------------


@contextmanager
def running_operator(adapter: Adapter, folder: Path) -> Iterator[tuple[Role, Any]]:
    with fake_cluster(folder / "admin") as (_, kubectl):
        settings = for_operator(
            adapter.settings, kubectl, write_credentials(folder / "operator", OPERATOR)
        )
        port = free_port()
        metrics = settings.metrics.model_copy(update={"host": "127.0.0.1", "port": port})
        operator = Operator(settings.model_copy(update={"metrics": metrics}))
        operator.start()
        try:
            yield Role("operator", adapter.spool, lambda: ask(port, "/live")), kubectl
        finally:
            operator.stop()


def test_the_opening_of_the_operator(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator whose adapter cannot be opened says why, and applies resources when it can."""
    fault = Fault(monkeypatch, operator_main, "open_adapter")
    fault.broken = True
    with running_operator(adapter, tmp_path) as (role, _):
        eventually(lambda: role.loop("opening").get("state") == "failing")
        eventually(lambda: role.ask_live()[0] == 503)
        (beat,) = heartbeat.read_all(adapter.spool)
        assert "the adapter cannot be opened: RuntimeError" in beat["problem"]
        fault.broken = False
        eventually(lambda: role.loop("operator-apply").get("state") == "running")
        assert role.ask_live()[0] == 200


def test_the_applying_of_resources(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours, or of a plug-in, is no silent operator: it is told, and tried again."""
    fault = Fault(monkeypatch, configuration, "latest_version")
    with running_operator(adapter, tmp_path) as (role, _):
        role.survives("operator-apply", fault)


def test_the_watch_of_resources(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resources that could not be listed are listed when they can be."""
    fault = Fault(monkeypatch, KubernetesClient, "list", lambda _, kind: kind.plural == "sources")
    fault.broken = True
    with running_operator(adapter, tmp_path) as (role, kubectl):
        eventually(lambda: role.loop("watch-sources").get("error") == "RuntimeError")
        eventually(lambda: role.ask_live()[0] == 503)
        kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.7"])
        fault.broken = False
        eventually(lambda: role.ask_live()[0] == 200)
        kubectl.becomes("Source", "ct1", "Applied")


def test_an_event_of_a_watch_that_fails(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that met an error is not lost: the next watch begins before it."""
    fault = Fault(
        monkeypatch, ResourceCollection, "take", lambda collection, _: _is_source(collection)
    )
    listed = Fault(monkeypatch, ResourceCollection, "replace", lambda *_: False)
    with running_operator(adapter, tmp_path) as (role, kubectl):
        eventually(lambda: listed.passed == 3)
        eventually(lambda: role.loop("watch-sources").get("state") == "running")
        fault.broken = True
        kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.7"])
        eventually(lambda: fault.raised)
        fault.broken = False
        kubectl.becomes("Source", "ct1", "Applied")


def _is_source(collection: ResourceCollection) -> bool:
    return collection.kind.plural == "sources"


def test_the_status_of_resources(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status that could not be written for whatever reason is written later."""
    fault = Fault(monkeypatch, KubernetesClient, "patch_status")
    with running_operator(adapter, tmp_path) as (role, kubectl):
        fault.broken = True
        kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.7"])
        eventually(lambda: role.loop("operator-status").get("error") == "RuntimeError")
        eventually(lambda: role.ask_live()[0] == 503)
        fault.broken = False
        kubectl.becomes("Source", "ct1", "Applied")
        eventually(lambda: role.ask_live()[0] == 200)


# -- in another process ----------------------------------------------------------------------------


def test_what_a_process_says_of_its_loops_is_seen_by_the_others() -> None:
    """The process that answers for metrics has no loops of the others, only the shared memory."""
    counters = SharedCounters(2)
    pid = os.fork()
    if not pid:
        counters.process(1).set_lost_loops(["scp-ledger", "scp-listener"])
        os._exit(0)
    os.waitpid(pid, 0)
    counters.process(0).set_lost_loops(["scp-ledger"])

    assert counters.lost_loops() == ["scp-ledger", "scp-listener"]
    counters.vacate(1)
    assert counters.lost_loops() == ["scp-ledger"]
    counters.process(0).set_lost_loops([])
    assert counters.lost_loops() == []
