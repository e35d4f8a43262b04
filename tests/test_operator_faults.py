# SPDX-License-Identifier: Apache-2.0
"""Whatever the API server does, the last known configuration stays, and is caught up with."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from adapter import heartbeat
from adapter.api.health import HealthCheck
from adapter.api.opening import AdapterOpening
from adapter.core import Adapter
from adapter.errors import ConfigurationError
from adapter.ledger import configuration
from adapter.models import EntityKind
from adapter.operator import Operator, client
from adapter.settings import Settings
from tests import peers
from tests.support_kubernetes import (
    NAMESPACE,
    OPERATOR,
    RULES,
    ApiServer,
    Fault,
    Kubectl,
    fake_cluster,
    for_operator,
    write_credentials,
)
from tests.support_stack import free_port
from tests.support_waiting import eventually

CT1 = {"aeTitle": "CT1", "hostIp": ["10.0.0.7"]}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[ApiServer, Kubectl]]:
    with fake_cluster(tmp_path / "admin") as found:
        yield found


@pytest.fixture
def server(cluster: tuple[ApiServer, Kubectl]) -> ApiServer:
    return cluster[0]


@pytest.fixture
def kubectl(cluster: tuple[ApiServer, Kubectl]) -> Kubectl:
    return cluster[1]


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    return write_credentials(tmp_path / "operator", OPERATOR)


@pytest.fixture
def operator_settings(settings: Settings, kubectl: Kubectl, credentials: Path) -> Settings:
    return for_operator(settings, kubectl, credentials)


@pytest.fixture
def operator(adapter: Adapter, operator_settings: Settings) -> Iterator[Operator]:
    running = Operator(operator_settings)
    running.start()
    yield running
    running.stop()


def sources(adapter: Adapter) -> list[str]:
    return [found.entity.key for found in configuration.current(adapter.ledger, EntityKind.SOURCE)]


def has_problem(operator: Operator, text: str) -> Callable[[], bool]:
    return lambda: any(text in problem for problem in operator.problem)


def has_looked(operator: Operator) -> bool:
    """Tell whether an operator has compared what it knows with the ledger once."""
    return operator._applying is not None and operator._applying._version >= 0


def watching(server: ApiServer) -> None:
    """Wait until the operator watches all three kinds."""
    eventually(lambda: {name for verb, name in server.requests if verb == "watch"} >= PLURALS)


PLURALS = {"claraaetitles", "sources", "destinations"}


# -- away ----------------------------------------------------------------------------------------


def test_without_the_api_server_the_last_configuration_stays(
    adapter: Adapter, operator: Operator, server: ApiServer, kubectl: Kubectl
) -> None:
    """Away, it changes nothing and is said to be away; back, what it says now is in force."""
    kubectl.create("Source", "ct1", **CT1)
    kubectl.create("Source", "ct2", **{**CT1, "aeTitle": "CT2"})
    eventually(lambda: sources(adapter) == ["CT1", "CT2"])

    server.stop()

    eventually(has_problem(operator, "the API server cannot be asked"))
    assert sources(adapter) == ["CT1", "CT2"]
    eventually(lambda: "be asked" in str(heartbeat.read_all(adapter.spool)[0]["problem"]))
    found = HealthCheck(_opening(adapter)).examine()
    assert found.status == "yellow"
    assert any("the API server cannot be asked" in reason for reason in found.reasons)

    # Its log was compacted meanwhile, and one source is gone.
    del server.objects["sources"]["ct2"]
    server.compact()
    server.start()
    eventually(lambda: sources(adapter) == ["CT1"])
    eventually(lambda: operator.problem == [])


def test_an_operator_that_never_saw_the_api_server_changes_nothing(
    adapter: Adapter, operator_settings: Settings, server: ApiServer, kubectl: Kubectl
) -> None:
    """Restarted while the server is away, it does not take absence for deletion."""
    first = Operator(operator_settings)
    first.start()
    kubectl.create("Source", "ct1", **CT1)
    eventually(lambda: sources(adapter) == ["CT1"])
    first.stop()
    server.stop()

    second = Operator(operator_settings)
    second.start()
    eventually(has_problem(second, "the API server cannot be asked"))
    eventually(lambda: has_looked(second))

    assert sources(adapter) == ["CT1"]
    second.stop()


def test_an_operator_that_starts_again_writes_nothing(
    adapter: Adapter, operator_settings: Settings, server: ApiServer, kubectl: Kubectl
) -> None:
    """What stands in the ledger and in the status already is written by nobody again."""
    kubectl.create("Source", "ct1", **CT1)
    for _ in range(2):
        operator = Operator(operator_settings)
        operator.start()
        eventually(lambda operator=operator: has_looked(operator))
        kubectl.becomes("Source", "ct1", "Applied")
        eventually(lambda operator=operator: operator._say()["ready"] == 1)
        time.sleep(0.3)  # a patch would have been sent by now
        operator.stop()

    assert server.requests.count(("patch", "sources/status")) == 1
    assert configuration.latest_version(adapter.ledger) == 1


def test_a_new_operator_waits_for_the_ledger(
    adapter: Adapter,
    operator: Operator,
    kubectl: Kubectl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the ledger away it says so, and applies what came meanwhile when it is back."""
    with monkeypatch.context() as patch:
        patch.setattr(configuration, "latest_version", _fails)
        eventually(has_problem(operator, "the ledger does not answer (OperationalError)"))
        kubectl.create("Source", "ct1", **CT1)

    eventually(lambda: sources(adapter) == ["CT1"])
    assert kubectl.becomes("Source", "ct1", "Applied")
    eventually(lambda: operator.problem == [])


