# SPDX-License-Identifier: Apache-2.0
"""The API's metrics: those that pools are scaled by, and those of ledger and spool."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from adapter import heartbeat, stages
from adapter.api import fresh as fresh_module
from adapter.api.fresh import Fresh, NotAvailable
from adapter.api.opening import AdapterOpening
from adapter.core import Adapter
from adapter.ledger import configuration, schema
from adapter.models import DicomDestination, EntityKind
from adapter.stages import STAGES
from tests import test_api
from tests.support_ledger import (
    LONG_AGO,
    add_arrival,
    add_export,
    add_group,
    add_job,
    add_row,
    add_task,
    change_rows,
)
from tests.support_metrics import Scrape
from tests.test_api import CANARY, Redis, broken_ledger

pytestmark = pytest.mark.every_ledger

# The same API as there.
redis, opening, client, version = (
    test_api.redis,
    test_api.opening,
    test_api.client,
    test_api.version,
)


@pytest.fixture(autouse=True)
def _no_housekeeping(adapter: Adapter) -> None:
    with adapter.ledger.write() as connection:
        connection.execute(schema.meta.delete().where(schema.meta.c.name == "housekept"))


@pytest.fixture(autouse=True)
def _never_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_module, "FRESH_SECONDS", -1.0)
    monkeypatch.setattr(fresh_module, "ANSWER_SECONDS", 20.0)


def scaling(client: TestClient, stage: str) -> tuple[int, float]:
    answer = client.get(f"/scaling/{stage}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert list(body) == ["stage", "unit", "unfinished", "oldestSeconds"]
    assert body["stage"] == stage
    return body["unfinished"], body["oldestSeconds"]


def scrape(client: TestClient) -> Scrape:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape.parse(answer.text)


# -- scaling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_no_work_is_zero(client: TestClient, stage: str) -> None:
    """With nothing to do every stage may be scaled to nothing: numbers, never null."""
    assert scaling(client, stage) == (0, 0.0)


def test_a_stage_that_is_none_is_not_found(client: TestClient) -> None:
    """Another word than a stage's is 404, and the problem names the stages."""
    answer = client.get("/scaling/shredding")

    assert answer.status_code == 404
    assert "notification, grouping" in answer.json()["detail"]


