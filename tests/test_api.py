# SPDX-License-Identifier: Apache-2.0
"""The REST API: health, and what happened to a study."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from adapter import heartbeat
from adapter.api import fresh, health, server
from adapter.api import opening as opening_module
from adapter.api.app import create_app
from adapter.api.opening import AdapterOpening
from adapter.api.problems import Problem
from adapter.core import Adapter, open_adapter
from adapter.errors import ConfigurationError
from adapter.ledger import schema
from adapter.models import AETitle
from adapter.settings import Settings, load
from adapter.stages import STAGES
from tests.support_ledger import (
    LONG_AGO,
    STUDY,
    add_ae_title,
    add_arrival,
    add_export,
    add_group,
    add_job,
    add_row,
    add_task,
    change_rows,
)
from tests.support_postgresql import shut
from tests.support_waiting import eventually

pytestmark = pytest.mark.every_ledger

CANARY = "CANARY^NAME"
LOCAL = "http://127.0.0.1"


class Redis:
    """StageQueues of a Redis that is there, or away."""

    def __init__(self) -> None:
        self.queues: dict[str, int] | None = dict.fromkeys(STAGES, 0)
        self.answers = threading.Event()
        self.answers.set()
        self.woken: list[str] = []

    def lengths(self, stages: Any = STAGES) -> dict[str, int] | None:
        self.answers.wait(20)
        return None if self.queues is None else {stage: self.queues[stage] for stage in stages}

    def wake_for_due(self, _adapter: Adapter, stage: str) -> bool:
        self.woken.append(stage)
        return True


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine delays is not unknown."""
    monkeypatch.setattr(fresh, "ANSWER_SECONDS", 20.0)


@pytest.fixture
def redis() -> Redis:
    return Redis()


@pytest.fixture
def opening(settings: Settings, redis: Redis) -> AdapterOpening:
    opening = AdapterOpening(settings)
    opening.queues = redis  # type: ignore[assignment]
    return opening