def _fails(_ledger: Any) -> int:
    raise OperationalError("SELECT", {}, Exception("gone"))


def _opening(adapter: Adapter) -> AdapterOpening:
    opening = AdapterOpening(adapter.settings)
    opening._adapter = adapter
    return opening


# -- rights --------------------------------------------------------------------------------------


def test_without_rights_the_last_configuration_stays(
    adapter: Adapter, operator: Operator, server: ApiServer, kubectl: Kubectl
) -> None:
    """A Role that lost its rights is named; given back, all goes on."""
    kubectl.create("Source", "ct1", **CT1)
    eventually(lambda: sources(adapter) == ["CT1"])
    server.tokens[OPERATOR] = []
    server.drop_connections()

    eventually(
        has_problem(operator, "the Role of the service account does not allow to watch sources")
    )
    kubectl.delete("Source", "ct1")
    assert sources(adapter) == ["CT1"]

    server.tokens[OPERATOR] = RULES
    eventually(lambda: sources(adapter) == [])
    eventually(lambda: operator.problem == [])


def test_a_token_that_was_replaced_is_read_anew(
    adapter: Adapter, operator: Operator, server: ApiServer, kubectl: Kubectl, credentials: Path
) -> None:
    """An expired token is said to be; the next one is found in its file, without a restart."""
    watching(server)
    server.tokens["the-next"] = server.tokens.pop(OPERATOR)
    server.drop_connections()
    eventually(has_problem(operator, "the API server does not accept the token"))

    (credentials / "token").write_text("the-next", encoding="utf-8")

    kubectl.create("Source", "ct1", **CT1)
    eventually(lambda: sources(adapter) == ["CT1"])
    eventually(lambda: operator.problem == [])


def test_it_uses_the_rights_of_its_role_and_no_others(
    adapter: Adapter, operator: Operator, server: ApiServer, kubectl: Kubectl
) -> None:
    """What it asked for, from the first list to the last status, is what the Role allows."""
    ct = {"aeTitle": "CT-AI", "processorSettings": {"pipeline-ct": "lung"}}
    pacs = {"name": "PACS", "aeTitle": "ARCHIVE", "hostIp": "10.0.0.9", "port": 104}
    kubectl.create("ClaraAeTitle", "ct", **ct)
    kubectl.create("Destination", "pacs", **pacs)
    kubectl.create("Source", "ct1", **CT1)
    for kind, name in (("ClaraAeTitle", "ct"), ("Destination", "pacs"), ("Source", "ct1")):
        kubectl.becomes(kind, name, "Applied")
        kubectl.delete(kind, name)
    eventually(lambda: sources(adapter) == [])

    assert set(server.requests) == {
        (verb, resource)
        for rule in RULES
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    assert operator.problem == []


# -- requests and streams that go wrong ----------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault("list", code=500, times=3),
        Fault("list", code=429, headers={"Retry-After": "0"}, times=3),
        Fault("watch", code=503, times=6),
        Fault("watch", code=410, times=3),
        Fault("watch", raw=b'{"type": "ADDED", "object": {', times=3),
        Fault("watch", raw=b"no JSON\n", times=3),
        Fault("watch", raw=b"[" * 100_000 + b"\n", times=3),
        Fault("watch", raw=b'{"type": "ADDED", "object": {"metadata": {}}}\n', times=3),
        Fault("watch", raw=b'{"type": "ERROR", "object": {"code": 410}}\n', times=3),
        Fault("watch", raw=b'{"type": "ERROR", "object": {"code": 500}}\n', times=3),
        Fault("watch", raw=b"", times=9),
        Fault("watch", half_event=True, times=3),
        Fault("watch", byte_seconds=0.002, times=3),
        Fault("list", byte_seconds=0.002, times=3),
        Fault("patch", code=500, times=3),
        Fault("patch", code=409, times=1),
    ],
    ids=str,
)
def test_a_fault_costs_time_and_nothing_else(
    adapter: Adapter,
    operator_settings: Settings,
    server: ApiServer,
    kubectl: Kubectl,
    fault: Fault,
) -> None:
    """After each kind of fault, everything that happened meanwhile is in force."""
    server.faults.append(Fault(**fault.__dict__))
    kubectl.create("Source", "before", **{**CT1, "aeTitle": "BEFORE"})
    operator = Operator(operator_settings)
    operator.start()
    eventually(lambda: sources(adapter) == ["BEFORE"])
    watching(server)

    kubectl.create("Source", "ct1", **CT1)
    kubectl.delete("Source", "before")

    eventually(lambda: sources(adapter) == ["CT1"])
    kubectl.becomes("Source", "ct1", "Applied")
    eventually(lambda: operator.problem == [])
    assert server.faults[0].times == 0, "the fault did not happen"
    operator.stop()


