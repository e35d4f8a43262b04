# SPDX-License-Identifier: Apache-2.0
"""Two hosts on a volume that shows each what the other has made some seconds late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from adapter.ledger.schema import groups
from tests.cluster.conftest import Cluster
from tests.late_volume import environment
from tests.support_modality import Modality
from tests.support_stack import stored, write_study
from tests.support_stages import rows

pytestmark = [pytest.mark.needs("dcmtk"), pytest.mark.timeout(300)]

#: Seconds that names are late, as NFS's 60 are to the 120 of visibilitySeconds.
LATE, VISIBLE = 3.0, 6.0


@pytest.fixture
def late(tmp_path: Path) -> Iterator[Cluster]:
    """Two hosts, each a receiver and a worker for all stages, on a late volume."""
    cluster = Cluster(
        tmp_path,
        None,
        storage={"lagSeconds": LATE},
        workers={"visibilitySeconds": VISIBLE, "housekeepingSeconds": 2},
    )
    for name, host in cluster.hosts.items():
        spool = host.settings.spool_path
        host.environment |= environment(spool, tmp_path / "aside", LATE, name)
    try:
        cluster.start("scp", "worker")
        cluster.configure("BRAIN")
        yield cluster
    finally:
        cluster.close()


def test_a_late_volume_loses_doubles_and_parks_nothing(late: Cluster, tmp_path: Path) -> None:
    """One study over both receivers is one job; no try is used up, no file is left behind."""
    study = generate_uid()
    folders = [tmp_path / "study" / str(number) for number in range(4)]
    for folder in folders:
        write_study(folder, 10, StudyInstanceUID=study)

    with Modality(tmp_path / "others", [late.one.port, late.two.port], pause=1.0) as modality:
        hosts = [late.one, late.two] * 2
        senders = [host.storescu("BRAIN", f) for host, f in zip(hosts, folders, strict=True)]
        assert [stored(sender) for sender in senders] == [10] * 4

    late.await_end(120)
    assert [group.instances for group in rows(late.adapter, groups, groups.c.key == study)] == [40]
    sent = {str(dcmread(path).SOPInstanceUID) for f in folders for path in f.iterdir()}
    late.assert_each_once(sent | modality.acknowledged)
