# SPDX-License-Identifier: Apache-2.0
"""The whole road in real processes: C-STORE in, grouped, pipeline run, result C-STOREd out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid

from adapter.ledger.schema import arrivals, exports, groups, jobs
from adapter.verify import verify
from tests.support_road import eventually, rows
from tests.support_stack import Pacs, Stack, data_set_bytes, dcmtk, stored, write_study

pytestmark = dcmtk

COPY = {"name": "Copy", "command": ["sh", "-c", "cp {input}/* {output}"], "export": False}
OBSERVER = """
class Observer:
    def instance_stored(self, instance):
        with open({path!r}, "a") as file:
            file.write(instance.sop_instance_uid + "\\n")
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An adapter with one worker for all stages, a PACS, and an observer from a plug-in."""
    folder = tmp_path_factory.mktemp("road")
    pacs = Pacs(folder / "pacs")
    copy_out = {**COPY, "export": True, "destinations": ["PACS"]}
    made = Stack(folder / "data", {"lung": COPY, "brain": COPY, "chest": COPY, "out": copy_out})
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
    """Tell whether an AE title has so many jobs, and all have succeeded."""
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


def test_no_patient_data_outside_the_spool(stack: Stack) -> None:
    """The sentinel names of all those studies are in no log, no ledger, no Redis."""
    redis = stack.redis()
    redis.execute_command("BGREWRITEAOF")
    for path in stack.settings.data.rglob("*"):
        if path.is_file() and stack.settings.spool_path not in path.parents:
            assert b"CANARY" not in path.read_bytes(), path
    for path in stack.adapter.spool.status.iterdir():
        assert b"CANARY" not in path.read_bytes(), path
