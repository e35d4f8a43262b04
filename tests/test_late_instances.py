# SPDX-License-Identifier: Apache-2.0
"""Late instances: what comes while an earlier part of its study is still being tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.uid import generate_uid

from adapter.core import Adapter
from adapter.errors import TemporaryError
from adapter.ledger.schema import groups, jobs
from adapter.verify import verify
from tests.support_jobs import submit_due
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    encode,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification
from workers.clients.platform import PayloadFile
from workers.stage import Work, take_all

pytestmark = pytest.mark.every_ledger


class Platform:
    """A platform that is away at first, and then remembers what it was given."""

    def __init__(self) -> None:
        self.away = True
        self.payloads: dict[str, set[str]] = {}
        self.metadata: dict[str, dict[str, str]] = {}

    def create(self, job: Any) -> str:
        if self.away:
            raise TemporaryError("away", delay=3600)
        return str(job.id)

    def describe(self, job: Any, metadata: dict[str, str]) -> None:
        self.metadata[job.id] = metadata

    def upload(self, job: Any, files: list[PayloadFile]) -> list[None]:
        self.payloads[job.id] = {file.path.stem for file in files}
        return []

    def start(self, job: Any) -> None:
        assert job.id in self.payloads


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    """What the stages work with."""
    made = make_work(adapter)
    yield made
    made.headers.close()


def test_an_instance_that_comes_during_a_retry_is_in_a_job_of_its_own(
    adapter: Adapter, work: Work
) -> None:
    """Each acknowledged instance is in exactly one job, and the second job names the first."""
    platform, version = Platform(), add_ae_title(adapter)
    ds = make_instance()
    first = IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)
    submit_due(work, platform)
    (waiting,) = rows(adapter, jobs)
    assert (waiting.state, waiting.tries) == ("queued", 1)

    ds.SOPInstanceUID = generate_uid()
    late = IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    platform.away = False
    with adapter.ledger.write() as connection:
        connection.execute(jobs.update().values(due_at=0))
    submit_due(work, platform)
    with adapter.ledger.write() as connection:
        connection.execute(
            groups.update().where(groups.c.state == "open").values(look_at=0, due_at=0)
        )
    take_all(work, grouping.take)
    submit_due(work, platform)

    assert sorted(platform.payloads.values(), key=sorted) == [{first}, {late}]
    by_generation = sorted(platform.metadata.values(), key=lambda data: data["Generation"])
    assert [data["Generation"] for data in by_generation] == ["1", "2"]
    assert "EarlierJobs" not in by_generation[0]
    assert by_generation[1]["EarlierJobs"] == waiting.id


def test_what_is_in_quarantine_belongs_to_its_study_and_is_lacking_in_its_job(
    adapter: Adapter, work: Work, cli: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job says how many acknowledged instances of its association it lacks, wherever it is seen.

    A file without a usable Series Instance UID counts, and one that tells no study; one of another
    study does not, nor other bytes of an instance that the job has.
    """
    platform, version = Platform(), add_ae_title(adapter)
    platform.away = False
    ds = make_instance()
    study = ds.StudyInstanceUID
    association = IncomingAssociation(adapter, version)
    association.store(ds)
    ds.PatientComments = "other bytes"
    association.store(ds)
    del ds.PatientComments
    for broken in (ds, make_instance()):
        broken.SOPInstanceUID = generate_uid()
        series = broken.SeriesInstanceUID.encode()
        association.store(encode(broken).replace(series, b"x" * len(series)))
    association.store(b"no data set")
    assert notification.run(work) == {"registered": 1, "quarantined": 4}
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)
    submit_due(work, platform)
    capsys.readouterr()

    (job,) = rows(adapter, jobs)
    assert platform.metadata[job.id]["InQuarantine"] == "2"
    assert json.loads(cli("jobs", "show", job.id, "--json")[1])["inQuarantine"] == 2
    for command in ("jobs", "studies"):
        assert "1 (+ 2 in quarantine)" in cli(command, "list")[1]
    _, out, _ = cli("studies", "show", study)
    assert "in quarantine: 2," in out  # the broken one, and the other bytes
    assert "2 instances of its association in quarantine" in out.replace("\n", " ")
    (shown,) = [
        item
        for item in json.loads(cli("studies", "list", "--json")[1])["items"]
        if item["studyInstanceUID"] == study
    ]
    assert shown["arrivals"] == {"registered": 1, "quarantined": 2}
    assert verify(adapter, 0) == []