def test_the_server_says_when_to_come_back(
    adapter: Adapter, operator_settings: Settings, server: ApiServer, kubectl: Kubectl
) -> None:
    """Retry-After is kept to, though not beyond our own longest delay."""
    server.faults.append(Fault("list", code=429, headers={"Retry-After": "3600"}, times=3))
    kubectl.create("Source", "ct1", **CT1)
    began = time.monotonic()
    operator = Operator(operator_settings)
    operator.start()

    eventually(lambda: sources(adapter) == ["CT1"])

    longest = operator_settings.kubernetes.retry_maximum_seconds
    assert longest <= time.monotonic() - began < longest + 2
    operator.stop()


def test_a_line_without_end_is_not_kept(
    adapter: Adapter,
    operator: Operator,
    server: ApiServer,
    kubectl: Kubectl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line that grows beyond what an object can be ends the watch, and a list follows."""
    monkeypatch.setattr(client, "_LONGEST_LINE", 10_000)
    watching(server)
    lists = server.requests.count(("list", "sources"))
    server.faults.append(Fault("watch", raw=b"x" * 20_000, times=3))
    server.drop_connections()

    eventually(lambda: server.requests.count(("list", "sources")) > lists)
    kubectl.create("Source", "ct1", **CT1)
    eventually(lambda: sources(adapter) == ["CT1"])
    assert operator.problem == []


def test_a_list_comes_in_pages(
    adapter: Adapter,
    operator_settings: Settings,
    kubectl: Kubectl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All pages of a list count, not only the first."""
    monkeypatch.setattr(client, "_PAGE", 2)
    for number in range(5):
        kubectl.create("Source", f"ct{number}", **{**CT1, "aeTitle": f"CT{number}"})
    operator = Operator(operator_settings)
    operator.start()

    eventually(lambda: sources(adapter) == [f"CT{number}" for number in range(5)])
    operator.stop()


def test_bookmarks_spare_a_list(
    adapter: Adapter, operator: Operator, server: ApiServer, kubectl: Kubectl
) -> None:
    """A quiet watch learns the newest version: after a compaction it goes on from there."""
    watching(server)
    lists = server.requests.count(("list", "destinations"))
    for number in range(3):  # of another kind, so that only bookmarks tell the version
        kubectl.create("Source", f"ct{number}", **{**CT1, "aeTitle": f"CT{number}"})
        kubectl.becomes("Source", f"ct{number}", "Applied")
    time.sleep(2.5 * server.bookmark_seconds)
    server.compacted = server.version
    watches = server.requests.count(("watch", "destinations"))

    server.drop_connections()

    eventually(lambda: server.requests.count(("watch", "destinations")) > watches)
    time.sleep(0.5)
    assert server.requests.count(("list", "destinations")) == lists
    assert operator.problem == []
    assert len(sources(adapter)) == 3


def test_a_full_list_comes_now_and_then(
    adapter: Adapter, operator_settings: Settings, server: ApiServer, kubectl: Kubectl
) -> None:
    """What a watch has missed, whyever, is found by the next full list."""
    kubernetes = operator_settings.kubernetes.model_copy(
        update={"watch_seconds": 1, "resync_seconds": 1.0}
    )
    operator = Operator(operator_settings.model_copy(update={"kubernetes": kubernetes}))
    operator.start()
    kubectl.create("Source", "ct1", **CT1)
    eventually(lambda: sources(adapter) == ["CT1"])

    del server.objects["sources"]["ct1"]  # without an event

    eventually(lambda: sources(adapter) == [])
    operator.stop()


def test_a_definition_that_is_not_installed_is_named(
    adapter: Adapter, operator: Operator, server: ApiServer, kubectl: Kubectl
) -> None:
    """Without its definition a kind cannot be listed; nothing that is in force is removed."""
    kubectl.create("Source", "ct1", **CT1)
    eventually(lambda: sources(adapter) == ["CT1"])
    server.faults.append(Fault("watch", code=404, times=1000))
    server.faults.append(Fault("list", code=404, times=1000))
    server.drop_connections()

    eventually(
        has_problem(operator, "knows nothing to watch sources; is the definition installed?")
    )
    assert sources(adapter) == ["CT1"]


# -- the process ---------------------------------------------------------------------------------


def authority(folder: Path) -> ssl.SSLContext:
    """Make a certificate that a folder of credentials trusts, and serve with it."""
    peers.need("openssl")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    words += ["-keyout", str(folder / "server.key"), "-out", str(folder / "ca.crt")]
    words += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "server.key")
    return context


