# SPDX-License-Identifier: Apache-2.0
"""Two receivers of two processes, two workers for each stage: once is once, whatever goes."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from adapter.errors import LeaseLost
from adapter.ledger.schema import groups
from tests.cluster.conftest import ROLES, Cluster
from tests.support_modality import Modality
from tests.support_stack import stored, write_study
from tests.support_stages import make_work, rows
from workers import grouping, notification, reclamation
from workers.stage import Work, take_all

pytestmark = [pytest.mark.needs("dcmtk"), pytest.mark.timeout(400)]

SOAK = bool(os.environ.get("SOAK"))
#: Roles killed by the test of random kills.
KILLS = 60 if SOAK else 3
#: Times that every role of both hosts is restarted; 0: each once, on one host or the other.
ROUNDS = 2 if SOAK else 0


@pytest.fixture
def sweeping(cluster: Cluster) -> Iterator[threading.Event]:
    """More of what sweeps: two further threads do what the stages' workers do, all the time."""
    done = threading.Event()

    def take_groups(work: Work) -> object:
        return take_all(work, grouping.take)

    def sweep() -> None:
        work = make_work(cluster.adapter)
        while not done.wait(0.05):
            for run in (notification.run, take_groups, reclamation.run):
                with suppress(LeaseLost):  # as the workers' task does
                    run(work)
        work.headers.close()

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield done
    done.set()
    for thread in threads:
        thread.join()


def test_one_study_over_eight_associations_is_one_job(
    cluster: Cluster, sweeping: threading.Event, tmp_path: Path
) -> None:
    """Eight associations at once, spread over both receivers: one group, one job, one result."""
    study = generate_uid()
    folders = [tmp_path / "study" / str(number) for number in range(8)]
    for folder in folders:
        write_study(folder, 25, StudyInstanceUID=study)

    hosts = [cluster.one, cluster.two] * 4
    senders = [host.storescu("BRAIN", f) for host, f in zip(hosts, folders, strict=True)]
    assert [stored(sender) for sender in senders] == [25] * 8

    cluster.await_end(60)
    sweeping.set()
    assert [group.instances for group in rows(cluster.adapter, groups, groups.c.key == study)] == [
        200
    ]
    cluster.assert_each_once({uid for folder in folders for uid in uids_of(folder)})


def uids_of(folder: Path) -> list[str]:
    """Return the SOP Instance UIDs of a folder's files."""
    return [str(dcmread(path).SOPInstanceUID) for path in sorted(folder.iterdir())]


def test_a_rolling_restart_loses_and_doubles_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Every role is stopped in turn, and started again, while a modality sends.

    The other host's next role stops while the last one still starts.
    """
    ports = [cluster.one.port, cluster.two.port]
    turns = [(host, role) for role in ROLES for host in ("one", "two")] * ROUNDS
    turns = turns or list(zip(("one", "two") * len(ROLES), ROLES, strict=False))
    with Modality(tmp_path / "studies", ports, pause=1.0) as modality:
        for host, role in turns:
            cluster.hosts[host].await_ready(role)  # from an earlier turn
            assert cluster.hosts[host].stop(role) == [0]
            cluster.hosts[host].launch(role)
        for host, role in turns:
            cluster.hosts[host].await_ready(role)
        assert modality.studies >= len(turns) // 2
    cluster.await_end(90)
    cluster.assert_each_once(modality.acknowledged)
    assert len(modality.acknowledged) == 3 * modality.studies


def test_random_kills_lose_and_double_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Roles killed at random, Redis among them, while a modality goes on sending."""
    chance = random.Random()
    with Modality(
        tmp_path / "studies", [cluster.one.port, cluster.two.port], pause=1.0
    ) as modality:
        for number in range(KILLS):
            role = chance.choice(("redis", *ROLES)) if number % 3 else chance.choice(ROLES[:2])
            host = "one" if role == "redis" else chance.choice(("one", "two"))
            time.sleep(chance.uniform(0.2, 1.5))  # at a random moment of the load
            cluster.hosts[host].kill(role)
            cluster.hosts[host].start(role)
    cluster.await_end(120)
    cluster.assert_each_once(modality.acknowledged)
