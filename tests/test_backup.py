# SPDX-License-Identifier: Apache-2.0
"""Back-up and restore as docs/operations.md tells: the ledger first, then the spool."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import make_url

from adapter.core import Adapter, open_adapter
from adapter.ledger.schema import arrivals, groups
from adapter.settings import Settings
from adapter.verify import verify
from tests import peers
from tests.support_ledger import lose_ledger
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification, reclamation
from workers.stage import take_all

#: Seconds since the instances of the test were received: the sweep leaves younger ones alone.
AGE = 2000.0


def back_up_ledger(settings: Settings, copy: Path) -> None:
    """Copy the ledger while it is in use."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(url.database)) as source, closing(sqlite3.connect(copy)) as to:
            source.backup(to)
        return
    peers.need("postgresql")
    with copy.open("wb") as file:
        subprocess.run(
            [peers.find("pg_dump"), "--format=custom", _plain(url)], check=True, stdout=file
        )


def restore_ledger(settings: Settings, copy: Path) -> None:
    """Put a copy in the place of a ledger that is lost."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        shutil.copy(copy, url.database)
        return
    subprocess.run(
        [peers.find("pg_restore"), "--clean", "--if-exists", "--no-owner",
         f"--dbname={_plain(url)}", copy],
        check=True,
    )  # fmt: skip


def _plain(url):
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.every_ledger
def test_what_came_between_the_two_copies_is_registered_again(
    settings: Settings, tmp_path: Path
) -> None:
    """Nothing acknowledged before the spool was copied is lost, and each is in one group."""
    adapter = open_adapter(settings)
    study, received_at = generate_uid(), adapter.ledger.now() - AGE
    version = add_ae_title(adapter, processor_settings={"pipeline-a": "a", "timeout": "3600"})

    def receive(adapter: Adapter, *instances) -> None:
        for ds in instances:
            IncomingAssociation(adapter, version).store(ds, received_at=received_at)

    work = make_work(adapter)
    receive(adapter, *(make_instance(StudyInstanceUID=study) for _ in range(2)))
    notification.run(work)
    back_up_ledger(settings, tmp_path / "ledger.copy")
    receive(adapter, make_instance(StudyInstanceUID=study), make_instance())
    notification.run(work)
    receive(adapter, make_instance())
    shutil.copytree(adapter.spool.root, tmp_path / "spool.copy")
    work.headers.close()
    shutil.rmtree(adapter.spool.root)
    lose_ledger(adapter)

    restore_ledger(settings, tmp_path / "ledger.copy")
    shutil.copytree(tmp_path / "spool.copy", settings.spool_path)
    workers = settings.workers.model_copy(update={"housekeeping_seconds": 0.001})
    restored = open_adapter(settings)
    restored = replace(restored, settings=settings.model_copy(update={"workers": workers}))

    remedies = {difference.remedy.partition(":")[0] for difference in verify(restored, 0)}
    assert remedies == {"wait"}
    work = make_work(restored)
    reclamation.run(work)
    notification.run(work)
    let_time_pass(restored, 3700)
    take_all(work, grouping.take)
    work.headers.close()
    assert sorted(group.instances for group in rows(restored, groups)) == [1, 1, 3]
    assert [arrival.state for arrival in rows(restored, arrivals)] == ["registered"] * 5
    assert verify(restored, 0) == []
    restored.close()