def test_the_process_of_a_pod(
    adapter: Adapter, settings: Settings, credentials: Path, tmp_path: Path
) -> None:
    """As in a pod: server, token, authority and namespace are found; TERM ends it in 5 s."""
    context = authority(credentials)
    (tmp_path / "admin").mkdir()
    shutil.copy(credentials / "ca.crt", tmp_path / "admin")
    with fake_cluster(tmp_path / "admin", context) as (_, kubectl):
        kubectl.create("Source", "ct1", **CT1)
        port = free_port()
        environment = {
            "PATH": "/usr/bin:/bin",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": kubectl.url.rpartition(":")[2],
            "DICOMADAPTER__KUBERNETES__CREDENTIALS": str(credentials),
            "DICOMADAPTER__METRICS__HOST": "127.0.0.1",
            "DICOMADAPTER__METRICS__PORT": str(port),
            **({"DICOMADAPTER__DATABASE__URL": url} if (url := settings.database.url) else {}),
        }
        command = [sys.executable, "-m", "adapter.cli", "--data", str(settings.data), "operator"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            eventually(lambda: sources(adapter) == ["CT1"], timeout=60)  # it has much to import
            kubectl.becomes("Source", "ct1", "Applied")
            probe = f"http://127.0.0.1:{port}"
            assert httpx.get(f"{probe}/live").status_code == 200
            eventually(lambda: httpx.get(f"{probe}/ready").status_code == 200)
            metrics = httpx.get(f"{probe}/metrics").text
            assert 'dicom_adapter_custom_resources{kind="Source",ready="true"} 1.0' in metrics
            assert "dicom_adapter_operator_trouble 0.0" in metrics
            (beat,) = heartbeat.read_all(adapter.spool)
            assert (beat["role"], beat["namespace"]) == ("operator", NAMESPACE)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
            assert time.monotonic() - began < 5
        finally:
            process.kill()
            _, said = process.communicate()
    assert "Traceback" not in said
    assert heartbeat.read_all(adapter.spool) == []


def test_a_server_that_is_not_the_clusters_is_not_told_the_token(
    adapter: Adapter, operator_settings: Settings, credentials: Path, tmp_path: Path
) -> None:
    """A certificate of another authority is no API server."""
    (tmp_path / "other").mkdir()
    context = authority(tmp_path / "other")
    authority(credentials)
    with fake_cluster(credentials, context) as (server, _):
        write_credentials(credentials, OPERATOR)
        kubernetes = operator_settings.kubernetes.model_copy(update={"endpoint": server.url})
        operator = Operator(operator_settings.model_copy(update={"kubernetes": kubernetes}))
        operator.start()

        eventually(has_problem(operator, "the API server cannot be asked (ConnectError)"))

        assert server.requests == []
        operator.stop()
    assert sources(adapter) == []


def test_outside_of_a_cluster_it_says_what_it_needs(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server and no namespace: both are said at once, with the settings to give."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    kubernetes = settings.kubernetes.model_copy(update={"credentials": tmp_path})

    with pytest.raises(ConfigurationError) as refused:
        Operator(settings.model_copy(update={"kubernetes": kubernetes}))

    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        "DicomAdapter > kubernetes > endpoint",
        "DicomAdapter > kubernetes > namespace",
    ]
