# SPDX-License-Identifier: Apache-2.0
"""One Study Instance UID with instances of several patients: a mix-up at the modality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.uid import generate_uid

from adapter.core import Adapter
from adapter.ledger import groups as groups_verbs
from adapter.ledger import jobs as jobs_verbs
from adapter.ledger.queries import find_timeline, list_studies
from adapter.ledger.schema import events, groups
from tests.support_ledger import everything_in
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification
from workers.stage import Work, take_all
from workers.submission import describe

pytestmark = pytest.mark.every_ledger

STUDY = generate_uid()


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    """What the stages work with."""
    made = make_work(adapter)
    yield made
    made.headers.close()


def receive(adapter: Adapter, work: Work, *patients: tuple[str, str], **ae_title: Any) -> None:
    """Receive an instance of the study for each patient: Patient ID, Issuer of Patient ID."""
    association = IncomingAssociation(adapter, add_ae_title(adapter, **ae_title))
    for patient, issuer in patients:
        association.store(
            make_instance(StudyInstanceUID=STUDY, PatientID=patient, IssuerOfPatientID=issuer)
        )
    assert notification.run(work)["registered"] == len(patients)
    let_time_pass(adapter, 6)


def metadata(adapter: Adapter, work: Work) -> dict[str, str]:
    """Return the metadata of the job that is to be submitted next."""
    claimed = jobs_verbs.claim(adapter.ledger, jobs_verbs.submission_due(30), 30)
    assert claimed is not None
    return describe(work, claimed[1])


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        (("CANARY-1", ""), ("CANARY-2", ""), True),
        (("CANARY-1", "CANARY-A"), ("CANARY-1", "CANARY-B"), True),
        (("CANARY-1", "CANARY-A"), ("CANARY-1", ""), False),
        (("CANARY-1", ""), ("", ""), False),
        (("CANARY-1", ""), ("CANARY-1 ", ""), False),
    ],
)
def test_a_study_of_two_patients_is_told(
    adapter: Adapter,
    work: Work,
    one: tuple[str, str],
    other: tuple[str, str],
    conflict: bool,
) -> None:
    """It is submitted with a warning everywhere; an unknown patient or issuer is no other one."""
    receive(adapter, work, one, other, one)

    done = take_all(work, grouping.take)

    assert done == {"closed": 1, "jobs": 1} | ({"patient-conflict": 1} if conflict else {})
    assert metadata(adapter, work).get("PatientConflict") == ("true" if conflict else None)
    told = rows(adapter, events, events.c.kind == "patient-conflict")
    assert [row.detail["studies"] for row in told] == ([[STUDY]] if conflict else [])
    (study,) = list_studies(adapter.ledger).items
    timeline = find_timeline(adapter.ledger, STUDY)
    assert timeline is not None
    assert (study.patient_conflict, timeline.patient_conflict) == (conflict, conflict)
    assert timeline.groups[0].patient_conflict == conflict
    assert b"CANARY" not in everything_in(adapter)


def test_a_conflict_waits_for_an_operator(adapter: Adapter, work: Work) -> None:
    """With `onPatientConflict: hold` the group is parked once; `retry` submits it as it is."""
    receive(adapter, work, ("A", ""), ("B", ""), on_patient_conflict="hold")

    assert take_all(work, grouping.take) == {"parked": 1, "patient-conflict": 1}
    (group,) = rows(adapter, groups)
    assert (group.state, group.reason, group.closed_at) == ("parked", "patient-conflict", None)

    groups_verbs.retry(adapter.ledger, group.id)

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    assert metadata(adapter, work)["PatientConflict"] == "true"
    assert rows(adapter, groups)[0].reason is None


def test_series_of_a_study_are_compared(adapter: Adapter, work: Work) -> None:
    """Grouped by series, a study's conflict is found when the second patient's group closes."""
    settings = {"pipeline-a": "a", "groupBy": "0020,000E"}
    receive(adapter, work, ("A", ""), processor_settings=settings)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}

    receive(adapter, work, ("B", ""), processor_settings=settings)

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1, "patient-conflict": 1}
