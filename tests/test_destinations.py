# SPDX-License-Identifier: Apache-2.0
"""Destinations as kinds: a client for each, and an export stage that knows of no protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import insert, select, update

from adapter import models
from adapter.errors import ConfigurationError
from adapter.ledger import configuration, exports, schema
from adapter.ledger.receipts import Receipt
from adapter.models import DicomDestination, EntityKind, Outcome
from tests.support_exports import (
    add_destination,
    add_task,
    hasten,
    one_export,
    outcomes,
    rows,
    run,
)
from workers.clients import destinations
from workers.clients.destination import Away, CutShort, Refused

pytestmark = pytest.mark.every_ledger


class FolderDestination(models.Destination):
    """A folder that results are copied into."""

    kind: Literal["folder"] = "folder"
    path: str


class FolderClient:
    """Copies; a file named like an error class in the folder makes it fail that way, once."""

    def __init__(self, destination, _settings):
        self._folder = Path(destination.path)

    def send(self, files, *, answered):
        if not self._folder.is_dir():
            raise Away("the folder is not mounted")
        answered()
        if (self._folder / "Refused").exists():
            raise Refused("the folder is full for good", "full")
        for file in files:
            (self._folder / f"{file.sop_instance_uid}.dcm").write_bytes(
                (file.root / file.path).read_bytes()
            )
            yield Receipt(file.number, file.tries + 1, Outcome.STORED)
            if (self._folder / "CutShort").exists():
                (self._folder / "CutShort").unlink()
                raise CutShort("the folder was taken away")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the kind `folder` is known, a folder to send to."""
    monkeypatch.setitem(models.DESTINATIONS, "folder", FolderDestination)
    monkeypatch.setitem(destinations.CLIENTS, "folder", FolderClient)
    path = tmp_path / "archive"
    path.mkdir()
    return path


@pytest.fixture
def quick(adapter, folder):
    """An adapter that does not wait for long, and has the folder as its destination PACS."""
    body = {"name": "PACS", "kind": "folder", "path": str(folder)}
    entity = configuration.parse(EntityKind.DESTINATION, body)
    configuration.put(adapter.ledger, EntityKind.DESTINATION, entity, replace=False)
    return hasten(adapter)


def test_results_go_to_a_destination_of_another_kind(quick, folder):
    """Every file is there and has a receipt, without a status of any protocol."""
    uids = add_task(quick)

    assert run(quick) == {"succeeded": 1}

    assert sorted(path.stem for path in folder.iterdir()) == sorted(uids)
    assert outcomes(quick) == dict.fromkeys(uids, "stored")
    assert {receipt.status for receipt in rows(quick, schema.receipts)} == {None}


def test_a_try_that_is_cut_short_is_taken_up_where_it_ended(quick, folder):
    """What is confirmed is not sent again, whatever the kind; the reason is in words."""
    add_task(quick, files=3)
    (folder / "CutShort").touch()

    assert run(hasten(quick, export={"retry_delay_seconds": 3600.0})) == {"pending": 1}

    failed = one_export(quick)
    assert "2 of 3 files are not confirmed: the folder was taken away" in failed.message
    (kept,) = folder.iterdir()
    kept.write_bytes(b"as it was")
    with quick.ledger.write() as connection:
        connection.execute(update(schema.exports).values(due_at=0.0))
    assert run(quick) == {"succeeded": 1}
    assert kept.read_bytes() == b"as it was"
    assert len(list(folder.iterdir())) == 3


def test_a_destination_that_is_away_is_put_on_hold_and_tried_again(quick, folder):
    """As one that no association reaches: no try is used."""
    add_task(quick)
    folder.rename(folder.with_name("away"))
    patient = {"hold_minimum_seconds": 3600.0, "hold_maximum_seconds": 3600.0}

    assert run(hasten(quick, export=patient)) == {"pending": 1}

    (hold,) = rows(quick, schema.holds)
    assert (hold.destination, hold.reason) == ("PACS", "the folder is not mounted")
    assert one_export(quick).tries == 0
    folder.with_name("away").rename(folder)
    exports.retry_all(quick.ledger, destination="PACS")
    assert run(quick) == {"succeeded": 1}
    assert rows(quick, schema.holds) == []


def test_a_destination_that_refuses_for_good_is_not_tried_again(quick, folder):
    """The client's own code and words reach the operator."""
    add_task(quick)
    (folder / "Refused").touch()

    assert run(quick) == {"parked": 1}

    parked = one_export(quick)
    assert parked.reason == "full"
    assert "the folder is full for good" in parked.message


def test_a_destination_without_a_kind_is_a_dicom_one(adapter):
    """Rows, commands and custom resources from before there were kinds mean what they meant."""
    body = {"name": "PACS", "aeTitle": "ARCHIVE", "hostIp": "10.0.0.7", "port": 104}

    assert configuration.parse(EntityKind.DESTINATION, body) == configuration.parse(
        EntityKind.DESTINATION, {**body, "kind": "dicom"}
    )

    entity = configuration.parse(EntityKind.DESTINATION, body)
    version = configuration.put(adapter.ledger, EntityKind.DESTINATION, entity, replace=False)
    with adapter.ledger.read() as connection:
        stored = connection.execute(
            select(schema.configuration.c.body).where(schema.configuration.c.version == version)
        ).scalar_one()
    assert stored == body, "the release before this one refuses keys that it does not know"
    found = configuration.find(adapter.ledger, EntityKind.DESTINATION, "PACS")
    assert found is not None
    assert found.entity == entity
    assert isinstance(found.entity, DicomDestination)


@pytest.mark.parametrize("kind", ["carrier-pigeon", ["dicom"], None])
def test_a_kind_that_does_not_exist_is_refused(adapter, kind):
    """The message names the kinds that there are."""
    with pytest.raises(ConfigurationError, match="kind: one of dicom"):
        configuration.parse(EntityKind.DESTINATION, {"name": "PACS", "kind": kind})


def test_a_kind_of_a_later_release_holds_up_its_own_exports_only(adapter, tmp_path, cli):
    """While two releases work beside each other, the older one parks what it cannot send."""
    body = {"name": "WEB", "kind": "stow", "url": "https://10.0.0.9/studies"}
    with adapter.ledger.write() as connection:
        connection.execute(
            insert(schema.configuration).values(
                kind="destination",
                key="WEB",
                body=body,
                owner="operator",
                created_at=schema.now(),
                current=True,
                deleted=False,
            )
        )
    quick = hasten(adapter)
    add_destination(quick, 1, name="OTHER")
    add_task(quick, destinations=("WEB",))

    assert run(quick) == {"parked": 1}

    assert one_export(quick, "WEB").reason == "unknown-destination"
    assert "kind stow, which this release cannot send to" in one_export(quick, "WEB").message
    code, out, _ = cli("destination", "list")
    assert (code, "stow" in out, "OTHER" in out) == (0, True, True)
    code, _, err = cli("destination", "echo", "WEB")
    assert (code, "no C-ECHO" in err) == (1, True)