def test_notification_is_scaled_by_the_spool(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """What waits in incoming/ is notification's work, known to the ledger or not."""
    add_arrival(adapter, version, 1, state="received", study=None)
    add_arrival(adapter, version, 2, state="received", study=None)

    amount, oldest = scaling(client, "notification")

    assert amount == 2
    assert oldest == pytest.approx(time.time() - LONG_AGO - 1, abs=10)


def test_a_group_is_work_when_its_quiet_time_has_passed(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """An open group scales nothing up while it may still grow."""
    soon = time.time() + 60
    group = add_group(adapter, version, look_at=soon, maximum_at=soon)
    assert scaling(client, "grouping") == (0, 0.0)
    assert scrape(client).value("dicom_adapter_unfinished", stage="grouping") == 1

    change_rows(adapter, schema.groups, schema.groups.c.id == group, look_at=time.time() - 30)
    amount, oldest = scaling(client, "grouping")

    assert amount == 1
    assert oldest == pytest.approx(30, abs=10)


@pytest.mark.parametrize(("stage", "state"), [("submission", "queued"), ("pipeline", "started")])
def test_a_job_counts_while_it_is_due_or_held(
    client: TestClient, adapter: Adapter, version: int, stage: str, state: str
) -> None:
    """Work being done still needs its worker, but does not get older by it; a retry's delay does
    not need one, and parked work is an operator's.
    """
    add_job(adapter, add_group(adapter, version, state="closed"), state=state)
    amount, oldest = scaling(client, stage)
    assert amount == 1
    assert oldest > 3000

    change_rows(adapter, schema.jobs, lease_token="t", lease_until=time.time() + 3)
    assert scaling(client, stage) == (1, 0.0)
    change_rows(adapter, schema.jobs, lease_until=time.time() - 1)  # its worker died
    assert scaling(client, stage)[0] == 1
    change_rows(adapter, schema.jobs, lease_token=None, lease_until=None, due_at=time.time() + 100)
    assert scaling(client, stage) == (0, 0.0)
    change_rows(adapter, schema.jobs, state="parked", due_at=LONG_AGO)
    assert scaling(client, stage) == (0, 0.0)


def test_exports_to_a_destination_on_hold_scale_nothing(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """More workers bring no destination back; what waits for it is unfinished all the same."""
    job = add_job(adapter, add_group(adapter, version, state="submitted"), state="succeeded")
    add_export(adapter, add_task(adapter, job))
    assert scaling(client, "export")[0] == 1

    hold = {"since": LONG_AGO, "until": time.time() + 60, "failures": 1, "reason": "refused"}
    add_row(adapter, schema.holds, destination="PACS", **hold)

    assert scaling(client, "export") == (0, 0.0)
    assert scrape(client).value("dicom_adapter_unfinished", stage="export") == 1


def test_reclamation_wakes_for_its_sweep(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """Discarded files, and a sweep that is due, bring a pool back that was scaled to nothing."""
    add_arrival(adapter, version, state="discarded")
    assert scaling(client, "reclamation")[0] == 1

    add_row(adapter, schema.meta, name="housekept", value=str(LONG_AGO - 3600))
    assert scaling(client, "reclamation")[0] == 2


def test_without_the_ledger_there_is_no_number(
    client: TestClient, adapter: Adapter, opening: AdapterOpening
) -> None:
    """A scaler gets an error if nothing is known, and so falls back; it never gets zero."""
    with broken_ledger(adapter, opening):
        assert client.get("/scaling/export").status_code == 503
        assert client.get("/scaling/notification").status_code == 200
    assert client.get("/scaling/export").status_code == 200


# -- metrics ---------------------------------------------------------------------------------------


def test_the_ledger_is_told_in_figures(
    client: TestClient, adapter: Adapter, version: int, redis: Redis
) -> None:
    """States, retries, what is kept and its bytes, holds, queues: each where it belongs."""
    for generation, state in ((1, "open"), (2, "submitted")):
        group = add_group(adapter, version, generation=generation, state=state)
    add_job(adapter, group, pipeline="a", state="parked")
    add_job(adapter, group, pipeline="b", state="started", tries=1)
    done = add_job(adapter, group, pipeline="c", state="succeeded")
    task = add_task(adapter, done)
    add_export(adapter, task, "ONE", state="partial")
    add_export(adapter, task, "TWO", state="pending", tries=2)
    add_arrival(adapter, version, state="quarantined", study=None, reason="r", data=b"x" * 1000)
    for name in ("ONE", "TWO"):
        entity = DicomDestination(name=name, ae_title=name, host_ip="127.0.0.1", port=104)
        configuration.put(adapter.ledger, EntityKind.DESTINATION, entity, replace=False)
    hold = {"since": LONG_AGO, "until": time.time() + 60, "failures": 1, "reason": "refused"}
    add_row(adapter, schema.holds, destination="two", **hold)
    assert redis.queues is not None
    redis.queues["export"] = 3

    found = scrape(client)

    def value(name: str, **labels: str) -> Any:
        return found.value(f"dicom_adapter_{name}", **labels)

    assert (value("groups", state="open"), value("groups", state="submitted")) == (1, 1)
    assert value("groups", state="reclaimed") == 0
    states = [value("jobs", state=state) for state in ("parked", "started", "succeeded")]
    assert states == [1, 1, 1]
    assert (value("exports", state="partial"), value("exports", state="pending")) == (1, 1)
    assert (value("retrying", kind="jobs"), value("retrying", kind="exports")) == (1, 1)
    assert value("kept", kind="parked-jobs") == 1
    assert value("kept_bytes", kind="quarantined") == 1000
    assert value("kept_bytes", kind="partial-exports") == 16
    assert value("destination_on_hold", destination="ONE") == 0
    assert value("destination_on_hold", destination="TWO") == 1
    assert value("queue_length", stage="export") == 3
    assert value("unfinished", stage="pipeline") == 1
    assert value("unfinished_oldest_seconds", stage="pipeline") > 3000
    assert value("due_oldest_seconds", stage="pipeline") > 3000
    assert (value("ledger_up"), value("broker_up"), value("spool_up")) == (1, 1, 1)
    assert 0 < value("spool_free_bytes") < value("spool_size_bytes")
    assert value("heartbeat_age_seconds", role="api") < 5


def test_every_stage_and_role_has_a_figure_even_without_work(client: TestClient) -> None:
    """An alert on a worker that is missing needs a zero, not a gap."""
    found = scrape(client)

    for name in ("unfinished", "unfinished_oldest_seconds", "due", "due_oldest_seconds", "workers"):
        assert found.labels(f"dicom_adapter_{name}", "stage") == set(STAGES), name
    assert found.labels("dicom_adapter_processes", "role") == {"scp", "worker", "api", "operator"}


def test_processes_that_are_silent_do_not_count(client: TestClient, adapter: Adapter) -> None:
    """Workers are counted by stage while they beat."""
    heartbeat.write(adapter.spool, "worker", stages=["export", "pipeline"])
    found = scrape(client)
    assert found.value("dicom_adapter_processes", role="worker") == 1
    assert found.value("dicom_adapter_workers", stage="export") == 1
    assert found.value("dicom_adapter_workers", stage="grouping") == 0

    heartbeat.remove(adapter.spool, "worker")
    assert scrape(client).value("dicom_adapter_workers", stage="export") == 0


def test_what_is_away_is_told_and_its_figures_are_left_out(
    client: TestClient, adapter: Adapter, opening: AdapterOpening, redis: Redis
) -> None:
    """Without ledger and Redis the answer says which of them is away, and the spool's metrics."""
    redis.queues = None
    with broken_ledger(adapter, opening):
        found = scrape(client)

    assert found.value("dicom_adapter_ledger_up") == 0
    assert found.value("dicom_adapter_broker_up") == 0
    assert found.value("dicom_adapter_spool_up") == 1
    assert found.labels("dicom_adapter_unfinished", "stage") == {"notification"}
    assert "dicom_adapter_jobs" not in found.names()
    assert "dicom_adapter_kept" not in found.names()
    assert "dicom_adapter_queue_length" not in found.names()


def test_no_name_that_nobody_configured_becomes_a_label(
    client: TestClient, adapter: Adapter, version: int
) -> None:
    """A destination that is not configured, and a canary in the files, are in no metric."""
    hold = {"since": LONG_AGO, "until": time.time() + 60, "failures": 1, "reason": CANARY}
    add_row(adapter, schema.holds, destination=CANARY, **hold)
    add_arrival(adapter, version, 1, data=CANARY.encode(), state="quarantined", reason=CANARY)
    heartbeat.write(adapter.spool, CANARY.replace("^", "-"), stages=[CANARY])

    assert "CANARY" not in client.get("/metrics").text


def test_the_ledger_is_asked_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrapes that come at once, and soon after each other, share one look."""
    monkeypatch.setattr(fresh_module, "FRESH_SECONDS", 60.0)
    going, asked = threading.Event(), []

    def find() -> int:
        asked.append(1)
        going.wait(10)
        return len(asked)

    fresh = Fresh(find)
    found: list[int] = []
    askers = [threading.Thread(target=lambda: found.append(fresh.get())) for _ in range(20)]
    for asker in askers:
        asker.start()
    going.set()
    for asker in askers:
        asker.join()

    assert fresh.get() == 1
    assert (found, len(asked)) == ([1] * 20, 1)
    fresh._at -= 61
    assert fresh.get() == 2


def test_a_ledger_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller waits a moment; only one thread hangs, whatever the number of callers."""
    monkeypatch.setattr(fresh_module, "ANSWER_SECONDS", 0.05)
    hangs, asked = threading.Event(), []

    def find() -> int:
        asked.append(1)
        hangs.wait(20)
        return 7

    fresh = Fresh(find)
    for _ in range(5):
        with pytest.raises(NotAvailable):
            fresh.get()
    assert len(asked) == 1

    monkeypatch.setattr(fresh_module, "ANSWER_SECONDS", 10.0)
    hangs.set()
    assert fresh.get() == 7


def test_the_due_work_poll_and_the_scaler_use_the_same_conditions(adapter: Adapter) -> None:
    """The conditions that wake a stage are those that scale it."""
    assert [stages.NOTIFICATION, *stages.due_questions(adapter.settings)] == list(STAGES)


def test_a_look_that_takes_its_time_is_answered_by_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A big ledger's figures come late and not never; a ledger that hangs has none."""
    monkeypatch.setattr(fresh_module, "ANSWER_SECONDS", 0.05)
    goes_on, asked = threading.Event(), []

    def find() -> int:
        asked.append(1)
        assert len(asked) == 1 or goes_on.wait(20)
        return len(asked)

    fresh = Fresh(find)
    assert fresh.begin().result(20) == 1

    assert fresh.get() == 1
    with pytest.raises(NotAvailable):
        fresh.get(last=False)
    fresh._began -= fresh_module.HANGS_SECONDS
    with pytest.raises(NotAvailable):
        fresh.get()
    goes_on.set()
