# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of metrics and probes: three answers, and no client that holds it up."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from prometheus_client.registry import CollectorRegistry

from adapter import heartbeat, metrics
from adapter.errors import ConfigurationError
from adapter.heartbeat import Heart
from adapter.metrics import endpoint as endpoint_module
from adapter.metrics import silent
from adapter.settings import Metrics
from tests.support_metrics import Scrape, ask
from tests.support_waiting import eventually


@pytest.fixture
def reasons():
    return {"unfit": [], "unready": []}


@pytest.fixture
def served(reasons):
    registry = CollectorRegistry()
    registry.register(metrics.RoleCollector("test", lambda: 0.5))
    listener = socket.create_server(("127.0.0.1", 0))
    found = metrics.Endpoint(
        listener, registry, lambda: reasons["unfit"], lambda: reasons["unready"]
    )
    found.start()
    yield found
    found.stop()


def test_it_shows_metrics_life_and_readiness(served, reasons):
    """Each path answers for itself: 200, or 503 with the reasons."""
    status, text = ask(served.port, "/metrics")
    assert status == 200
    assert Scrape.parse(text).value("dicom_adapter_heartbeat_age_seconds", role="test") == 0.5
    assert ask(served.port, "/live") == (200, "live\n")
    assert ask(served.port, "/ready?verbose=1") == (200, "ready\n")

    reasons["unfit"] = ["no heartbeat"]
    assert ask(served.port, "/live") == (503, "no heartbeat\n")
    assert ask(served.port, "/ready") == (200, "ready\n")
    reasons["unready"] = ["a", "b"]
    assert ask(served.port, "/ready") == (503, "a\nb\n")


def test_an_answer_that_fails_is_500_and_the_next_one_is_given(served, reasons):
    """An error in a metric or a check costs one answer, quotes nothing, and stops nothing."""
    del reasons["unready"]

    assert ask(served.port, "/ready") == (500, "KeyError\n")
    assert ask(served.port, "/live") == (200, "live\n")


def test_anything_else_is_refused(served):
    """Another path is not found, another method not allowed; HEAD has no body."""
    assert ask(served.port, "/")[0] == 404
    assert ask(served.port, "/metrics", "POST")[0] == 405
    assert ask(served.port, "/live", "HEAD") == (200, "")


@pytest.mark.parametrize(("host", "status"), [("[::1]:9", 200), ("rebound.example:9", 421)])
def test_a_request_for_another_host_is_refused(served, host, status):
    """A page whose name was rebound to our address reads no metrics; a probe by address does."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(f"GET /metrics HTTP/1.1\r\nHOST: {host}\r\n\r\n".encode())
        assert client.makefile("rb").readline().split()[1] == str(status).encode()


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\n"], ids=["silent", "half"])
def test_clients_that_do_not_ask_hold_nothing_up(served, monkeypatch, sent):
    """More silent clients than there is room for, and the next one is answered at once."""
    clients = [
        socket.create_connection(("127.0.0.1", served.port))
        for _ in range(endpoint_module.MOST_CLIENTS + 10)
    ]
    for client in clients:
        client.sendall(sent)

    began = time.monotonic()
    assert ask(served.port, "/live")[0] == 200
    assert time.monotonic() - began < 2

    # The oldest had to make room, the others run out of time.
    clients[0].settimeout(2)
    assert clients[0].recv(1) == b""
    clients[-1].settimeout(endpoint_module.CLIENT_SECONDS + 5)
    assert clients[-1].recv(1) == b""
    for client in clients:
        client.close()


def test_a_client_that_does_not_read_is_cut_off(monkeypatch):
    """An answer that nobody takes is thrown away in time, with its connection."""
    monkeypatch.setattr(endpoint_module, "CLIENT_SECONDS", 0.5)
    registry = CollectorRegistry()
    registry.register(metrics.RoleCollector("x" * 30_000_000, lambda: 0.5))
    served = metrics.Endpoint(socket.create_server(("127.0.0.1", 0)), registry, list, list)
    served.start()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: served._clients)
        eventually(lambda: not served._clients)

        assert 0 < _read_all(client) < 30_000_000
    served.stop()


def _read_all(client):
    count = 0
    while data := client.recv(1_000_000):
        count += len(data)
    return count


def test_a_request_without_end_is_cut_off(served):
    """A head longer than the limit ends the connection, and costs no more memory than that."""

    def send_without_end(client):
        for _ in range(10_000):
            client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 65536)

    address = ("127.0.0.1", served.port)
    with socket.create_connection(address, timeout=10) as client, pytest.raises(ConnectionError):
        send_without_end(client)
    assert ask(served.port, "/live")[0] == 200


def test_a_taken_port_is_a_configuration_error(monkeypatch):
    """The error names the setting and the reason."""
    monkeypatch.setattr(endpoint_module, "_PORT_SECONDS", 0.2)
    refusal = pytest.raises(ConfigurationError, match=r"DicomAdapter > metrics > port: .* in use")
    with socket.create_server(("127.0.0.1", 0)) as taken, refusal:
        metrics.listen(Metrics(host="127.0.0.1", port=taken.getsockname()[1]))


def test_without_a_port_nothing_listens():
    """Metrics are off unless a port is set."""
    assert metrics.listen(Metrics()) is None


@pytest.mark.parametrize("host", ["", "127.0.0.1", "0.0.0.0"])
def test_it_listens_where_the_settings_say(host):
    """An empty host is every address, that of IPv4's loopback too."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with metrics.listen(Metrics(host=host, port=port)) as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()


# -- the heart -------------------------------------------------------------------------------------


def test_a_heart_beats_without_a_spool(settings, monkeypatch):
    """A spool that is away, or never was, stops no heart."""
    monkeypatch.setattr(heartbeat, "PERIOD", 0.05)
    heart = Heart(heartbeat.Spool(settings.spool_path), "test", dict)
    heart.start()
    time.sleep(0.5)

    assert heart.age < 0.4
    heart.stop()


def test_a_heart_that_hangs_is_dead(adapter, monkeypatch):
    """If a beat does not end, its age grows until the process counts as dead."""
    monkeypatch.setattr(heartbeat, "PERIOD", 0.01)
    stuck = threading.Event()
    heart = Heart(adapter.spool, "test", lambda: stuck.wait(20) and {})
    heart.start()

    eventually(lambda: heart.age > 0.5)
    assert silent(heartbeat.DEAD_SECONDS + 1) == [
        f"no heartbeat for {heartbeat.DEAD_SECONDS + 1:.0f} s"
    ]
    assert silent(heart.age) == []
    stuck.set()
    eventually(lambda: heart.age < 0.5)
    heart.stop()


def test_a_heart_says_nothing_until_it_has_something_to_say(adapter, monkeypatch):
    """No facts, no file; the file is there with the first facts and gone after the stop."""
    monkeypatch.setattr(heartbeat, "PERIOD", 0.01)
    facts = []
    heart = Heart(adapter.spool, "test", lambda: facts[0] if facts else None)
    heart.start()
    time.sleep(0.1)
    assert heartbeat.read_all(adapter.spool) == []

    facts.append({"number": 1})
    (beat,) = eventually(lambda: heartbeat.read_all(adapter.spool))
    assert (beat["role"], beat["number"]) == ("test", 1)
    heart.stop()
    assert heartbeat.read_all(adapter.spool) == []
