# SPDX-License-Identifier: Apache-2.0
"""Rebuilding: a spool whose ledger is lost is worth a ledger."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from sqlalchemy import insert

from adapter.core import Adapter, open_adapter
from adapter.embedded.supervisor import only_one
from adapter.errors import AdapterError, SpoolError
from adapter.ledger import configuration
from adapter.ledger.schema import arrivals, groups, jobs
from adapter.ledger.schema import configuration as configuration_table
from adapter.models import AETitle, EntityKind, Source
from adapter.rebuild import Rebuilt, rebuild
from adapter.scp.configuration import Snapshot
from adapter.settings import Settings
from adapter.spool import Spool
from adapter.verify import verify
from tests.support_ledger import lose_ledger
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification
from workers.stage import take_all

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def lost(settings: Settings) -> Iterator[Settings]:
    """An adapter that lost its ledger, with registered, waiting and quarantined instances."""
    adapter = open_adapter(settings, create=True)
    source = Source(ae_title="MODALITY", host_ip=["127.0.0.1"])
    configuration.put(adapter.ledger, EntityKind.SOURCE, source, replace=False)
    add_ae_title(adapter, processor_settings={"pipeline-a": "a"})
    by_patient = {"pipeline-b": "b", "groupBy": "0010,0020"}
    version = add_ae_title(adapter, processor_settings=by_patient)
    association = IncomingAssociation(adapter, version)
    association.store(make_instance())
    association.store(make_instance())
    association.store(make_instance(PatientID=""))
    work = make_work(adapter)
    notification.run(work)
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)
    work.headers.close()
    association.store(make_instance())
    adapter.spool.write_configuration(configuration.snapshot(adapter.ledger))
    (settings.data / "jobs-before").write_text(rows(adapter, jobs)[0].id)
    lose_ledger(adapter)
    return settings


def test_an_empty_ledger_on_a_full_spool_does_not_start(lost: Settings) -> None:
    """Nothing runs on a spool whose ledger is gone until an operator says so."""
    with pytest.raises(SpoolError, match="rebuild"):
        open_adapter(lost, create=True)


def test_what_the_spool_holds_is_registered_anew(lost: Settings) -> None:
    """Configuration, instances and quarantine come back, and jobs under the ids they had."""
    assert rebuild(lost) == Rebuilt(configuration=3, instances=2, incoming=1, quarantined=1)

    adapter = open_adapter(lost)
    assert verify(adapter, settle_seconds=0) == []
    work = make_work(adapter)
    assert notification.run(work) == {"registered": 3}
    let_time_pass(adapter, 6)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    work.headers.close()
    assert rows(adapter, jobs)[0].id == (lost.data / "jobs-before").read_text()
    assert rows(adapter, groups)[0].instances == 3
    (kept,) = rows(adapter, arrivals, arrivals.c.state == "quarantined")
    assert (kept.reason, kept.called_ae_title) == ("rebuilt", "BRAIN")
    assert kept.study_instance_uid, "it belongs to its study still"
    kinds = [EntityKind.AE_TITLE, EntityKind.SOURCE]
    assert [len(configuration.current(adapter.ledger, kind)) for kind in kinds] == [1, 1]
    assert verify(adapter, settle_seconds=0) == []
    assert add_ae_title(adapter) == 4, "versions are counted on"
    adapter.close()


def test_nothing_in_force_is_pushed_out_of_the_copy(adapter: Adapter) -> None:
    """However many versions follow, the copy has all that is in force, and a bounded history."""
    version = add_ae_title(adapter)
    source = Source(ae_title="MODALITY", host_ip=["127.0.0.1"])
    configuration.put(adapter.ledger, EntityKind.SOURCE, source, replace=False)
    earlier = {"owner": "operator", "created_at": 0.0, "current": False, "deleted": False}
    body = AETitle(ae_title="OFTEN").model_dump(mode="json", by_alias=True)
    with adapter.ledger.write() as connection:
        for kind, name in ((EntityKind.DESTINATION, "PACS"), (EntityKind.AE_TITLE, "OFTEN")):
            row = {**earlier, "kind": kind, "key": name, "body": body}
            connection.execute(insert(configuration_table), [row] * 2100)
    newest = configuration.put(
        adapter.ledger, EntityKind.AE_TITLE, AETitle(ae_title="LAST"), replace=False
    )

    saved = configuration.snapshot(adapter.ledger)

    assert saved["version"] == newest
    assert {row["version"] for row in saved["rows"] if row["current"]} == {1, 2, newest}
    assert {row["kind"] for row in saved["rows"] if not row["current"]} == {EntityKind.AE_TITLE}
    assert len(saved["rows"]) == 3 + 2000
    assert set(Snapshot.parse(saved).ae_titles) == {"BRAIN", "LAST"}
    assert set(Snapshot.parse(saved).sources) == {"MODALITY"}
    assert version == 1


def test_a_copy_of_an_earlier_release_is_restored_too(adapter: Adapter) -> None:
    """It does not say which versions are of one life, from creation to deletion: that is found."""
    add_ae_title(adapter)
    add_ae_title(adapter, processor_settings={"pipeline-a": "a"})
    configuration.remove(adapter.ledger, EntityKind.AE_TITLE, "BRAIN")
    add_ae_title(adapter)
    add_ae_title(adapter, processor_settings={"pipeline-a": "a"})
    saved = configuration.snapshot(adapter.ledger)
    for row in saved["rows"]:
        del row["first_version"]
        row["of a later release"] = 1
    with adapter.ledger.write() as connection:
        connection.execute(configuration_table.delete())

    assert configuration.restore(adapter.ledger, saved) == 5

    found = {row.version: row.first_version for row in rows(adapter, configuration_table)}
    assert found == {1: 1, 2: 1, 3: 1, 4: 4, 5: 4}


def test_a_ledger_that_is_not_empty_is_left_alone(adapter: Adapter) -> None:
    """Rebuilding never touches a ledger that knows its instances."""
    IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())
    work = make_work(adapter)
    notification.run(work)
    work.headers.close()

    with pytest.raises(SpoolError, match="not empty"):
        rebuild(adapter.settings)
    assert list(adapter.spool.list_incoming()) == []


def test_without_the_configuration_nothing_is_guessed(lost: Settings) -> None:
    """Instances whose AE title versions are unknown would all go to quarantine: refused."""
    (lost.spool_path / "configuration.json").unlink()

    with pytest.raises(SpoolError, match=r"configuration\.json"):
        rebuild(lost)


def test_nothing_is_rebuilt_under_a_running_adapter(lost: Settings) -> None:
    """Rebuilding and running exclude each other."""
    with only_one(lost.data / "up.lock"), pytest.raises(AdapterError, match="runs already"):
        rebuild(lost)


def test_a_ledger_and_a_spool_that_do_not_belong_together_do_not_start(
    adapter: Adapter, settings: Settings
) -> None:
    """Another spool under the same ledger is refused."""
    shutil.rmtree(adapter.spool.folder)
    Spool(settings.spool_path).create()

    with pytest.raises(SpoolError, match="another spool"):
        open_adapter(settings)