@pytest.fixture
def client(opening: AdapterOpening, adapter: Adapter) -> Iterator[TestClient]:
    with TestClient(create_app(opening), LOCAL, raise_server_exceptions=False) as client:
        eventually(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture
def version(adapter: Adapter) -> int:
    return add_ae_title(adapter)


@contextmanager
def broken_ledger(adapter: Adapter, opening: AdapterOpening) -> Iterator[None]:
    """Take the ledger away, as a database server that stops does."""
    if adapter.ledger.is_shared:
        with shut(adapter.ledger.url):
            yield
        return
    file = adapter.settings.data / "ledger.sqlite"
    hidden = file.with_suffix(".away")
    opening.adapter.ledger.close()
    for path in (file, *file.parent.glob("ledger.sqlite-*")):
        path.rename(hidden.with_suffix(path.suffix + ".away"))
    file.mkdir()
    try:
        yield
    finally:
        file.rmdir()
        for path in file.parent.glob("*.away"):
            path.rename(file.with_suffix(path.with_suffix("").suffix))
        opening.adapter.ledger.close()


# -- health ----------------------------------------------------------------------------------------


def test_a_working_adapter_is_green(client: TestClient, adapter: Adapter) -> None:
    """With nothing to complain about the status is green, and says how much of everything is."""
    status = client.get("/health/status")

    assert status.status_code == 200
    body = status.json()
    assert (body["status"], body["reasons"]) == ("green", [])
    assert (body["ledger"], body["broker"]) == (True, True)
    assert body["disk"]["total"] > body["disk"]["free"] > 0
    assert body["disk"]["low"] is False
    assert list(body["unfinished"]) == list(STAGES)
    assert body["queues"] == dict.fromkeys(STAGES, 0)
    assert body["attention"]["parkedJobs"] == {"amount": 0, "size": 0}


def test_the_api_has_a_heartbeat_and_polls_for_due_work(
    client: TestClient, adapter: Adapter, version: int, redis: Redis
) -> None:
    """The API's due-work poll finds work without a wake-up; its heartbeat is in the status."""
    job = add_job(adapter, add_group(adapter, version, state="closed"))
    assert job

    eventually(lambda: "submission" in redis.woken)

    (process,) = client.get("/health/status").json()["services"]["api"]
    assert (process["pid"], process["alive"]) == (os.getpid(), True)


def test_the_receivers_associations_are_summed_up(client: TestClient, adapter: Adapter) -> None:
    """The associations of all live receivers count; those of a silent one do not."""
    for pid, ago, number in ((1, 0, 3), (2, 0, 4), (3, 60, 5)):
        host = socket.gethostname()
        beat = {"role": "scp", "host": host, "pid": pid, "at": time.time() - ago}
        file = adapter.spool.status / f"scp-{pid}.json"
        file.write_text(json.dumps({**beat, "active_associations": number}))

    body = client.get("/health/status").json()

    assert body["activeDimseConnections"] == 7
    assert [p["alive"] for p in body["services"]["scp"]] == [True, True, False]
    assert body["status"] == "green"


def test_a_second_host_is_yellow_where_the_ledger_serves_one(
    client: TestClient, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts that started at the same moment did not see each other; health reports the remedy."""
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    heartbeat.write(adapter.spool, "scp")
    monkeypatch.undo()
    heartbeat.write(adapter.spool, "worker")

    reasons = client.get("/health/status").json()["reasons"]

    found = [reason for reason in reasons if "SQLite serves one host, and another, " in reason]
    assert bool(found) is not adapter.ledger.is_shared


@pytest.mark.every_ledger("sqlite")
def test_heartbeats_of_processes_that_died_long_ago_are_deleted(adapter: Adapter) -> None:
    """Also those that were half written, as by a process killed at that moment."""
    names = ("scp-host-1.json", ".scp-host-1.json.part", "scp-host-2.json", ".scp-host-2.json.part")
    for name in names:
        (adapter.spool.status / name).touch()
        if "-1." in name:
            os.utime(adapter.spool.status / name, (LONG_AGO, LONG_AGO - 3600))

    heartbeat.forget_gone(adapter.spool)

    assert {path.name for path in adapter.spool.status.iterdir()} == set(names[2:])


@pytest.mark.parametrize(("role", "colour"), [("scp", "red"), ("worker", "yellow")])
def test_a_role_whose_processes_are_all_silent_is_missed(
    client: TestClient, adapter: Adapter, role: str, colour: str
) -> None:
    """Without a receiver nothing is received: red.  Without another role something waits."""
    heartbeat.write(adapter.spool, role)
    (file,) = adapter.spool.status.glob(f"{role}-*.json")
    beat = json.loads(file.read_text())
    file.write_text(json.dumps({**beat, "at": beat["at"] - 60}))

    body = client.get("/health/status").json()

    assert (body["status"], body["reasons"]) == (colour, [f"{role} is silent"])


def test_a_receiver_that_refuses_is_red(client: TestClient, adapter: Adapter) -> None:
    """One receiver whose disk fails: its senders are refused, whatever the others do."""
    heartbeat.write(adapter.spool, "scp", refuses="the spool fails (EIO)")

    body = client.get("/health/status").json()

    host = socket.gethostname()
    refuses = f"scp of {host} refuses instances: the spool fails (EIO)"
    assert (body["status"], body["reasons"]) == ("red", [refuses])


def test_a_spool_that_cannot_be_written_is_red(client: TestClient, adapter: Adapter) -> None:
    """No heartbeat can be written, so no instance can: red, until one can be written again."""
    status = adapter.spool.status
    hidden = status.rename(status.with_name("away"))
    status.touch()

    found = eventually(lambda: _red(client))
    status.unlink()
    hidden.rename(status)

    assert found == ["the spool cannot be written (ENOTDIR): instances are refused"]
    eventually(lambda: client.get("/health/status").json()["status"] == "green")


def _red(client: TestClient) -> list[str]:
    body = client.get("/health/status").json()
    return [reason for reason in body["reasons"] if "written" in reason and body["status"] == "red"]


@pytest.mark.every_ledger("sqlite")
def test_a_ledger_that_is_locked_is_red(
    settings: Settings, adapter: Adapter, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be read, and nothing can be written: nothing is processed."""
    monkeypatch.setattr(opening_module, "_TRANSACTION_SECONDS", 0.05)
    monkeypatch.setattr(health, "_LOCKED_SECONDS", 0.2)
    opening = AdapterOpening(settings)
    opening.queues = redis  # type: ignore[assignment]
    locked = r"the ledger has taken no transaction for \d+ s"
    with TestClient(create_app(opening), LOCAL) as client:
        eventually(lambda: client.get("/health/ready").status_code == 200)

        with adapter.ledger.write():
            (reason,) = eventually(lambda: client.get("/health/status").json()["reasons"])

        assert re.fullmatch(locked, reason)
        eventually(lambda: client.get("/health/status").json()["status"] == "green")


@pytest.mark.every_ledger("sqlite")
def test_what_hangs_is_unknown_and_holds_nothing_up(
    client: TestClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis hangs, health, metrics and readiness come at once, and say what is unknown."""
    monkeypatch.setattr(fresh, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(fresh, "FRESH_SECONDS", 0.0)
    redis.answers.clear()
    began = time.monotonic()

    body = client.get("/health/status").json()
    ready = client.get("/health/ready").status_code
    metrics = client.get("/metrics").text
    took = time.monotonic() - began
    redis.answers.set()

    assert took < 3
    assert "unknown: Redis has not answered in time" in body["reasons"]
    assert (body["status"], body["broker"], body["queues"]) == ("yellow", False, None)
    assert ready == 200
    assert "dicom_adapter_broker_up 0.0" in metrics


def _park_job(adapter: Adapter, version: int) -> None:
    add_job(adapter, add_group(adapter, version, state="closed"), state="parked")


def _park_export(adapter: Adapter, version: int, state: str = "parked") -> None:
    job = add_job(adapter, add_group(adapter, version, state="submitted"), state="succeeded")
    add_export(adapter, add_task(adapter, job), state=state)


def _partial_export(adapter: Adapter, version: int) -> None:
    _park_export(adapter, version, "partial")


def _quarantine(adapter: Adapter, version: int) -> None:
    add_arrival(adapter, version, state="quarantined", study=None, reason="not-dicom")


def _hold(adapter: Adapter, version: int) -> None:
    until = adapter.ledger.now() + 60
    values = {"since": LONG_AGO, "until": until, "failures": 1, "reason": "refused"}
    add_row(adapter, schema.holds, destination="PACS", **values)


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (_park_job, "1 job is parked"),
        (_park_export, "1 export is parked"),
        (_partial_export, "1 export is partial"),
        (_quarantine, "1 file is in quarantine"),
        (_hold, "destination PACS is on hold"),
    ],
)
def test_what_waits_for_an_operator_is_yellow(
    client: TestClient,
    adapter: Adapter,
    version: int,
    cause: Callable[[Adapter, int], None],
    reason: str,
) -> None:
    """Parked, partial and quarantined work and destinations on hold turn the status yellow."""
    cause(adapter, version)

    body = client.get("/health/status").json()

    assert (body["status"], body["reasons"]) == ("yellow", [reason])


def test_the_bytes_of_unreadable_quarantined_files_count(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """A file whose header could not be read has no size in the ledger; the spool has."""
    data = b"x" * 1000
    add_arrival(adapter, version, state="quarantined", study=None, reason="r", data=data)

    attention = client.get("/health/status").json()["attention"]

    assert attention["quarantined"] == {"amount": 1, "size": 1000}


def test_a_job_processor_that_is_not_installed_is_named(
    client: TestClient, adapter: Adapter, version: int, cli: Any
) -> None:
    """Health, `aet list` and `check-config` say which AE title needs which plug-in."""
    body = AETitle(ae_title="BRAIN", processor="gone").model_dump(mode="json", by_alias=True)
    change_rows(adapter, schema.configuration, body=body)
    problem = "AE title 'BRAIN': processor: 'gone' is none of ae-title"

    health = client.get("/health/status").json()

    assert (health["status"], health["reasons"]) == ("yellow", [problem])
    for command in (["aet", "list"], ["check-config"]):
        code, _, err = cli(*command)
        assert (code, problem in err) == (0, True)


def test_redis_away_is_yellow(client: TestClient, redis: Redis) -> None:
    """Without Redis work only waits a little longer; its queues are unknown."""
    redis.queues = None

    status = client.get("/health/status")

    assert status.status_code == 200
    body = status.json()
    assert (body["status"], body["broker"], body["queues"]) == ("yellow", False, None)


def test_a_redis_that_is_not_there_is_found_out_quickly(
    settings: Settings, adapter: Adapter
) -> None:
    """A broker that refuses connections holds the status up for less than two seconds."""
    broker = settings.broker.model_copy(update={"url": "redis://127.0.0.1:1/0"})
    opening = AdapterOpening(settings.model_copy(update={"broker": broker}))
    began = time.monotonic()

    assert opening.queues.lengths() is None
    assert time.monotonic() - began < 2


def test_a_full_disk_is_red(settings: Settings, adapter: Adapter, redis: Redis) -> None:
    """When nothing can be received any more the status is red, and the answer is 503."""
    storage = settings.storage.model_copy(update={"reserve_space_gb": 1e9})
    opening = AdapterOpening(settings.model_copy(update={"storage": storage}))
    opening.queues = redis  # type: ignore[assignment]
    with TestClient(create_app(opening), LOCAL) as client:
        eventually(lambda: client.get("/health/ready").status_code == 200)

        status = client.get("/health/status")

    assert status.status_code == 503
    assert status.json()["status"] == "red"
    assert status.json()["disk"]["low"] is True


def test_what_waits_in_incoming_is_notifications_work(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """Files that were acknowledged and not registered count, with the age of the oldest."""
    for number in (1, 2):
        hour_ago = time.time() - 3600
        add_arrival(adapter, version, number, at=hour_ago, state="received", study=None)

    unfinished = client.get("/health/status").json()["unfinished"]["notification"]

    assert unfinished["amount"] == 2
    assert 3590 < unfinished["oldestSeconds"] < 3660


def test_without_a_ledger_the_api_lives_and_says_so(
    client: TestClient, opening: AdapterOpening, adapter: Adapter
) -> None:
    """A ledger that goes away and comes back: live throughout, 503 meanwhile, then ready again."""
    with broken_ledger(adapter, opening):
        live = client.get("/health/live")
        ready = client.get("/health/ready")
        status = client.get("/health/status")
        studies = client.get("/api/studies")

    assert live.status_code == 200
    assert (ready.status_code, ready.json()["detail"]) == (503, "the ledger does not answer")
    assert status.status_code == 503
    assert (status.json()["status"], status.json()["ledger"]) == ("red", False)
    assert status.json()["disk"] is not None
    assert studies.status_code == 503
    assert studies.headers["content-type"] == "application/problem+json"
    assert studies.headers["retry-after"] == "5"
    assert client.get("/health/ready").status_code == 200
    assert client.get("/api/studies").status_code == 200


def test_the_api_starts_without_a_ledger_and_opens_it_when_it_comes(settings: Settings) -> None:
    """An API that starts before its ledger answers 503, and 200 as soon as the ledger is there."""
    open_adapter(settings, create=True).close()
    with ExitStack() as stack, ExitStack() as away:
        if settings.database.url is None:
            ledger = settings.data / "ledger.sqlite"
            aside = ledger.rename(settings.data / "aside")
            away.callback(aside.rename, ledger)
        else:
            away.enter_context(shut(settings.database.url))
        client = stack.enter_context(TestClient(create_app(AdapterOpening(settings)), LOCAL))
        problem = "there is no adapter" if settings.database.url is None else "OperationalError"
        eventually(lambda: problem in client.get("/health/ready").text)
        assert client.get("/health/live").status_code == 200
        assert client.get("/api/jobs").status_code == 503
        assert client.get("/health/status").json()["unfinished"] is None

        away.close()

        eventually(lambda: client.get("/health/ready").status_code == 200)
        assert client.get("/api/jobs").status_code == 200


def test_a_missing_or_foreign_spool_is_not_ready(client: TestClient, adapter: Adapter) -> None:
    """Ready means that the spool is there and that it is this ledger's."""
    name = adapter.spool.root / "id"
    own = name.read_text()

    name.unlink()
    gone = client.get("/health/ready")
    name.write_text("another")
    foreign = client.get("/health/ready")
    name.write_text(own)

    assert (gone.status_code, "its id is missing" in gone.json()["detail"]) == (503, True)
    assert "is another spool than this ledger's" in foreign.json()["detail"]
    assert client.get("/health/ready").status_code == 200


def test_a_ledger_of_a_release_that_left_this_one_behind_is_not_ready(
    client: TestClient, adapter: Adapter
) -> None:
    """Ready means that the schema is this code's, or one that a newer release only added to."""
    with adapter.ledger.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'newer'")
    assert client.get("/health/ready").status_code == 200

    add_row(adapter, schema.meta, name="needs", value="newer")

    assert client.get("/health/ready").json()["detail"] == (
        "the ledger has the schema of another release"
    )


# -- what happened ---------------------------------------------------------------------------------


@pytest.fixture
def history(adapter: Adapter, version: int) -> dict[str, str]:
    """A study with a job and an export, and a second one."""
    group = add_group(adapter, version, state="submitted")
    add_arrival(adapter, version, 1, group_id=group)
    add_arrival(adapter, version, 2, study="1.2.3")
    job = add_job(adapter, group, state="succeeded")
    export = add_export(adapter, add_task(adapter, job), state="partial", receipts={1: "stored"})
    return {"job": job, "export": export}


def test_lists_come_in_pages(client: TestClient, history: dict[str, str]) -> None:
    """`limit` cuts a page, and its `next` leads on to the rest."""
    first = client.get("/api/studies", params={"limit": 1}).json()
    second = client.get("/api/studies", params={"limit": 1, "after": first["next"]}).json()

    assert [s["studyInstanceUID"] for s in first["items"]] == ["1.2.3"]
    assert [s["studyInstanceUID"] for s in second["items"]] == [STUDY]
    assert second["next"] is None


def test_a_study_is_told_from_association_to_export(
    client: TestClient, history: dict[str, str]
) -> None:
    """The timeline of a study is the one of the ledger's questions."""
    body = client.get(f"/api/studies/{STUDY}").json()

    assert [a["callingAeTitle"] for a in body["associations"]] == ["MODALITY"]
    assert [j["id"] for j in body["jobs"]] == [history["job"]]
    assert [u["sopInstanceUID"] for u in body["exports"][0]["unconfirmed"]] == [f"{STUDY}.9.2"]


def test_jobs_and_exports_are_filtered_and_shown(
    client: TestClient, history: dict[str, str]
) -> None:
    """State and destination narrow a list; one of them is shown by its id."""

    def ids(path: str, **params: str) -> list[str]:
        return [item["id"] for item in client.get(path, params=params).json()["items"]]

    assert ids("/api/jobs", state="succeeded") == [history["job"]]
    assert ids("/api/jobs", state="parked") == []
    assert ids("/api/exports", state="partial", destination="PACS") == [history["export"]]
    assert ids("/api/exports", destination="ARCHIVE") == []
    assert client.get(f"/api/jobs/{history['job']}").json()["studies"] == [STUDY]
    assert client.get(f"/api/exports/{history['export']}").json()["stored"] == 1


@pytest.mark.parametrize("path", ["/api/studies/1.9", "/api/jobs/1", "/api/exports/1", "/nothing"])
def test_what_is_not_there_is_a_problem(client: TestClient, path: str) -> None:
    """404 is answered with a problem document of RFC 9457."""
    answer = client.get(path)

    assert answer.headers["content-type"] == "application/problem+json"
    assert Problem.model_validate(answer.json()).status == answer.status_code == 404


def test_a_wrong_parameter_is_named_and_not_repeated(client: TestClient) -> None:
    """A refused value may be mistyped patient data: it is not in the answer."""
    answer = client.get("/api/jobs", params={"state": CANARY, "limit": 1001})

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error.split(":")[0] for error in answer.json()["errors"]] == [
        "query.state",
        "query.limit",
    ]
    assert CANARY not in answer.text


@pytest.mark.parametrize("path", ["/api/studies", "/api/jobs", "/api/exports"])
def test_a_page_after_nothing_is_refused(
    client: TestClient, history: dict[str, str], path: str
) -> None:
    """A row to go on from that is not there is a wrong parameter, not the first page again."""
    answer = client.get(path, params={"after": CANARY})

    assert (answer.status_code, answer.json()["errors"]) == (
        422,
        ["after: there is no such row to go on from"],
    )


def test_a_beginning_of_an_id_is_enough(
    client: TestClient, adapter: Adapter, history: dict[str, str]
) -> None:
    """Whatever only one row begins with names it; the whole id is taken before a beginning."""
    for path, whole in (("jobs", history["job"]), ("exports", history["export"])):
        assert client.get(f"/api/{path}/{whole[:8]}").json()["id"] == whole
    assert client.get("/api/studies/1.2.3").json()["studyInstanceUID"] == "1.2.3"

    add_arrival(adapter, 1, 3, study="1.2.3.4")
    assert client.get("/api/studies/1.2.3").json()["studyInstanceUID"] == "1.2.3"
    unclear = client.get("/api/studies/1.")
    assert (unclear.status_code, unclear.json()["errors"]) == (
        422,
        ["several ids begin so: give more of it"],
    )


@pytest.mark.parametrize("path", ["/health/status", "/metrics", "/api/jobs", "/api/jobs/1"])
def test_head_answers_as_get_without_a_body(client: TestClient, path: str) -> None:
    """A monitor that asks for the head alone learns the same status."""
    full, head = client.get(path), client.head(path)

    assert (head.status_code, head.content) == (full.status_code, b"")
    assert head.headers["content-type"] == full.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:5000", 200),
        ("[::1]:5000", 200),
        ("10.1.2.3", 200),
        ("gateway.hospital.example.", 200),
        ("rebound.example:5000", 421),
        ("localhost.rebound.example", 421),
        ("", 421),
    ],
)
@pytest.mark.every_ledger("sqlite")
def test_requests_for_another_host_are_refused(settings: Settings, host: str, status: int) -> None:
    """A page whose name was rebound to our address learns nothing, and nothing is asked."""
    api = settings.api.model_copy(update={"host_names": ["gateway.hospital.example"]})
    opening = AdapterOpening(settings.model_copy(update={"api": api}))

    answer = TestClient(create_app(opening)).get("/health/live", headers={"host": host})

    assert answer.status_code == status
    assert ("live" in answer.text) == (status == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/api/studies", "/api/jobs/1", "/health/status"])
def test_nothing_can_be_changed(client: TestClient, method: str, path: str) -> None:
    """The API only reads."""
    answer = client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_unexpected_failure_does_not_tell_its_text(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an exception stays inside, whatever it is."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr("adapter.ledger.queries.list_studies", fail)

    answer = client.get("/api/studies")

    assert (answer.status_code, answer.json()["title"]) == (500, "Internal Server Error")
    assert CANARY not in answer.text


def test_openapi_describes_every_route(client: TestClient) -> None:
    """The description is served, names each route, and needs no page from elsewhere."""
    paths = client.get("/openapi.json").json()["paths"]

    assert set(paths) == {
        "/health/live",
        "/health/ready",
        "/health/status",
        "/metrics",
        "/scaling/{stage}",
        "/api/studies",
        "/api/studies/{study_instance_uid}",
        "/api/jobs",
        "/api/jobs/{job_id}",
        "/api/exports",
        "/api/exports/{export_id}",
    }
    assert client.get("/docs").status_code == 404


def test_no_patient_data_is_told(client: TestClient, adapter: Adapter, version: int) -> None:
    """Bytes of instances never reach an answer: a canary in the files is in none of them."""
    group = add_group(adapter, version, state="submitted")
    add_arrival(adapter, version, 1, data=CANARY.encode(), group_id=group)
    add_arrival(adapter, version, 2, data=CANARY.encode(), state="quarantined", reason="r")
    job = add_job(adapter, group)
    paths = ["/health/status", "/api/studies", f"/api/studies/{STUDY}", f"/api/jobs/{job}"]

    assert not [path for path in paths if CANARY in client.get(path).text]


# -- the process -----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_serves_until_it_is_told_to_stop(number: int, tmp_path: Path) -> None:
    """It listens on the configured address, ends with 0 at a signal, and deletes its heartbeat."""
    port = free_port()
    open_adapter(load(data=tmp_path), create=True).close()
    code = "from adapter import api, settings; raise SystemExit(api.serve(settings.load()))"
    environment = {
        **os.environ,
        "DICOMADAPTER_DATA": str(tmp_path),
        "DICOMADAPTER__API__PORT": str(port),
        "DICOMADAPTER__BROKER__URL": "redis://127.0.0.1:1/0",
    }
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=root) as process:
        try:

            def ready() -> bool:
                with suppress(httpx.TransportError):
                    return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
                return False

            eventually(ready, 30)
            beats = list((tmp_path / "spool" / "status").glob("api-*.json"))
            process.send_signal(number)
            assert process.wait(20) == 0
        finally:
            process.kill()

    assert len(beats) == 1
    assert not beats[0].exists()


def test_a_port_that_is_taken_is_a_configuration_error(settings: Settings) -> None:
    """The error names the setting, the port and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        api = settings.api.model_copy(update={"port": taken.getsockname()[1]})

        with pytest.raises(ConfigurationError, match=r"DicomAdapter > api: .* in use"):
            server.serve(settings.model_copy(update={"api": api}))


def test_rows_of_another_release_do_not_break_the_status(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """A heartbeat and a row with unknown words are shown as they are."""
    (adapter.spool.status / "x.json").write_text('{"at": 1, "role": "x"}')
    (adapter.spool.status / "y.json").write_text("{")
    add_arrival(adapter, version, state="quarantined", study=None, reason="new-reason")
    change_rows(adapter, schema.arrivals, message="text")

    assert client.get("/health/status").json()["services"]["x"][0]["alive"] is False
