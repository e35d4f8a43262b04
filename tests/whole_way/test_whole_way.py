# SPDX-License-Identifier: Apache-2.0
"""All stages in real processes: C-STORE in, grouped, pipeline run, result C-STOREd out."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.events import EventReceiver
from pydicom.uid import generate_uid

from adapter.embedded.roles import own_command
from adapter.ledger.schema import arrivals, exports, groups, jobs
from adapter.stages import make_app
from adapter.verify import verify
from tests.support_stack import Pacs, Stack, data_set_bytes, stored, write_study
from tests.support_stages import IncomingAssociation, encode, make_instance, rows
from tests.support_waiting import eventually

pytestmark = pytest.mark.needs("dcmtk")

COPY = {"name": "Copy", "command": ["sh", "-c", "cp {input}/* {output}"], "export": False}
#: Says all that it was given, and fails.
LEAKY = {
    "name": "Leaky",
    "command": ["sh", "-c", "cat {input}/*; cat {input}/* >&2; exit 3"],
    "export": False,
    "maximumRetries": 0,
}
METADATA = {"uploadMetadata": True, "metadataDicomSource": ["0010,0010", "0010,0020"]}
OBSERVER = """
class Observer:
    def instance_stored(self, instance):
        with open({path!r}, "a") as file:
            file.write(instance.sop_instance_uid + "\\n")
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An adapter with one worker for all stages, a PACS, and an observer from a plug-in."""
    folder = tmp_path_factory.mktemp("whole-way")
    pacs = Pacs(folder / "pacs")
    copy_out = {**COPY, "export": True, "destinations": ["PACS"]}
    pipelines = {"lung": COPY, "brain": COPY, "chest": COPY, "out": copy_out, "leaky": LEAKY}
    made = Stack(folder / "data", pipelines, services={"platform": METADATA})
    plugin = folder / "plugin"
    (plugin / "observing-1.0.dist-info").mkdir(parents=True)
    (plugin / "observing-1.0.dist-info" / "METADATA").write_text("Name: observing\nVersion: 1.0\n")
    (plugin / "observing-1.0.dist-info" / "entry_points.txt").write_text(
        "[dicom_adapter.observers]\nobserving = observing:Observer\n"
    )
    (plugin / "observing.py").write_text(OBSERVER.format(path=str(folder / "observed.txt")))
    made.environment["PYTHONPATH"] = str(plugin)
    made.add_destination("PACS", pacs.port)
    try:
        yield made.start()
    finally:
        made.close()
        pacs.close()


def of(stack: Stack, title: str) -> list[Any]:
    """Return the groups of an AE title."""
    return rows(stack.adapter, groups, groups.c.called_ae_title == title)


def jobs_of(stack: Stack, title: str) -> list[Any]:
    """Return the jobs of an AE title."""
    ids = [group.id for group in of(stack, title)]
    return rows(stack.adapter, jobs, jobs.c.group_id.in_(ids))


def all_succeeded(stack: Stack, title: str, number: int) -> bool:
    """Return whether an AE title has so many jobs, and all have succeeded."""
    states = [job.state for job in jobs_of(stack, title)]
    return len(states) == number and set(states) == {"succeeded"}


def test_many_associations_to_several_ae_titles(stack: Stack, tmp_path: Path) -> None:
    """T7: 4 studies of 2 patients to two AE titles at once: 1600 instances, exactly 8 jobs."""
    stack.configure("Clara1", processor_settings={"pipeline-chest": "chest", "priority": "Higher"})
    by_patient = {"groupBy": "0010,0020", "timeout": "10"}
    pipelines = {"pipeline-lung": "lung", "pipeline-brain": "brain"}
    stack.configure("Clara2", processor_settings={**by_patient, **pipelines})
    studies = []
    for patient in ("A", "B"):
        for study in range(2):
            uid, folder = generate_uid(), tmp_path / f"{patient}{study}"
            for series in range(2):
                write_study(folder / str(series), 100, StudyInstanceUID=uid, PatientID=patient)
            studies.append(folder)

    senders = [stack.storescu(aet, folder) for folder in studies for aet in ("Clara1", "Clara2")]
    assert [stored(sender) for sender in senders] == [200] * 8

    eventually(lambda: all_succeeded(stack, "Clara1", 4), 60)
    eventually(lambda: all_succeeded(stack, "Clara2", 4), 60)
    counts = {(g.called_ae_title, g.instances) for g in of(stack, "Clara1") + of(stack, "Clara2")}
    assert counts == {("Clara1", 200), ("Clara2", 400)}
    sent = {path.stem for path in tmp_path.rglob("*.dcm")}
    assert len(sent) == 100
    observed = (stack.settings.data.parent / "observed.txt").read_text().split()
    assert len(observed) == 1600
    assert len(set(observed)) == 800


def test_one_job_from_several_associations(stack: Stack, tmp_path: Path) -> None:
    """T8: one study in 5 associations at once, 100 instances each: exactly one job with all."""
    stack.configure("OneJob", processor_settings={"pipeline-chest": "chest"})
    study = generate_uid()
    for series in range(5):
        write_study(tmp_path / str(series), 100, StudyInstanceUID=study)

    senders = [stack.storescu("OneJob", tmp_path / str(series)) for series in range(5)]
    assert [stored(sender) for sender in senders] == [100] * 5

    eventually(lambda: all_succeeded(stack, "OneJob", 1), 30)
    (group,) = of(stack, "OneJob")
    assert group.instances == 500


def test_pauses_shorter_than_the_timeout_do_not_split(stack: Stack, tmp_path: Path) -> None:
    """S4: three associations three seconds apart, timeout five: one job holding all."""
    stack.configure("Pauses", processor_settings={"pipeline-chest": "chest"})
    study = generate_uid()
    for series in range(3):
        write_study(tmp_path / str(series), 3, StudyInstanceUID=study)
        assert stored(stack.storescu("Pauses", tmp_path / str(series))) == 3
        if series < 2:
            time.sleep(3)  # the modality's own pause is what is tested

    eventually(lambda: all_succeeded(stack, "Pauses", 1), 20)
    assert [group.instances for group in of(stack, "Pauses")] == [9]


def test_the_same_study_sent_twice_is_one_job(stack: Stack, tmp_path: Path) -> None:
    """N6: a repeat after the job is done is acknowledged, and opens nothing."""
    stack.configure("Twice", processor_settings={"pipeline-chest": "chest"})
    write_study(tmp_path, 5)
    assert stored(stack.storescu("Twice", tmp_path)) == 5
    eventually(lambda: all_succeeded(stack, "Twice", 1), 20)

    assert stored(stack.storescu("Twice", tmp_path)) == 5

    duplicates = arrivals.c.reason == "duplicate", arrivals.c.called_ae_title == "Twice"
    eventually(lambda: len(rows(stack.adapter, arrivals, *duplicates)) == 5)
    assert len(of(stack, "Twice")) == len(jobs_of(stack, "Twice")) == 1


def test_results_arrive_bit_identical(stack: Stack, tmp_path: Path) -> None:
    """S7: what the pipeline wrote is what the PACS holds, and spool and ledger agree."""
    stack.configure("Through", processor_settings={"pipeline-out": "out"})
    paths = write_study(tmp_path, 20)
    assert stored(stack.storescu("Through", tmp_path)) == 20

    eventually(lambda: [e.state for e in rows(stack.adapter, exports)] == ["succeeded"], 30)

    arrived = (stack.settings.data.parent / "pacs").iterdir()
    assert sorted(map(data_set_bytes, arrived)) == sorted(map(data_set_bytes, paths))
    assert verify(stack.adapter) == []


def test_no_patient_data_outside_the_spool(stack: Stack, tmp_path: Path) -> None:
    """Sentinels in every odd place are in no log, ledger, Redis, event, name or answer."""
    # Given, in addition to all earlier studies, sentinels in: a grouping value, the place of a UID,
    # a value that cannot be parsed, a job's description, and the output of a failing pipeline
    by_name = {"groupBy": "0010,0010", "pipeline-leaky": "leaky"}
    version = stack.configure("Leaky", processor_settings=by_name)
    bad_uid = stack.configure("BadUid", processor_settings={"pipeline-chest": "chest"})
    heard: list[dict[str, Any]] = []
    with listening(stack, heard):
        write_study(tmp_path, 2)
        assert stored(stack.storescu("Leaky", tmp_path)) == 2
        association = IncomingAssociation(stack.adapter, bad_uid, "BadUid")
        uid = b"1.2.345678.9"
        bad = encode(make_instance(StudyInstanceUID=uid.decode())).replace(uid, b"CANARY-STUDY")
        association.store(bad, sop_instance_uid=generate_uid())
        association.store(encode(make_instance())[:-40] + b"CANARY" * 3)
        association.store(b"CANARY" * 20)
        IncomingAssociation(stack.adapter, version, "Leaky").store(make_instance(PatientName=None))

        # If
        eventually(lambda: [job.state for job in jobs_of(stack, "Leaky")] == ["parked"], 30)
        odd = arrivals.c.state == "quarantined"
        eventually(lambda: len(rows(stack.adapter, arrivals, odd)) == 4)
        eventually(lambda: {"notification", "submission", "pipeline"} <= names_of(heard))

    # Then
    work = stack.adapter.spool.work_folder(jobs_of(stack, "Leaky")[0].id)
    for name in ("stdout.txt", "stderr.txt", "metadata.json"):
        assert b"CANARY" in (work / name).read_bytes()
    assert "CANARY" not in repr(heard)
    redis = stack.redis()
    assert b"CANARY" not in b"".join(redis.dump(key) or b"" for key in redis.scan_iter())
    for path in stack.settings.data.rglob("*"):
        assert "CANARY" not in str(path)
        if path.is_file() and stack.settings.spool_path not in path.parents:
            assert b"CANARY" not in path.read_bytes(), path
    for path in stack.adapter.spool.status.iterdir():
        assert b"CANARY" not in path.read_bytes(), path
    for command in (("studies", "list"), ("jobs", "list"), ("quarantine", "list")):
        shown = subprocess.run(
            [*own_command(*command), "--json", "--data", str(stack.settings.data)],
            capture_output=True,
            check=True,
        )
        assert b"CANARY" not in shown.stdout + shown.stderr


@contextmanager
def listening(stack: Stack, heard: list[dict[str, Any]]) -> Iterator[None]:
    """Hear what Flower hears of the workers, meanwhile."""
    with make_app(stack.settings).connection() as connection:
        receiver = EventReceiver(connection, {"*": heard.append}, app=make_app(stack.settings))
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None})
        thread.start()
        try:
            yield
        finally:
            receiver.should_stop = True
            thread.join()


def names_of(heard: list[dict[str, Any]]) -> set[str | None]:
    """Return the names of the tasks in some events."""
    return {event.get("name") for event in heard}
